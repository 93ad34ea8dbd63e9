"""A loaded model: samples in, rows of probabilities out, on a fake engine in real threads."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from openvino import InferRequest

from models.artifact.artifact import Artifact, Manifest, WeightRecord, WeightSource, load
from service.common.clock import timeout_at
from service.common.errors import DeadlineExceeded, EngineError, ShuttingDown
from service.common.types import (
    BatchLimits,
    EngineInfo,
    ItemOutcome,
    ItemResult,
    Precision,
    Probabilities,
    Rows,
    Sample,
)
from service.engines.base import CardLostError
from service.engines.openvino.engine import OpenVinoEngine
from service.engines.selection.opening import Opened
from service.repository.loaded_model import LoadedModel, warnings_of
from tests.fakes import FakeEngine, ManualClock, Tally, reached, settle

pytestmark = pytest.mark.anyio

Answer = asyncio.Task[ItemResult[Probabilities]]


class Bench:
    """A loaded `tiny` on a fake engine."""

    def __init__(self, artifact: Artifact, engine: FakeEngine, capacity: int) -> None:
        self.engine = engine
        self.clock = ManualClock()
        self.tally = Tally()
        self.health: list[bool] = []
        self.model = LoadedModel(
            artifact,
            Opened(engine),
            limits=BatchLimits(engine.slots, engine.max_batch, capacity),
            clock=self.clock,
            metrics=self.tally,
            on_health=lambda: self.health.append(self.model.batcher.healthy),
        )

    async def call(self, shade: int) -> ItemResult[Probabilities]:
        """What a caller with an image of one shade of grey does; its class is the shade."""
        deadline = self.clock.now() + 60
        async with timeout_at(deadline, self.clock):
            with self.model.batcher.admit():
                return (await self.model.batcher.submit([sample(shade)], deadline=deadline))[0]

    async def submit(self, *shades: int) -> list[Answer]:
        """Callers with such images, which have come as far as they can."""
        tasks = [asyncio.create_task(self.call(shade)) for shade in shades]
        await settle()
        return tasks

    async def together(self, *shades: int, step: Exception | Probabilities) -> list[Answer]:
        """Callers that share one batch, which ends so."""
        self.engine.gate.clear()
        self.engine.script = [rows(1), step]
        tasks = await self.submit(0, *shades)
        self.engine.gate.set()
        await asyncio.wait(tasks)
        return tasks[1:]


@asynccontextmanager
async def bench_of(root: Path, engine: FakeEngine | None = None, capacity: int = 64) -> AsyncIterator[Bench]:
    """A bench that is closed at the end."""
    bench = Bench(load(root, "tiny"), engine or FakeEngine(), capacity)
    try:
        yield bench
    finally:
        bench.engine.gate.set()
        closing = asyncio.create_task(bench.model.aclose(60))
        await reached(closing.done)
        await closing


def sample(shade: int) -> Sample:
    """An input of `tiny` in one shade."""
    return np.full((32, 32, 3), shade, dtype=np.uint8)


def closed(bench: Bench) -> bool:
    """Whether its engine is closed now; a function, because a type checker takes an attribute for unchanged."""
    return bench.engine.closed


def rows(count: int, classes: int = 1000) -> Probabilities:
    """Equal probabilities."""
    return np.full((count, classes), 1 / classes, dtype=np.float32)


async def test_each_caller_gets_the_row_of_its_own_sample(exported: Path) -> None:
    """Thirty samples in batches of up to eight: every one is answered with its own class."""
    async with bench_of(exported) as bench:
        rans = await asyncio.gather(*await bench.submit(*range(30)))
        assert [int(ran.value.argmax()) for ran in rans] == list(range(30))
        assert {ran.value.shape for ran in rans} == {(1000,)}
        assert bench.engine.batches == [1, 8, 8, 8, 5]


async def test_slots_run_at_the_same_time(exported: Path) -> None:
    """Two slots are two threads inside the engine at once."""
    both = threading.Barrier(2, timeout=30)

    class Meeting(FakeEngine):
        def run(self, rows: Rows) -> Probabilities:
            both.wait()
            return super().run(rows)

    async with bench_of(exported, Meeting(slots=2)) as bench:
        await asyncio.gather(*await bench.submit(1, 2))
        assert bench.engine.batches == [1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
async def test_a_row_that_is_not_finite_fails_alone(exported: Path, value: float) -> None:
    """The second of three callers is told; the others have their answers, and the model stays healthy."""
    async with bench_of(exported) as bench:
        step = rows(3)
        step[1, 7] = value
        good, bad, too = await bench.together(1, 2, 3, step=step)
        assert isinstance(bad.exception(), EngineError)
        assert (good.result().batch_size, too.result().batch_size) == (3, 3)
        assert bench.tally.outcomes == {ItemOutcome.OK: 3, ItemOutcome.FAILED: 1}
        assert bench.model.batcher.healthy


@pytest.mark.parametrize("shape", [(3, 1000), (1, 1000), (2, 999), (2000, 1)])
async def test_an_output_of_the_wrong_shape_is_an_engine_error(exported: Path, shape: tuple[int, int]) -> None:
    """Nobody gets a row of it, the message has both shapes, and the next batch is answered."""
    async with bench_of(exported) as bench:
        for task in await bench.together(1, 2, step=rows(*shape)):
            error = task.exception()
            assert isinstance(error, EngineError)
            assert str(shape) in error.detail
            assert "(2, 1000)" in error.detail
        [after] = await asyncio.gather(*await bench.submit(5))
        assert int(after.value.argmax()) == 5


async def test_out_of_memory_in_the_engine_halves_the_batch(exported: Path) -> None:
    """A MemoryError from the engine's thread is met by smaller batches, and every caller is answered."""
    async with bench_of(exported) as bench:
        tasks = await bench.together(1, 2, 3, 4, step=MemoryError("4 do not fit"))
        assert [int(task.result().value.argmax()) for task in tasks] == [1, 2, 3, 4]
        assert bench.engine.batches == [1, 4, 2, 2]
        assert bench.model.batcher.max_batch == 2


async def test_a_probe_tells_whether_the_engine_answers(exported: Path) -> None:
    """One blank image makes a failed model healthy again once its engine works, without any traffic."""
    async with bench_of(exported) as bench:
        bench.engine.script = [RuntimeError("no device")] * 4
        for _ in range(3):
            await asyncio.gather(*await bench.submit(1), return_exceptions=True)
        assert bench.health == [False]
        assert not await bench.model.probe()
        assert bench.health == [False]
        assert await bench.model.probe()
        assert bench.health == [False, True]


async def test_a_probe_of_a_full_or_stuck_model_is_no_error(exported: Path) -> None:
    """Without a free place, or without an answer in five seconds, it says no and gives its place back."""
    async with bench_of(exported, capacity=1) as bench:
        bench.engine.gate.clear()
        probe = asyncio.create_task(bench.model.probe())
        await settle()
        assert not await bench.model.probe()
        await bench.clock.advance(5.0)
        assert not await probe
        assert bench.model.batcher.admitted == 0


async def test_an_engine_that_hangs_is_noticed(exported: Path) -> None:
    """A batch that has not returned within its limit makes the model unhealthy, and lost where no slot is left."""
    async with bench_of(exported) as bench:
        bench.engine.gate.clear()
        (stuck,) = await bench.submit(1)
        await bench.clock.advance(59)
        before = (bench.model.healthy, bench.model.lost)
        await bench.clock.advance(2)
        after = (bench.model.healthy, bench.model.lost)
        bench.engine.gate.set()
        await reached(lambda: bench.model.healthy)

        assert before == (True, False)
        assert after == (False, True)
        assert not bench.model.lost
        assert len(bench.health) == 2
        with pytest.raises(DeadlineExceeded):
            await stuck


class Entered(FakeEngine):
    """Says that a thread is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()

    def run(self, rows: Rows) -> Probabilities:
        self.entered.set()
        return super().run(rows)


class Lost(queue.SimpleQueue[InferRequest]):
    """Requests of which none is there; says that a thread waits for one."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def get(self, block: bool = True, timeout: float | None = None) -> InferRequest:
        self.asked.set()
        return super().get(block, timeout)


async def test_a_stuck_engine_is_named(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which engine, in which precision and slot, with how many images, since when, and when it is over."""
    engine = Entered()
    async with bench_of(exported, engine) as bench:
        bench.engine.gate.clear()
        tasks = await bench.submit(1)
        await reached(engine.entered.is_set)
        await bench.clock.advance(61)
        (stuck,) = bench.model.stuck_batches
        assert stuck.labels == ("tiny", "fake", "f32", "0")
        assert stuck.age_s(bench.clock.now()) == 61
        assert "tiny: fake 1 in f32 on cpu, slot 0, has not returned from a batch of 1 for 60 s" in caplog.text
        bench.engine.gate.set()
        await reached(lambda: bench.model.healthy)
        await asyncio.gather(*tasks, return_exceptions=True)

        assert bench.model.stuck_batches == ()
        assert "tiny: slot 0 has returned after 61 s" in caplog.text


async def test_openvino_that_hangs_is_named_and_recovers(exported: Path) -> None:
    """The real engine, none of whose requests comes back, is told like any other; once one does, answers come again."""
    artifact = load(exported, "tiny")
    engine = OpenVinoEngine(artifact, Precision.F32, slots=1, threads=1, max_batch=2)
    clock = ManualClock()
    model = LoadedModel(
        artifact,
        Opened(engine),
        limits=BatchLimits(engine.slots, engine.max_batch),
        clock=clock,
        metrics=Tally(),
        on_health=lambda: None,
    )

    async def ask() -> ItemResult[Probabilities]:
        with model.batcher.admit():
            return (await model.batcher.submit([sample(1)], deadline=clock.now() + 1000))[0]

    taken, engine._requests = engine._requests.get(), (lost := Lost())
    asked = asyncio.create_task(ask())
    await reached(lost.asked.is_set)
    await clock.advance(61)
    (stuck,) = model.stuck_batches
    assert not model.healthy
    assert stuck.described(clock.now()).startswith(
        f"openvino {engine.describe().version} in f32 on cpu, slot 0, has not"
    )
    lost.put(taken)
    assert (await asked).value.shape == (1000,)
    await reached(lambda: model.healthy)
    await model.aclose(1)


async def test_the_card_says_what_the_model_is(exported: Path) -> None:
    """Parameters and multiply-accumulates come from the manifest, latency from what was recorded."""
    async with bench_of(exported) as bench:
        bench.model.latency.record(12.0)
        card = bench.model.card
        assert (card.name, card.version, card.family, card.input_size) == ("tiny", 1, "tiny", 32)
        assert (card.parameters, card.macs, card.weights) == (20_752, 181_888, "untrained")
        assert (card.acc1, card.acc5) == (None, None)
        assert card.latency_ms.count == 1
        assert bench.model.engine_info == EngineInfo("fake", "1", "cpu", "f32")
        assert bench.model.name == bench.model.card.name == "tiny"
        assert bench.model.card.weights == "untrained"


def test_only_untrained_weights_are_warned_of(exported: Path) -> None:
    """The warning names the model and the command; weights from anywhere else carry none."""
    manifest: Manifest = load(exported, "tiny").manifest
    [warning] = warnings_of(manifest)
    assert "untrained" in warning
    assert "topfive export tiny" in warning
    for source in (WeightSource.PRETRAINED, WeightSource.FILE):
        trained = manifest.model_copy(update={"weights": WeightRecord(source=source, name="x")})
        assert warnings_of(trained) == ()


async def test_closing_answers_first_and_then_closes_the_engine(exported: Path) -> None:
    """The engine lives until the last accepted image is answered; later ones are refused."""
    async with bench_of(exported) as bench:
        bench.engine.gate.clear()
        tasks = await bench.submit(1, 2)
        closing = asyncio.create_task(bench.model.aclose(60))
        await settle()
        assert not closing.done()
        assert not closed(bench)
        bench.engine.gate.set()
        await closing
        assert closed(bench)
        assert [int(task.result().value.argmax()) for task in tasks] == [1, 2]
        [late] = await bench.submit(3)
        assert isinstance(late.exception(), ShuttingDown)


async def test_an_engine_closes_beside_the_event_loop(exported: Path) -> None:
    """While one takes its time to close, other work goes on; two who close it wait for the same end."""
    async with bench_of(exported) as bench:
        bench.engine.ending.clear()
        closing = [asyncio.create_task(bench.model.aclose(60)) for _ in range(2)]
        await reached(lambda: bench.engine.closing == 1)
        assert not any(task.done() for task in closing)
        bench.engine.ending.set()
        await asyncio.gather(*closing)
        assert bench.model.closed
        assert bench.engine.closing == 1


async def test_an_engine_with_a_thread_inside_is_not_closed(exported: Path) -> None:
    """After the drain limit callers are refused, but nothing is pulled from under a run that still goes on."""
    async with bench_of(exported) as bench:
        bench.engine.gate.clear()
        tasks = await bench.submit(1)
        closing = asyncio.create_task(bench.model.aclose(2))
        await settle()
        await bench.clock.advance(2)
        await closing
        assert isinstance(tasks[0].exception(), ShuttingDown)
        assert not bench.engine.closed


async def test_no_half_of_a_batch_is_run_after_the_end(exported: Path) -> None:
    """A batch that runs out of memory after the drain limit ends there, rather than wait for threads that are gone."""
    engine = Entered()
    async with bench_of(exported, engine) as bench:
        bench.engine.gate.clear()
        bench.engine.script = [MemoryError("2 do not fit")]
        deadline = bench.clock.now() + 60
        caller = asyncio.create_task(bench.model.batcher.submit([sample(1), sample(2)], deadline=deadline))
        await reached(engine.entered.is_set)
        closing = asyncio.create_task(bench.model.aclose(2))
        await settle()
        await bench.clock.advance(2)
        await closing
        assert bench.model.batcher.in_flight == 2
        bench.engine.gate.set()
        await reached(lambda: bench.model.batcher.in_flight == 0)
        assert isinstance(caller.exception(), ShuttingDown)
        assert bench.engine.batches == [2]


async def test_lost_card(exported: Path) -> None:
    """A model whose card is lost fails its batch with the reason, and is lost at once, without three failures."""
    async with bench_of(exported) as bench:
        bench.engine.script = [CardLostError("an illegal address")]
        (task,) = await bench.submit(3)
        await reached(task.done)
        with pytest.raises(EngineError, match="an illegal address"):
            task.result()
        assert bench.model.card_lost == "an illegal address"
        assert (bench.model.healthy, bench.model.lost) == (False, True)
        assert len(bench.health) == 1
