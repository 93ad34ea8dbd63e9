"""`Tuning` with scripted speeds, its candidates, and the load of `measure`."""

import shutil
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from models.artifact.artifact import Artifact, load
from models.artifact.quantized import write_quantized
from models.catalog import InputSpec
from service.common.types import Layout, Precision, Probabilities, Rows, Runtime
from service.engines.base import Engine, EngineUnavailableError
from service.offline.tune import Candidate, Speed, Tuning, candidates, measure
from tests.fakes import FakeEngine
from tests.models.test_quantized import record as quantization_record


class ScriptedEngines:
    """Opens engines and gives each candidate the figures of a script, else 100 images/s and 10 ms."""

    def __init__(self, script: Mapping[str, Sequence[Speed | Exception]]) -> None:
        self.script = {name: iter(speeds) for name, speeds in script.items()}
        self.measured: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.open: dict[FakeEngine, Candidate] = {}

    def open_engine(self, artifact: Artifact, one: Candidate) -> Engine:
        engine = FakeEngine(artifact.manifest.classes, slots=one.layout.slots)
        self.open[engine] = one
        return engine

    def measure(self, engine: Engine, _spec: InputSpec, size: int, _cpus: int, seconds: float) -> Speed:
        assert isinstance(engine, FakeEngine)
        assert not engine.closed
        opened = self.open[engine]
        name = f"{opened.runtime} {opened.precision} {opened.layout.slots}x{opened.layout.threads} {size}"
        self.measured[name] += 1
        self.seconds.append(seconds)
        speed = next(self.script.get(name, iter(())), Speed(100, 10))
        if isinstance(speed, Exception):
            raise speed
        return speed


@pytest.fixture
def f32(exported: Path) -> Artifact:
    """The artifact of `tiny` without a report of bf16."""
    tiny = load(exported, "tiny")
    parity = tuple(one for one in tiny.manifest.parity if one.precision == Precision.F32)
    return replace(tiny, manifest=tiny.manifest.model_copy(update={"parity": parity}))


def tuned(artifact: Artifact, engines: ScriptedEngines, max_latency_ms: float = 100) -> tuple[list[str], list[str]]:
    """The candidates by rank, and the failures."""
    tuning = Tuning(artifact, 2, 10, max_latency_ms, lambda _: None, engines.open_engine, engines.measure)
    speeds, failures = tuning.run()
    names = [f"{one[0]} {one[1]} {one[2].slots}x{one[2].threads} {one[2].max_batch}" for one in speeds]
    assert all(engine.closed for engine in engines.open)
    return names, failures


def test_candidates(f32: Artifact) -> None:
    """Each runtime has the default layout first; only precisions with a passed report, and batches of the graph."""
    found = candidates(f32, 4)

    assert {(one.runtime, one.precision) for one in found} == {
        (Runtime.OPENVINO, Precision.F32),
        (Runtime.ONNXRUNTIME, Precision.F32),
    }
    shapes = dict.fromkeys((one.layout.slots, one.layout.threads) for one in found)
    assert list(shapes) == [(4, 1), (1, 4), (2, 2)]
    assert found[1].layout == Layout(4, 1, 4)
    for cpus in range(1, 20):
        assert all(one.layout.slots * one.layout.threads <= cpus for one in candidates(f32, cpus))
    single = replace(f32, manifest=f32.manifest.model_copy(update={"max_batch": 1}))
    assert {one.layout.max_batch for one in candidates(single, 4)} == {1}


def test_int8_is_a_candidate_where_it_is_made(f32: Artifact, tmp_path: Path) -> None:
    """An int8 graph in the artifact is measured too, and does not change what serves untuned."""
    without = candidates(f32, 2)
    folder = tmp_path / "tiny" / "1"
    shutil.copytree(f32.folder, folder)
    artifact = replace(f32, folder=folder)
    write_quantized(folder, b"<net/>", b"weights", quantization_record(artifact))

    found = candidates(artifact, 2)

    assert [one for one in found if one.precision is not Precision.INT8] == without
    assert found[0] == without[0]
    added = [one for one in found if one.precision is Precision.INT8]
    assert {one.runtime for one in added} == {Runtime.OPENVINO}
    assert len(added) == len([one for one in without if one.runtime is Runtime.OPENVINO])


def test_best_are_measured_again_with_the_default(f32: Artifact) -> None:
    """All are measured once, the best three and the default in five more rounds, within the given time."""
    fast = [f"onnxruntime f32 1x2 {size}" for size in (1, 4, 8)]
    engines = ScriptedEngines(
        {name: [Speed(200, 10)] + [Speed(200 + place, 10)] * 5 for place, name in enumerate(fast)}
    )
    names, failures = tuned(f32, engines)

    again = {name for name, count in engines.measured.items() if count == 6}
    assert again == {*fast, "openvino f32 2x1 4"}
    assert set(engines.measured.values()) == {1, 6}
    assert sum(engines.seconds) == pytest.approx(10)
    assert set(names) == set(engines.measured)
    assert not failures


def test_median_of_rounds_decides(f32: Artifact) -> None:
    """A lucky look and one slow round change nothing."""
    steady = [Speed(150, 10), Speed(150, 10), Speed(1, 999), *[Speed(150, 10)] * 3]
    lucky = [Speed(900, 10), *[Speed(120, 10)] * 5]
    names, _ = tuned(f32, ScriptedEngines({"openvino f32 1x2 1": steady, "onnxruntime f32 1x2 8": lucky}))

    assert names[:2] == ["openvino f32 1x2 1", "onnxruntime f32 1x2 8"]


@pytest.mark.parametrize(
    ("first", "second", "best"),
    [
        (Speed(200, 90), Speed(195, 20), "second"),  # as good as equal: the shorter batches
        (Speed(200, 90), Speed(150, 20), "first"),
        (Speed(200, 101), Speed(150, 20), "second"),  # over the bound
    ],
)
def test_rule(first: Speed, second: Speed, best: str, f32: Artifact) -> None:
    """The most images per second within the bound win; of those within 5 %, the shortest batches."""
    script = {
        "openvino f32 1x2 8": [first] * 6,
        "onnxruntime f32 1x2 1": [second] * 6,
    }
    names, _ = tuned(f32, ScriptedEngines(script))

    assert names[0] == {"first": "openvino f32 1x2 8", "second": "onnxruntime f32 1x2 1"}[best]


def test_nothing_within_the_bound(f32: Artifact) -> None:
    """Then the shortest batches come first."""
    engines = ScriptedEngines({"openvino f32 1x2 1": [Speed(10, 6)] * 6})

    assert tuned(f32, engines, max_latency_ms=5)[0][0] == "openvino f32 1x2 1"


def test_failures_are_named(f32: Artifact) -> None:
    """A candidate that fails in its look or later is left out or keeps its look; the others go on."""
    engines = ScriptedEngines(
        {
            "openvino f32 2x1 8": [MemoryError("too big")],
            "openvino f32 1x2 1": [Speed(500, 10), ValueError("lost")],
        }
    )
    names, failures = tuned(f32, engines)

    assert "openvino f32 2x1 8" not in names
    assert engines.measured["openvino f32 1x2 1"] == 2
    assert failures == [
        "openvino f32, slots 2, threads 1, max_batch 8: too big",
        "openvino f32, slots 1, threads 2, max_batch 1: lost",
    ]


def test_nothing_runs(f32: Artifact) -> None:
    """An error has the reasons if no engine opens."""

    def refuse(_artifact: Artifact, _one: Candidate) -> Engine:
        raise EngineUnavailableError("this CPU lacks something")

    with pytest.raises(EngineUnavailableError, match="this CPU lacks something"):
        Tuning(f32, 2, 10, 100, lambda _: None, refuse).run()


class CountingEngine(FakeEngine):
    """Counts its batches, and how many run at once."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots=slots)
        self.sizes: list[int] = []
        self._places = threading.Semaphore(slots)

    def run(self, rows: Rows) -> Probabilities:
        assert self._places.acquire(blocking=False), "more batches at once than slots"
        try:
            self.sizes.append(len(rows))
            return super().run(rows)
        finally:
            self._places.release()


def test_load(f32: Artifact) -> None:
    """Batches have the size, never more run at once than there are slots, and at least two are measured."""
    for seconds in (0.0, 0.1):
        engine = CountingEngine(slots=2)
        speed = measure(engine, f32.manifest.input, 3, 2, seconds)

        assert set(engine.sizes) == {3}
        assert len(engine.sizes) >= 3
        assert speed.images_per_s > 0
        assert speed.run_ms > 0


def test_engine_that_fails_ends_the_measurement(f32: Artifact) -> None:
    """The error of the engine is raised; no thread goes on."""

    class Failing(FakeEngine):
        def run(self, rows: Rows) -> Probabilities:
            raise RuntimeError("it broke")

    with pytest.raises(RuntimeError, match="it broke"):
        measure(Failing(), f32.manifest.input, 1, 2, 0.1)
    assert threading.active_count() == 1 or all("ThreadPool" not in one.name for one in threading.enumerate())
