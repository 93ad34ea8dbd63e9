"""The benchmark on a card: what it measures and writes, on scripted engines; it writes nothing without a card."""

import re
from pathlib import Path

import pytest

from benchmarks.gpu import (
    GpuEngine,
    GpuFigures,
    engines_measured,
    gpu_engines,
    measure_card,
    measure_engines,
    plan_engines,
)
from benchmarks.report import BenchmarkReport, page
from models.artifact.artifact import load
from models.artifact.engine_plan import ComputeCapability, Flavour
from service.common.gpus import Card, Cards
from service.engines.base import Engine, EngineUnavailableError
from tests.fakes import FakeEngine
from tests.scripted_card import CARD, ScriptedCard, pixels

SIZES = (1, 4, 8)


def failing() -> Engine:
    """An engine that is not there."""
    raise EngineUnavailableError("ONNX Runtime\n cannot run CUDA")


def test_measure(tmp_path: Path) -> None:
    """Each engine is measured at each size that it takes, in turns, and closed; one that fails says why."""
    scripted, fake = ScriptedCard(tmp_path), FakeEngine(max_batch=4)
    found = [
        GpuEngine("tensorrt", lambda: scripted.open(slots=2, max_batch=8)),
        GpuEngine("fake", lambda: fake),
        GpuEngine("absent", failing),
    ]
    real, small, absent = measure_engines(found, pixels(8), SIZES, seconds=0.001)
    assert (real.slots, set(real.rates), real.reason) == (2, {1, 4, 8}, "")
    assert (small.slots, set(small.rates)) == (1, {1, 4})
    assert (absent.rates, absent.reason) == ({}, "ONNX Runtime cannot run CUDA")
    assert all(rate > 0 for rate in (*real.rates.values(), *small.rates.values()))
    order = [size for before, size in zip([0, *fake.batches], fake.batches, strict=False) if size != before]
    assert order == [4, *(1, 4) * 5]
    assert fake.closed
    scripted.trt.assert_clean()


def test_table() -> None:
    """Images per second, milliseconds per batch of one slot, a dash for what it does not take, and what is missing."""
    figures = [GpuFigures("a", 2, {1: 1000.0, 8: 4000.0}), GpuFigures("b", 1, {1: 10.0}), GpuFigures("c", reason="no")]
    report = BenchmarkReport()
    report.add(engines_measured("tiny", figures, (1, 8)))
    text = page(report)
    assert (
        "| engine | batch 1 | batch 8 |\n"
        "| --- | ---: | ---: |\n"
        "| a | 1000 (2.00) | 4000 (4.00) |\n"
        "| b | 10 (100.00) | - |\n"
    ) in text
    assert "| tiny: c | - |  | not measured | no |" in text


def test_report(exported: Path) -> None:
    """The report names card, driver and versions before any figure; each engine is a row or has its reason."""
    report = measure_card(Cards((CARD,)), ["tiny"], exported, (1,), 0.001)
    machine = dict(report.machine)
    assert machine["card"].startswith("NVIDIA GeForce RTX 2080 Ti (sm75, 11 GiB), driver ")
    assert re.search(r"torch \d", machine["versions"])
    (found,) = report.measurements
    assert len(found.table) + len(found.rows) == 3


def test_plans_of_this_card(tmp_path: Path, exported: Path) -> None:
    """A plan is measured with graphs and without where they are ours; a plan for other cards is not tried."""
    artifact = load(exported, "tiny")
    names = [one.name for one in plan_engines(artifact, ScriptedCard(tmp_path).plan(), CARD, 8, tmp_path)]
    assert [name.partition(", ")[2] for name in names] == ["one slot", "two slots", "one slot, no CUDA graphs"]
    rtx = plan_engines(artifact, ScriptedCard(tmp_path, Flavour.TENSORRT_RTX).plan(), CARD, 8, tmp_path)
    assert len(rtx) == 2
    other = Card(0, "NVIDIA H200", ComputeCapability(9, 0), 1, 1)
    assert [one.name for one in gpu_engines(artifact, other, 8, tmp_path)] == [
        "onnxruntime CUDA f32",
        "PyTorch eager f32",
        "PyTorch eager fp16 (autocast)",
    ]


def test_no_card(exported: Path) -> None:
    """Without a card there is no page, and the reason is CUDA's."""
    with pytest.raises(EngineUnavailableError, match="no CUDA-capable device"):
        measure_card(Cards((), "no CUDA-capable device is detected"), ["tiny"], exported, SIZES, 0.001)
