"""What an item costs in a long queue, counted in calls of functions: as much as in a short one."""

import asyncio
import sys
from types import FrameType

import pytest

from service.batching.batcher import Batcher
from service.batching.fair_scheduler import FairScheduler
from service.common.types import BatchLimits
from tests.fakes import ManualClock, ScriptedRun, Tally, settle

pytestmark = pytest.mark.anyio

ITEMS = 50


class Calls:
    """Counts calls, each step of a generator among them, between its beginning and its end."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Calls":
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        sys.setprofile(None)

    def _note(self, _frame: FrameType, event: str, _argument: object) -> None:
        self.count += event in ("call", "c_call")


async def calls_per_item(queued: int, limits: BatchLimits) -> float:
    """For items that are admitted and queued behind so many, and for as many that are run in batches of one."""
    clock, run = ManualClock(), ScriptedRun()
    slots = FairScheduler(1, clock, quantum_s=0.02)
    batcher: Batcher[int, str] = Batcher(run, limits, clock=clock, metrics=Tally(), scheduler=slots)

    async def call() -> None:
        with batcher.admit() as admission:
            await batcher.submit([1], deadline=clock.now() + 60, admission=admission)

    first = asyncio.create_task(call())  # measured: before, a bound admits nobody who would have to wait
    await settle()
    clock.jump(0.001)
    await run.finish()
    await first
    tasks = [asyncio.create_task(call()) for _ in range(queued)]
    await settle()
    with Calls() as calls:
        tasks += [asyncio.create_task(call()) for _ in range(ITEMS)]
        await settle()
        for _ in range(ITEMS):
            await run.finish()
    assert batcher.depth == queued - 1
    run.busy = False
    await run.finish()
    await asyncio.gather(*tasks)
    return calls.count / ITEMS


@pytest.mark.parametrize("slo_s", [0.0, 1e6])
async def test_an_item_costs_the_same_in_a_long_queue(slo_s: float) -> None:
    """Behind three thousand as behind a hundred, with and without a bound."""
    limits = BatchLimits(1, 1, 20_000, slo_s=slo_s)
    short, long = [await calls_per_item(queued, limits) for queued in (100, 3_000)]
    assert long <= 1.1 * short
