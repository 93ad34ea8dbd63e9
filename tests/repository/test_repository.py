"""The set of models: loaded once, reported truly, recovered and closed."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from models.artifact.artifact import GRAPH, MANIFEST, NotExportedError
from models.catalog import CATALOG
from service.batching.batcher import BatcherState
from service.common.errors import ModelNotFound, NotReady, ShuttingDown, TopfiveError
from service.common.metrics import Metrics, ModelMetrics
from service.common.model_info import ModelState
from service.common.types import BatchLimits
from service.engines.base import CPU, EngineUnavailableError
from service.repository.device_memory import Device
from service.repository.loaded_model import LoadedModel
from service.repository.model_info import model_detail, model_layers
from service.repository.repository import ModelEntry, Repository
from tests.exposition import exposition
from tests.fakes import ManualClock, Opener, reached, settle
from tests.repository.test_model import sample

pytestmark = pytest.mark.anyio

UNREADABLE = Path("/proc/self/mem")  # a regular file whose first bytes nobody can read


class Bench:
    """A repository over a folder, whose engines are fakes."""

    def __init__(self, root: Path, opener: Opener, metrics: Metrics) -> None:
        self.opener = opener
        self.clock = ManualClock()
        self.metrics = metrics
        self.repository = Repository(
            root,
            CATALOG,
            lambda: [Device(CPU, opener)],
            limits=lambda engine: BatchLimits(engine.slots, engine.max_batch),
            clock=self.clock,
            metrics=metrics,
        )
        self.changes: list[bool] = []
        self.repository.on_change(lambda: self.changes.append(self.repository.ready))

    async def classify(self, name: str, shade: int = 1) -> int:
        """The class that a model gives to an image of one shade."""
        model = await self.repository.get(name)
        with model.batcher.admit():
            [ran] = await model.batcher.submit([sample(shade)], deadline=self.clock.now() + 60)
        return int(ran.value.argmax())

    async def fail(self, name: str, times: int = 3) -> None:
        """Let the engine of a loaded model fail so often."""
        self.opener.opened[0].script = [RuntimeError("no device")] * times
        for _ in range(times):
            with pytest.raises(TopfiveError):
                await self.classify(name)


@asynccontextmanager
async def bench_of(root: Path, opener: Opener | None = None, metrics: Metrics | None = None) -> AsyncIterator[Bench]:
    """A bench that is closed at the end."""
    bench = Bench(root, opener or Opener(), metrics or Metrics())
    try:
        yield bench
    finally:
        bench.opener.gate.set()
        for engine in bench.opener.opened:
            engine.gate.set()
        closing = asyncio.create_task(bench.repository.aclose(60))
        await reached(closing.done)
        await closing


def copy_as(root: Path, name: str) -> None:
    """Another artifact in the folder: `tiny` under a new name."""
    shutil.copytree(root / "tiny", root / name)
    manifest = root / name / "1" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "name": name}))


def entry_of(bench: Bench, name: str) -> ModelEntry:
    """One of the entries."""
    return {entry.name: entry for entry in bench.repository.entries()}[name]


def ready(bench: Bench) -> bool:
    """Whether it is ready now; a function, because a type checker takes a property for unchanged."""
    return bench.repository.ready


def alive(bench: Bench) -> bool:
    """Whether it is alive now."""
    return bench.repository.alive


# --- loading ---


async def test_many_callers_share_one_load(artifacts: Path) -> None:
    """Twenty requests for a model that is not loaded open one engine, and get the same model."""
    async with bench_of(artifacts) as bench:
        models = await asyncio.gather(*(bench.repository.get("tiny") for _ in range(20)))
        assert bench.opener.begun == 1
        assert len({id(model) for model in models}) == 1
        assert await bench.repository.get("tiny") is models[0]
        assert bench.opener.begun == 1


async def test_a_caller_that_leaves_does_not_stop_the_load(artifacts: Path) -> None:
    """The first caller, who began the load, is cancelled; the second gets the model of that very load."""
    async with bench_of(artifacts) as bench:
        bench.opener.gate.clear()
        first, second = (asyncio.create_task(bench.repository.get("tiny")) for _ in range(2))
        await reached(lambda: bench.opener.begun == 1)
        first.cancel()
        await settle()
        assert first.cancelled()
        bench.opener.gate.set()
        assert (await second).name == "tiny"
        assert bench.opener.begun == 1


async def test_a_load_that_everybody_left_still_serves_the_next(artifacts: Path) -> None:
    """An engine that was being built is not thrown away because its one caller hung up."""
    async with bench_of(artifacts) as bench:
        bench.opener.gate.clear()
        only = asyncio.create_task(bench.repository.get("tiny"))
        await reached(lambda: bench.opener.begun == 1)
        only.cancel()
        await settle()
        bench.opener.gate.set()
        await bench.repository.get("tiny")
        assert bench.opener.begun == 1


@pytest.mark.parametrize("error", [EngineUnavailableError("no such device"), ValueError("a bad graph"), MemoryError()])
async def test_a_failed_load_is_not_ready_and_tried_again(artifacts: Path, error: Exception) -> None:
    """All who waited are told with the cause chained; the next request begins a new load, which may succeed."""
    async with bench_of(artifacts) as bench:
        bench.opener.script = [error]
        ends = await asyncio.gather(*(bench.repository.get("tiny") for _ in range(3)), return_exceptions=True)
        for end in ends:
            assert isinstance(end, NotReady)
            assert "tiny cannot be loaded" in end.detail
            assert str(error) in end.detail
        assert bench.opener.begun == 1
        assert entry_of(bench, "tiny").state is ModelState.EXPORTED
        assert await bench.classify("tiny", 7) == 7
        assert bench.opener.begun == 2


async def test_a_model_that_is_not_exported_names_the_command(artifacts: Path) -> None:
    """The catalog knows it, so the answer is how to make it, not that it does not exist."""
    async with bench_of(artifacts) as bench:
        with pytest.raises(ModelNotFound, match="topfive export googlenet") as missing:
            await bench.repository.get("googlenet")
        assert isinstance(missing.value.__cause__, NotExportedError)
        assert bench.opener.begun == 0


@pytest.mark.parametrize(("name", "nearest"), [("tinny", "tiny"), ("GoogLeNet", "googlenet"), ("mine1", "mine")])
async def test_an_unknown_model_names_the_nearest(artifacts: Path, name: str, nearest: str) -> None:
    """Names of the catalog and of other exported models are offered, by `get` and by `entry`."""
    copy_as(artifacts, "mine")
    async with bench_of(artifacts) as bench:
        with pytest.raises(ModelNotFound, match=f"did you mean .*{nearest}"):
            await bench.repository.get(name)
        with pytest.raises(ModelNotFound, match=f"did you mean .*{nearest}"):
            bench.repository.entry(name)


@pytest.mark.parametrize("name", ["", "..", "../artifacts/tiny", "tiny/1", "/etc", "a\0b", "x" * 5000])
async def test_a_name_is_never_a_path(artifacts: Path, name: str) -> None:
    """Whatever a client sends as a name, it is looked up, not opened."""
    async with bench_of(artifacts) as bench:
        with pytest.raises(ModelNotFound):
            await bench.repository.get(name)


async def test_a_damaged_artifact_is_not_ready_until_it_is_repaired(artifacts: Path) -> None:
    """The message names the file; no engine is opened on it; with the file back the next request is served."""
    graph = artifacts / "tiny" / "1" / GRAPH
    whole = graph.read_bytes()
    async with bench_of(artifacts) as bench:
        graph.write_bytes(whole[:-1] + b"?")
        with pytest.raises(NotReady, match=GRAPH):
            await bench.repository.get("tiny")
        graph.unlink()
        with pytest.raises(NotReady, match=GRAPH):
            await bench.repository.get("tiny")
        assert bench.opener.begun == 0
        graph.write_bytes(whole)
        assert (await bench.repository.get("tiny")).name == "tiny"


async def test_a_manifest_that_cannot_be_read_is_not_ready(artifacts: Path) -> None:
    """It names the manifest, and the model list goes on without it."""
    (artifacts / "tiny" / "1" / MANIFEST).write_text("{")
    async with bench_of(artifacts) as bench:
        with pytest.raises(NotReady, match=MANIFEST):
            await bench.repository.get("tiny")
        assert entry_of(bench, "tiny").exported is None


@pytest.mark.skipif(not UNREADABLE.is_file(), reason="needs Linux")
async def test_a_file_that_the_disk_does_not_give_is_not_ready(artifacts: Path) -> None:
    """An error of the operating system while reading is an answer, at start too, not a bug."""
    graph = artifacts / "tiny" / "1" / GRAPH
    graph.unlink()
    graph.symlink_to(UNREADABLE)
    async with bench_of(artifacts) as bench:
        with pytest.raises(NotReady, match="tiny cannot be loaded"):
            await bench.repository.start(["tiny"])


async def test_the_newest_version_is_loaded(artifacts: Path) -> None:
    """With versions 1 and 10 the tenth is served, not the one that sorts last as text."""
    shutil.copytree(artifacts / "tiny" / "1", artifacts / "tiny" / "9")
    shutil.copytree(artifacts / "tiny" / "1", artifacts / "tiny" / "10")
    async with bench_of(artifacts) as bench:
        assert (await bench.repository.get("tiny")).card.version == 10


async def test_an_artifact_outside_the_catalog_is_served(artifacts: Path) -> None:
    """Whoever exports a network of their own can ask for it by its name."""
    copy_as(artifacts, "mine")
    async with bench_of(artifacts) as bench:
        assert await bench.classify("mine", 9) == 9


# --- readiness ---


async def test_ready_once_every_configured_model_is_loaded(artifacts: Path) -> None:
    """Not before, not with one of two, and listeners hear of the change; the first is the default."""
    copy_as(artifacts, "mine")
    async with bench_of(artifacts) as bench:
        assert not ready(bench)
        bench.opener.gate.clear()
        starting = asyncio.create_task(bench.repository.start(["mine", "tiny"]))
        await reached(lambda: bench.opener.begun == 1)
        assert not ready(bench)
        assert bench.repository.default == "mine"
        bench.opener.gate.set()
        await starting
        assert ready(bench)
        assert bench.changes == [False, True]
        assert alive(bench)


async def test_not_ready_and_no_default_before_the_start(artifacts: Path) -> None:
    """A request that comes before the configured models are known is told to come again."""
    async with bench_of(artifacts) as bench:
        assert not ready(bench)
        with pytest.raises(NotReady):
            _ = bench.repository.default


async def test_a_start_that_fails_raises_and_is_not_ready(artifacts: Path) -> None:
    """A configured model that is not exported stops the start with the command to export it."""
    async with bench_of(artifacts) as bench:
        with pytest.raises(ModelNotFound, match="topfive export alexnet"):
            await bench.repository.start(["tiny", "alexnet"])
        assert not ready(bench)


async def test_readiness_follows_the_last_real_runs(artifacts: Path) -> None:
    """Three failed runs turn it off, one good run turns it on, and listeners hear both."""
    async with bench_of(artifacts) as bench:
        await bench.repository.start(["tiny"])
        await bench.fail("tiny")
        assert not ready(bench)
        assert entry_of(bench, "tiny").state is ModelState.FAILING
        assert alive(bench)
        await bench.classify("tiny")
        assert ready(bench)
        assert bench.changes == [True, False, True]


async def test_a_failing_model_that_is_not_configured_does_not_count(artifacts: Path) -> None:
    """Readiness is a promise about the configured models only."""
    copy_as(artifacts, "mine")
    async with bench_of(artifacts) as bench:
        await bench.classify("mine")
        await bench.repository.start(["tiny"])
        await bench.fail("mine")
        assert entry_of(bench, "mine").state is ModelState.FAILING
        assert ready(bench)


async def test_recover_brings_readiness_back_without_traffic(artifacts: Path) -> None:
    """A failed model gets one blank image; a healthy one gets none."""
    async with bench_of(artifacts) as bench:
        await bench.repository.start(["tiny"])
        [engine] = bench.opener.opened
        await bench.repository.recover()
        assert engine.batches == []
        await bench.fail("tiny", times=4)
        engine.script = [RuntimeError("still no device")]
        await bench.repository.recover()
        assert not ready(bench)
        await bench.repository.recover()
        assert ready(bench)
        assert engine.batches == [1] * 6


async def test_a_broken_queue_is_not_alive(artifacts: Path) -> None:
    """A bug that no request can heal shows in liveness, so that a supervisor restarts the process."""

    class FaultyModelMetrics(ModelMetrics):
        def batch_started(self, size: int, queued_s: Sequence[float]) -> None:
            raise ZeroDivisionError("a bug")

    class FaultyMetrics(Metrics):
        def for_model(self, model: str) -> ModelMetrics:
            return FaultyModelMetrics(self, model)

    async with bench_of(artifacts, metrics=FaultyMetrics()) as bench:
        await bench.repository.start(["tiny"])
        assert alive(bench)
        with pytest.raises(TopfiveError):
            await bench.classify("tiny")
        assert (await bench.repository.get("tiny")).batcher.state is BatcherState.BROKEN
        assert not alive(bench)
        assert not ready(bench)
        await bench.repository.recover()
        assert not ready(bench)


# --- reports ---


async def test_entries_are_the_catalog_and_other_exported_models(artifacts: Path) -> None:
    """By name, each with its state and what is known of it."""
    copy_as(artifacts, "mine")
    async with bench_of(artifacts) as bench:
        entries = bench.repository.entries()
        names = [entry.name for entry in entries]
        assert names == sorted({*CATALOG.names(), "mine"})
        states = {entry.name: entry.state for entry in entries}
        assert states.pop("mine") is ModelState.EXPORTED
        assert states.pop("tiny") is ModelState.EXPORTED
        assert set(states.values()) == {ModelState.NOT_EXPORTED}
        mine, tiny, googlenet = (bench.repository.entry(name) for name in ("mine", "tiny", "googlenet"))
        assert mine.architecture is None
        assert mine.exported is not None
        assert tiny.architecture is CATALOG["tiny"]
        assert googlenet.exported is None


async def test_an_entry_shows_its_way_to_ready(artifacts: Path) -> None:
    """Exported, loading, ready, each at its time."""
    async with bench_of(artifacts) as bench:
        assert entry_of(bench, "tiny").state is ModelState.EXPORTED
        bench.opener.gate.clear()
        loading = asyncio.create_task(bench.repository.get("tiny"))
        await reached(lambda: bench.opener.begun == 1)
        assert entry_of(bench, "tiny").state is ModelState.LOADING
        bench.opener.gate.set()
        model = await loading
        entry = entry_of(bench, "tiny")
        assert entry.state is ModelState.READY
        assert entry.loaded is model


async def test_no_folder_is_no_model(tmp_path: Path) -> None:
    """A fresh machine lists the catalog, and answers a request with the command to export."""
    async with bench_of(tmp_path / "none") as bench:
        assert {entry.state for entry in bench.repository.entries()} == {ModelState.NOT_EXPORTED}
        with pytest.raises(ModelNotFound, match="topfive export tiny"):
            await bench.repository.get("tiny")


async def test_loaded_models_show_in_the_metrics(artifacts: Path) -> None:
    """Depth, in flight, admitted, the largest batch and health, of each loaded model and of no other."""
    async with bench_of(artifacts) as bench:
        await bench.repository.start(["tiny"])
        [engine] = bench.opener.opened
        engine.gate.clear()
        tasks = [asyncio.create_task(bench.classify("tiny")) for _ in range(3)]
        await settle()
        text = exposition(bench.metrics)
        for line in ("queue_depth 2", "in_flight 1", "admitted 3", "max_batch 8", "healthy 1"):
            gauge, value = line.split()
            assert f'topfive_{gauge}{{model="tiny"}} {value}.0' in text
        assert "googlenet" not in text
        engine.gate.set()
        await asyncio.gather(*tasks)


# --- the end ---


async def test_stopping_is_not_ready_and_loads_nothing_new(artifacts: Path) -> None:
    """What is loaded goes on answering until it is closed."""
    copy_as(artifacts, "mine")
    async with bench_of(artifacts) as bench:
        await bench.repository.start(["tiny"])
        bench.repository.stop()
        assert not ready(bench)
        assert bench.changes[-1] is False
        assert await bench.classify("tiny", 3) == 3
        with pytest.raises(ShuttingDown):
            await bench.repository.get("mine")


async def test_closing_answers_first_and_closes_every_engine(artifacts: Path) -> None:
    """Accepted images of two models are answered, then both engines are closed, and nothing is loaded any more."""
    copy_as(artifacts, "mine")
    async with bench_of(artifacts) as bench:
        await bench.repository.start(["tiny", "mine"])
        for engine in bench.opener.opened:
            engine.gate.clear()
        tasks = [asyncio.create_task(bench.classify(name, 6)) for name in ("tiny", "mine")]
        await settle()
        closing = asyncio.create_task(bench.repository.aclose(60))
        await settle()
        assert not closing.done()
        for engine in bench.opener.opened:
            engine.gate.set()
        await closing
        assert await asyncio.gather(*tasks) == [6, 6]
        assert [engine.closed for engine in bench.opener.opened] == [True, True]
        with pytest.raises(ShuttingDown):
            await bench.repository.get("tiny")
        await bench.repository.aclose(60)


async def test_closing_during_a_load_tells_those_who_wait(artifacts: Path) -> None:
    """They are not cancelled as if they had left: they get ShuttingDown; and the engine that comes late is closed."""
    async with bench_of(artifacts) as bench:
        bench.opener.gate.clear()
        waiting = [asyncio.create_task(bench.repository.get("tiny")) for _ in range(2)]
        await reached(lambda: bench.opener.begun == 1)
        await bench.repository.aclose(60)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, ShuttingDown) for end in ends)
        bench.opener.gate.set()
        await reached(lambda: [engine.closed for engine in bench.opener.opened] == [True])
        with pytest.raises(ShuttingDown):
            await bench.repository.get("tiny")


@pytest.mark.parametrize("turns", range(8))
async def test_closing_just_as_a_load_ends_closes_its_engine(artifacts: Path, turns: int) -> None:
    """An engine that has been opened, but of which nobody knows yet, is not left open, whatever the turn."""
    async with bench_of(artifacts) as bench:
        loading = asyncio.create_task(bench.repository.get("tiny"))
        while not bench.opener.opened:  # noqa: ASYNC110 - it is the very next turn that matters
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        await bench.repository.aclose(60)
        [end] = await asyncio.gather(loading, return_exceptions=True)
        assert isinstance(end, LoadedModel | ShuttingDown)
        [engine] = bench.opener.opened
        await reached(lambda: engine.closed)


async def test_damage_is_told_and_not_passed_off_as_absence(artifacts: Path) -> None:
    """A catalog model whose manifest cannot be read carries the reason; another that is absent carries none."""
    (artifacts / "tiny" / "1" / MANIFEST).write_text("{}")
    async with bench_of(artifacts) as bench:
        damaged, absent = bench.repository.entry("tiny"), bench.repository.entry("vgg16")

        assert (damaged.state, absent.state) == (ModelState.NOT_EXPORTED, ModelState.NOT_EXPORTED)
        assert damaged.damage is not None
        assert "run: topfive export tiny" in damaged.damage
        assert model_detail(damaged).warnings == (damaged.damage,)
        assert (absent.damage, model_detail(absent).warnings) == (None, ())
        with pytest.raises(NotReady, match="topfive export tiny"):
            model_layers(damaged, artifacts)
        with pytest.raises(ModelNotFound, match="vgg16 is not exported yet"):
            model_layers(absent, artifacts)
