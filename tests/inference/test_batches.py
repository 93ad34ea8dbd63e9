"""The data plane with several images in a request: order, batches, admission, deadlines, statistics."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from service.common.errors import (
    BadImage,
    BadRequest,
    DeadlineExceeded,
    EngineError,
    ModelNotFound,
    Overloaded,
    TooLarge,
)
from service.common.statistics import ModelStatistics
from service.common.types import ImageLimits
from service.inference.dataplane import Images, Inference
from tests.conftest import png
from tests.exposition import exposition
from tests.fakes import reached
from tests.fleet import Fleet, fleet_of

pytestmark = pytest.mark.anyio


def shades(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Images of one colour, as the network takes them."""
    return np.stack([np.full((32, 32, 3), value, np.uint8) for value in values])


async def infer(fleet: Fleet, images: Images, version: int | None = None, timeout_s: float = 30.0) -> Inference:
    """The probabilities by `tiny`."""
    return await fleet.data_plane.infer(images, "tiny", version, fleet.data_plane.clock.now() + timeout_s)


def best(inference: Inference) -> list[int]:
    """The best class of each image."""
    found: list[int] = inference.probabilities.argmax(axis=1).tolist()
    return found


@pytest.mark.parametrize("encoded", [False, True])
async def test_many_images(exported: Path, encoded: bool) -> None:
    """More images than the largest batch are split, wait for those of nobody, and are answered in order."""
    async with fleet_of(exported, "tiny") as fleet:
        order = [9, 3, 7, 1, 5, 30, 20, 11, 12, 13, 14, 40, 41, 42, 43, 44, 45, 46, 47, 48]
        answer = await infer(fleet, [png(one) for one in order] if encoded else shades(*order))

        assert best(answer) == order
        assert answer.probabilities.shape == (20, 1000)
        assert answer.probabilities.dtype == np.float32
        assert (answer.model, answer.version, len(answer.labels)) == ("tiny", 1, 1000)
        assert sum(fleet.engines["tiny"].batches) == 20
        assert max(fleet.engines["tiny"].batches) <= 8
        assert fleet.answered() == {("tiny", "ok"): 1}
        assert fleet.items() == {("tiny", "ok"): 20}


async def test_batches_are_shared(exported: Path) -> None:
    """Images of several requests fill one batch, and each request gets its own answers."""
    async with fleet_of(exported, "tiny") as fleet:
        engine, batcher = fleet.engines["tiny"], await fleet.batcher()
        alone, *_ = await fleet.busy()
        tasks = [asyncio.create_task(infer(fleet, shades(one, one + 1))) for one in (10, 20, 30)]
        classify = fleet.begin(png(50))
        await reached(lambda: batcher.depth == 7)
        engine.gate.set()
        answers = await asyncio.gather(*tasks)

        assert [best(answer) for answer in answers] == [[10, 11], [20, 21], [30, 31]]
        assert [(await call).predictions[0].class_id for call in (alone, classify)] == [0, 50]
        assert engine.batches == [1, 7]


@pytest.mark.parametrize(
    ("images", "version", "error", "words"),
    [
        ([], None, BadRequest, "no image"),
        (np.zeros((1, 33, 32, 3), np.uint8), None, BadRequest, r"\[1, 33, 32, 3\]; send \[-1, 32, 32, 3\]"),
        (np.zeros((0, 32, 32, 3), np.uint8), None, BadRequest, "no image"),
        ([png(1), b"bad"], None, BadImage, "image"),
        ([png(1), bytes(100_001)], None, TooLarge, "100,001 bytes"),
        ([png(1)], 2, ModelNotFound, "no version 2"),
        ([png(1)] * 21, None, BadRequest, "21 inputs exceed --capacity of 20"),
    ],
)
async def test_refused(exported: Path, images: Images, version: int | None, error: type[Exception], words: str) -> None:
    """A request is answered for all of its images or refused; the next one is answered."""
    limits = ImageLimits(max_bytes=100_000)
    async with fleet_of(exported, "tiny", capacity=20, limits=limits) as fleet:
        with pytest.raises(error, match=words):
            await infer(fleet, images, version)
        assert (await fleet.batcher()).admitted == 0
        assert best(await infer(fleet, [png(4)], 1)) == [4]
        (report,) = await fleet.data_plane.statistics(None, None)
        assert report.inference_stats.success.count == 1
        assert report.inference_stats.fail.count == (error is not ModelNotFound)  # a version that is not there has none


async def test_unknown_models(exported: Path) -> None:
    """A model that is not there and an ensemble are no models of this call, and are refused before any is loaded."""
    async with fleet_of(exported, "tiny") as fleet:
        for name in ("nobody", "ensemble:tiny+squeezenet1_1"):
            with pytest.raises(ModelNotFound):
                await fleet.data_plane.infer([png(1)], name, None, fleet.data_plane.clock.now() + 30)
        assert fleet.data_plane.repository.loaded == ("tiny",)


async def test_capacity_and_deadline(exported: Path) -> None:
    """Images of a request are admitted all or none, and end at its deadline without a run."""
    async with fleet_of(exported, "tiny", capacity=4) as fleet:
        engine, batcher = fleet.engines["tiny"], await fleet.batcher()
        engine.gate.clear()
        first = asyncio.create_task(infer(fleet, shades(1, 2)))
        await reached(lambda: batcher.in_flight == 2)
        with pytest.raises(Overloaded):
            await infer(fleet, shades(3, 4, 5))
        late = asyncio.create_task(infer(fleet, shades(6, 7), timeout_s=5))
        await reached(lambda: batcher.depth == 2)
        await fleet.clock.advance(5)
        with pytest.raises(DeadlineExceeded):
            await late
        engine.gate.set()
        assert best(await first) == [1, 2]
        assert engine.batches == [2]


async def test_statistics(exported: Path) -> None:
    """Counters by request, by image and by batch are those of the requests sent; metrics have the same."""
    async with fleet_of(exported, "tiny") as fleet:
        engine, _ = fleet.engines["tiny"], await fleet.batcher()
        assert (await fleet.data_plane.statistics("tiny", 1))[0].last_inference == 0
        engine.gate.clear()
        slow = asyncio.create_task(infer(fleet, shades(1)))
        await reached(lambda: engine.running == 1)
        fleet.clock.jump(0.5)
        engine.gate.set()
        await slow
        for count in (1, 3, 8, 11):
            await infer(fleet, shades(*range(count)))
        await fleet.classify(png(1))
        await fleet.classify(png(1), crops=10)
        engine.script.append(RuntimeError("scripted"))
        with pytest.raises(EngineError, match="scripted"):
            await infer(fleet, shades(1))

        (report,) = await fleet.data_plane.statistics("tiny", None)
        sizes = {one.batch_size: one.compute_infer.count for one in report.batch_stats}
        durations = report.inference_stats
        assert (report.name, report.version) == ("tiny", "1")
        assert report.inference_count == 1 + 1 + 3 + 8 + 11 + 1 + 10 == sum(n * count for n, count in sizes.items())
        assert report.execution_count == sum(sizes.values()) == len(engine.batches) - 1
        assert (durations.success.count, durations.fail.count) == (7, 1)
        assert {durations.queue.count, durations.compute_input.count, durations.compute_infer.count} == {7}
        assert durations.success.ns == durations.compute_infer.ns == 500_000_000
        assert report.last_inference > 1_600_000_000_000
        assert [one.byte_size for one in report.memory_usage] == [1000]
        assert await fleet.data_plane.statistics(None, None) == [report]
        check_metrics(fleet, report)
        for name, version in (("nobody", None), ("tiny", 2)):
            with pytest.raises(ModelNotFound):
                await fleet.data_plane.statistics(name, version)


def check_metrics(fleet: Fleet, report: ModelStatistics) -> None:
    """The metrics that Triton's dashboards read have the values of the report, under the very names."""
    page = exposition(fleet.metrics)
    for name, value in (
        ("request_success", report.inference_stats.success.count),
        ("request_failure", report.inference_stats.fail.count),
        ("count", report.inference_count),
        ("exec_count", report.execution_count),
    ):
        assert f'\nnv_inference_{name}{{model="tiny",version="1"}} {float(value)}\n' in page
    for name in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert f'\nnv_inference_{name}_duration_us{{model="tiny",version="1"}} ' in page
