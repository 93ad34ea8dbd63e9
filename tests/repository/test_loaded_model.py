"""A loaded model on a fake engine in real threads: the rows that it gives, and when it is healthy, lost and closed."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from models.artifact.artifact import Artifact, load
from service.common.errors import EngineError, ShuttingDown
from service.common.types import BatchLimits, ItemOutcome, ItemResult, Probabilities, Rows
from service.engines.base import CardLostError
from service.engines.selection.opening import OpenedEngine
from service.repository.loaded_model import LoadedModel
from tests.fakes import FakeEngine, ManualClock, Tally, reached, settle
from tests.repository.host import sample

pytestmark = pytest.mark.anyio

Call = asyncio.Task[ItemResult[Probabilities]]


class ModelOnEngine:
    """A loaded `tiny` on a fake engine. `health` has what listeners were told."""

    def __init__(self, artifact: Artifact, engine: FakeEngine, capacity: int) -> None:
        self.engine = engine
        self.clock = ManualClock()
        self.tally = Tally()
        self.health: list[bool] = []
        self.model = LoadedModel(
            artifact,
            OpenedEngine(engine),
            limits=BatchLimits(engine.slots, engine.max_batch, capacity),
            clock=self.clock,
            metrics=self.tally,
            on_health=lambda: self.health.append(self.model.healthy),
        )

    async def call(self, shade: int) -> ItemResult[Probabilities]:
        """A request with an image of one shade of grey, whose class is the shade."""
        with self.model.batcher.admit():
            return (await self.model.batcher.submit([sample(shade)], deadline=self.clock.now() + 60))[0]

    async def submit(self, *shades: int) -> list[Call]:
        """Requests with such images, which have come as far as they can."""
        tasks = [asyncio.create_task(self.call(shade)) for shade in shades]
        await settle()
        return tasks

    async def together(self, *shades: int, step: Exception | Probabilities) -> list[Call]:
        """Requests that share one batch, which ends so."""
        self.engine.gate.clear()
        self.engine.script = [rows(1), step]
        tasks = await self.submit(0, *shades)
        self.engine.gate.set()
        await asyncio.wait(tasks)
        return tasks[1:]


@asynccontextmanager
async def model_on(root: Path, engine: FakeEngine | None = None, capacity: int = 64) -> AsyncIterator[ModelOnEngine]:
    """A model that is closed at the end."""
    one = ModelOnEngine(load(root, "tiny"), engine or FakeEngine(), capacity)
    try:
        yield one
    finally:
        one.engine.gate.set()
        await asyncio.wait_for(one.model.aclose(60), 30)


def rows(count: int, classes: int = 1000) -> Probabilities:
    """Equal probabilities."""
    return np.full((count, classes), 1 / classes, dtype=np.float32)


async def test_slots_run_at_the_same_time(exported: Path) -> None:
    """Two slots are two threads that are inside the engine at once."""
    both = threading.Barrier(2, timeout=30)

    class Meeting(FakeEngine):
        def run(self, rows: Rows) -> Probabilities:
            both.wait()
            return super().run(rows)

    async with model_on(exported, Meeting(slots=2)) as one:
        await asyncio.gather(*await one.submit(1, 2))
        assert one.engine.batches == [1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
async def test_a_row_that_is_not_finite_fails_alone(exported: Path, value: float) -> None:
    """A row with a number that is not finite is an error of its own request; the rest of the batch is answered."""
    async with model_on(exported) as one:
        step = rows(3)
        step[1, 7] = value
        good, bad, too = await one.together(1, 2, 3, step=step)
        assert isinstance(bad.exception(), EngineError)
        assert (good.result().batch_size, too.result().batch_size) == (3, 3)
        assert one.tally.outcomes == {ItemOutcome.OK: 3, ItemOutcome.FAILED: 1}
        assert one.model.healthy


@pytest.mark.parametrize("shape", [(3, 1000), (1, 1000), (2, 999), (2000, 1)])
async def test_an_output_of_the_wrong_shape_is_an_engine_error(exported: Path, shape: tuple[int, int]) -> None:
    """An output of another shape than the batch is given to no request, and the next batch is answered."""
    async with model_on(exported) as one:
        for task in await one.together(1, 2, step=rows(*shape)):
            error = task.exception()
            assert isinstance(error, EngineError)
            assert str(shape) in error.detail
            assert "(2, 1000)" in error.detail
        [after] = await asyncio.gather(*await one.submit(5))
        assert int(after.value.argmax()) == 5


async def test_a_probe_of_a_full_or_stuck_model_is_no_error(exported: Path) -> None:
    """A probe says no without a free place or without an answer in five seconds, and gives its place back."""
    async with model_on(exported, capacity=1) as one:
        one.engine.gate.clear()
        probe = asyncio.create_task(one.model.probe())
        await settle()
        assert not await one.model.probe()
        await one.clock.advance(5.0)
        assert not await probe
        assert one.model.batcher.admitted == 0


async def test_one_stuck_slot_of_two_is_not_lost(exported: Path) -> None:
    """A model with a stuck batch is unhealthy, and lost only where no slot is left; both end when the batch returns."""
    async with model_on(exported, FakeEngine(slots=2)) as one:
        one.engine.gate.clear()
        await one.submit(1)
        await one.clock.advance(60)
        first = (one.model.healthy, one.model.lost)
        await one.submit(2)
        await one.clock.advance(60)
        second = (one.model.healthy, one.model.lost)
        one.engine.gate.set()
        await reached(lambda: one.model.healthy)

        assert (first, second) == ((False, False), (False, True))
        assert not one.model.lost
        assert one.health == [False, False, False, True]


async def test_an_engine_closes_beside_the_event_loop(exported: Path) -> None:
    """Other work goes on while an engine closes; it is closed once, and every caller waits for that."""

    class Closing(FakeEngine):
        calls = 0
        end = threading.Event()

        def close(self) -> None:
            self.calls += 1
            assert self.end.wait(30), "a test left the end closed"
            super().close()

    engine = Closing()
    async with model_on(exported, engine) as one:
        closing = [asyncio.create_task(one.model.aclose(60)) for _ in range(2)]
        await reached(lambda: engine.calls == 1)
        assert not any(task.done() for task in closing)
        engine.end.set()
        await asyncio.gather(*closing)
        assert one.model.closed
        assert engine.calls == 1


async def test_an_engine_with_a_thread_inside_is_not_closed(exported: Path) -> None:
    """After the drain limit requests are refused, but an engine is not closed while a run is inside it."""
    async with model_on(exported) as one:
        one.engine.gate.clear()
        tasks = await one.submit(1)
        closing = asyncio.create_task(one.model.aclose(2))
        await settle()
        await one.clock.advance(2)
        await closing
        assert isinstance(tasks[0].exception(), ShuttingDown)
        assert not one.engine.closed


async def test_no_half_of_a_batch_is_run_after_the_end(exported: Path) -> None:
    """A batch that runs out of memory after the drain limit ends there and does not wait for threads that are gone."""
    async with model_on(exported) as one:
        one.engine.gate.clear()
        one.engine.script = [MemoryError("2 do not fit")]
        deadline = one.clock.now() + 60
        call = asyncio.create_task(one.model.batcher.submit([sample(1), sample(2)], deadline=deadline))
        await reached(lambda: one.engine.running == 1)
        closing = asyncio.create_task(one.model.aclose(2))
        await settle()
        await one.clock.advance(2)
        await closing
        assert one.model.batcher.in_flight == 2
        one.engine.gate.set()
        await reached(lambda: one.model.batcher.in_flight == 0)
        assert isinstance(call.exception(), ShuttingDown)
        assert one.engine.batches == [2]


async def test_lost_card(exported: Path) -> None:
    """A model whose card is lost fails its batch with the reason, and is lost at once, without three failures."""
    async with model_on(exported) as one:
        one.engine.script = [CardLostError("an illegal address")]
        (task,) = await one.submit(3)
        with pytest.raises(EngineError, match="an illegal address"):
            await task
        assert one.model.card_lost == "an illegal address"
        assert (one.model.healthy, one.model.lost) == (False, True)
        assert one.health == [False]
