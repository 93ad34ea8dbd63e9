"""The batcher with a scripted engine and a manual clock: what runs together, in what order, and how each item ends."""

import asyncio
import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.batcher import Batcher, BatcherState
from service.batching.fair_scheduler import FairScheduler
from service.common.clock import timeout_at
from service.common.errors import BadRequest, DeadlineExceeded, EngineError, NotReady, Overloaded, ShuttingDown
from service.common.types import BatchLimits, ItemOutcome, ItemResult
from tests.fakes import ManualClock, ScriptedRun, Tally, settle

pytestmark = pytest.mark.anyio


class FaultyTally(Tally):
    """Metrics with a bug that can be switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.bug_in: str | None = None

    def dispatched(self, size: int, queued_s: Sequence[float]) -> None:
        if self.bug_in == "dispatched":
            raise ZeroDivisionError("a bug")
        super().dispatched(size, queued_s)

    def ran(self, run_s: float) -> None:
        if self.bug_in == "ran":
            raise ZeroDivisionError("a bug")
        super().ran(run_s)


class Bench:
    """A batcher of whole numbers on a manual clock; its runs wait for `run.finish` unless `run.busy` is cleared."""

    def __init__(
        self, limits: BatchLimits, clock: ManualClock | None = None, slots: FairScheduler | None = None
    ) -> None:
        self.clock = clock or ManualClock()
        self.run = ScriptedRun()
        self.tally = FaultyTally()
        self.health: list[bool] = []
        self.admitted = 0
        self.batcher: Batcher[int, str] = Batcher(
            self.run,
            limits,
            clock=self.clock,
            metrics=self.tally,
            on_health=lambda: self.health.append(self.batcher.healthy),
            scheduler=slots,
        )

    async def call(self, item: int, within_s: float = 60.0) -> ItemResult[str]:
        """What a caller does."""
        deadline = self.clock.now() + within_s
        async with timeout_at(deadline, self.clock):
            with self.batcher.admit():
                self.admitted += 1
                return (await self.batcher.submit([item], deadline=deadline))[0]

    async def submit(self, *items: int, within_s: float = 60.0) -> list[asyncio.Task[ItemResult[str]]]:
        """Callers of these items, having come as far as they can."""
        tasks = [asyncio.create_task(self.call(item, within_s)) for item in items]
        await settle()
        return tasks

    async def close(self, drain_s: float = 5.0) -> asyncio.Task[None]:
        """A closing that has begun."""
        task = asyncio.create_task(self.batcher.aclose(drain_s))
        await settle()
        return task

    async def run_alone(self, item: int, step: BaseException | None = None, took_s: float = 0.0) -> str | BaseException:
        """How an item ends whose run takes so long and does so."""
        self.run.script.append(step)
        tasks = await self.submit(item)
        await self.clock.advance(took_s)
        await self.run.finish()
        [ending] = await endings(tasks)
        return ending.value if isinstance(ending, ItemResult) else ending


def bench_of(*, slots: int = 1, max_batch: int = 4, capacity: int = 64, max_failures: int = 3) -> Bench:
    """A bench with small limits."""
    return Bench(BatchLimits(slots, max_batch, capacity, max_failures))


async def endings(tasks: Sequence[asyncio.Task[ItemResult[str]]]) -> list[ItemResult[str] | BaseException]:
    """The result or the error of each, which must be there by now."""
    await settle()
    assert all(task.done() for task in tasks), "a caller that still waits"
    return await asyncio.gather(*tasks, return_exceptions=True)


async def values(tasks: Sequence[asyncio.Task[ItemResult[str]]]) -> list[str]:
    """The answers, which must be there by now; raises where one failed."""
    await settle()
    assert all(task.done() for task in tasks), "a caller that still waits"
    return [task.result().value for task in tasks]


def state_of(bench: Bench) -> BatcherState:
    """Its state now; read through a function, because a type checker takes an attribute for unchanged."""
    return bench.batcher.state


def answers(*items: int) -> list[str]:
    """What a working engine gives for these."""
    return [ScriptedRun.answer(item) for item in items]


# --- what runs together ---


async def test_idle_engine_starts_at_once() -> None:
    """A first arrival is dispatched in the turn in which it arrives, with no time passing."""
    bench = bench_of()
    caller = asyncio.create_task(bench.call(1))
    await asyncio.sleep(0)
    assert bench.tally.sizes == [1]
    await settle()
    await bench.run.finish()
    assert await caller == ItemResult(ScriptedRun.answer(1), queue_s=0.0, run_s=0.0, batch_size=1)


async def test_items_of_one_caller_fill_batches() -> None:
    """Ten items at once go to an idle engine as 8 and 2, not as 1 and 9; their answers come in order."""
    bench = bench_of(max_batch=8)
    bench.run.busy = False
    with bench.batcher.admit(10):
        ran = await bench.batcher.submit(range(10), deadline=bench.clock.now() + 60)
    assert bench.run.calls == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]
    assert [one.value for one in ran] == answers(*range(10))
    assert bench.tally.outcomes == {ItemOutcome.OK: 10}
    assert bench.clock.pending == 0


async def test_items_of_one_caller_end_each_once() -> None:
    """One bad row: the caller has its error, what waits leaves the queue, and each item is counted as it ended."""
    bench = bench_of(max_batch=2)
    bench.run.bad = {1}
    with bench.batcher.admit(6):
        caller = asyncio.create_task(bench.batcher.submit(range(6), deadline=bench.clock.now() + 60))
        await settle()
        await bench.run.finish()
        with pytest.raises(EngineError):
            await caller
        assert bench.batcher.depth == 0
    assert bench.tally.outcomes == {ItemOutcome.OK: 1, ItemOutcome.FAILED: 1, ItemOutcome.CANCELLED: 4}
    assert (bench.run.calls, bench.clock.pending) == ([[0, 1]], 0)


async def test_items_past_their_deadline_are_never_queued() -> None:
    """The caller is told at once, no run begins, and each of its items is counted."""
    bench = bench_of()
    with bench.batcher.admit(3), pytest.raises(DeadlineExceeded):
        await bench.batcher.submit(range(3), deadline=bench.clock.now())
    assert bench.run.calls == []
    assert bench.tally.outcomes == {ItemOutcome.EXPIRED: 3}


async def test_a_batch_grows_only_while_every_slot_is_busy() -> None:
    """What arrives during a run forms the next batches, up to the maximum, in order of arrival."""
    bench = bench_of(max_batch=4)
    tasks = await bench.submit(*range(10))
    assert bench.run.calls == [[0]]
    assert (bench.batcher.depth, bench.batcher.in_flight, bench.batcher.admitted) == (9, 1, 10)
    await bench.run.finish()
    assert bench.run.calls == [[0], [1, 2, 3, 4]]
    await bench.run.finish(3)
    assert bench.run.calls == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert bench.tally.sizes == [1, 4, 4, 1]
    assert await values(tasks) == answers(*range(10))
    assert bench.tally.outcomes == {ItemOutcome.OK: 10}


async def test_arrivals_spread_over_a_run_share_the_next_batch() -> None:
    """Eight arrivals at different moments of one run make one batch, and each is told how long it waited and ran."""
    bench = bench_of(max_batch=8)
    first = await bench.submit(0)
    tasks = []
    for item in range(1, 9):
        tasks += await bench.submit(item)
        await bench.clock.advance(0.004)
    await bench.run.finish()
    await bench.clock.advance(0.010)
    await bench.run.finish()
    assert bench.tally.sizes == [1, 8]
    rans = await asyncio.gather(*tasks)
    assert [ran.queue_s for ran in rans] == pytest.approx([0.004 * left for left in range(8, 0, -1)])
    assert {round(ran.run_s, 6) for ran in rans} == {0.010}
    assert {ran.batch_size for ran in rans} == {8}
    assert await values(first) == answers(0)


async def test_each_slot_runs_a_batch_of_its_own() -> None:
    """With three slots three batches run at once, and the first that ends takes what waits."""
    bench = bench_of(slots=3)
    tasks = await bench.submit(*range(6))
    assert bench.run.calls == [[0], [1], [2]]
    await bench.run.finish()
    assert bench.run.calls == [[0], [1], [2], [3, 4, 5]]
    assert bench.run.running == 3
    await bench.run.finish(3)
    assert await values(tasks) == answers(*range(6))


async def test_slots_that_compute_apart_divide_what_waits() -> None:
    """The first that ends leaves the others their parts, with what runs taken for half done; none takes too much."""
    bench = Bench(BatchLimits(slots=3, max_batch=4, apart=True))
    tasks = await bench.submit(*range(11))
    await bench.run.finish()
    assert bench.run.calls == [[0], [1], [2], [3, 4, 5]]
    await bench.run.finish(2)
    assert bench.run.calls[4:] == [[6, 7, 8], [9, 10]]
    await bench.submit(*range(11, 31))
    await bench.run.finish()
    assert bench.run.calls[6:] == [[11, 12, 13, 14]]
    assert await values(tasks[:6]) == answers(*range(6))


async def test_idle_slots_divide_what_comes_at_once() -> None:
    """Eight at once go to two idle slots as four and most of the others where these compute apart."""
    bench = Bench(BatchLimits(slots=2, max_batch=8, apart=True))
    with bench.batcher.admit(8):
        caller = asyncio.create_task(bench.batcher.submit(range(8), deadline=bench.clock.now() + 60))
        await settle()
        assert bench.run.calls == [[0, 1, 2, 3], [4, 5, 6]]
        await bench.run.finish(3)
        assert [one.value for one in await caller] == answers(*range(8))


async def test_nothing_is_kept_for_a_slot_of_others() -> None:
    """Where another queue holds the second slot of the device, the first takes all that waits."""
    clock = ManualClock()
    device = FairScheduler(2, clock)
    limits = BatchLimits(slots=2, max_batch=8, apart=True)
    one, other = Bench(limits, clock, device), Bench(limits, clock, device)
    await other.submit(0)
    await one.submit(0)
    await one.submit(*range(1, 7))
    await one.run.finish()
    assert one.run.calls == [[0], [1, 2, 3, 4, 5, 6]]


async def test_a_queue_drains_without_further_arrivals() -> None:
    """Three full batches that wait are all run although nobody comes any more."""
    bench = bench_of(max_batch=4)
    tasks = await bench.submit(*range(13))
    bench.run.busy = False
    await bench.run.finish()
    assert bench.tally.sizes == [1, 4, 4, 4]
    assert await values(tasks) == answers(*range(13))


async def test_an_idle_batcher_has_no_timer_and_no_task() -> None:
    """Before and after work nothing is left on the clock or on the loop."""
    before = asyncio.all_tasks()
    bench = bench_of()
    assert bench.clock.pending == 0
    tasks = await bench.submit(*range(6))
    bench.run.busy = False
    await bench.run.finish()
    await values(tasks)
    assert bench.clock.pending == 0
    assert asyncio.all_tasks() == before
    assert (bench.batcher.depth, bench.batcher.in_flight, bench.batcher.admitted) == (0, 0, 0)


# --- callers that leave ---


async def test_cancelling_a_queued_item_frees_its_place_in_the_same_turn() -> None:
    """The item is never run, its place is free one turn later, and its siblings are answered."""
    bench = bench_of(capacity=4)
    tasks = await bench.submit(0, 1, 2, 3)
    tasks[2].cancel()
    await asyncio.sleep(0)
    assert (bench.batcher.depth, bench.batcher.admitted) == (2, 3)
    tasks += await bench.submit(4)
    bench.run.busy = False
    await bench.run.finish()
    assert bench.run.calls == [[0], [1, 3, 4]]
    assert await values([*tasks[:2], *tasks[3:]]) == answers(0, 1, 3, 4)
    assert bench.tally.outcomes == {ItemOutcome.OK: 4, ItemOutcome.CANCELLED: 1}


async def test_cancelling_an_item_in_flight_drops_its_row() -> None:
    """The others of the batch get their own rows, not their neighbour's, and the place is free at once."""
    bench = bench_of()
    tasks = await bench.submit(0, 1, 2, 3)
    await bench.run.finish()
    tasks[2].cancel()
    await asyncio.sleep(0)
    assert (bench.batcher.in_flight, bench.batcher.admitted) == (3, 2)
    await bench.run.finish()
    assert await values([tasks[0], tasks[1], tasks[3]]) == answers(0, 1, 3)
    assert bench.tally.outcomes == {ItemOutcome.OK: 3, ItemOutcome.CANCELLED: 1}
    assert bench.batcher.in_flight == 0


async def test_cancelling_a_whole_batch_in_flight_does_not_stop_the_next() -> None:
    """A batch that nobody waits for any more ends quietly and the queue goes on."""
    bench = bench_of()
    gone = await bench.submit(0)
    tasks = await bench.submit(1, 2)
    gone[0].cancel()
    await bench.run.finish(2)
    assert await values(tasks) == answers(1, 2)


# --- failures ---


async def test_a_run_that_raises_fails_its_batch_alone() -> None:
    """Its callers get EngineError with the cause; the batch behind it is answered."""
    bench = bench_of()
    cause = RuntimeError("the device is gone")
    bench.run.script = [cause]
    tasks = await bench.submit(0, 1, 2)
    bench.run.busy = False
    await bench.run.finish()
    [failed] = await endings(tasks[:1])
    assert isinstance(failed, EngineError)
    assert failed.__cause__ is cause
    assert await values(tasks[1:]) == answers(1, 2)
    assert bench.tally.outcomes == {ItemOutcome.OK: 2, ItemOutcome.FAILED: 1}


@pytest.mark.parametrize("rows", [[], ["one"], ["one", "two", "three"]])
async def test_a_wrong_number_of_rows_is_an_engine_error(rows: list[str | Exception]) -> None:
    """Too few or too many rows are given to nobody, since nobody can tell whose they are."""
    bench = bench_of()
    first = await bench.submit(0)
    bench.run.script = [rows]
    tasks = await bench.submit(1, 2)
    await bench.run.finish(2)
    assert await values(first) == answers(0)
    for failed in await endings(tasks):
        assert isinstance(failed, EngineError)
        assert f"{len(rows)} rows for 2 items" in failed.detail


async def test_a_bad_row_fails_its_own_caller_only() -> None:
    """An exception in place of one row reaches that caller as EngineError; its siblings are answered."""
    bench = bench_of()
    bench.run.bad = {2}
    tasks = await bench.submit(0, 1, 2, 3)
    await bench.run.finish(2)
    failed = (await endings(tasks))[2]
    assert isinstance(failed, EngineError)
    assert isinstance(failed.__cause__, ValueError)
    assert await values([tasks[0], tasks[1], tasks[3]]) == answers(0, 1, 3)
    assert bench.tally.outcomes == {ItemOutcome.OK: 3, ItemOutcome.FAILED: 1}
    assert bench.batcher.healthy


async def test_failures_in_a_row_turn_health_off_and_a_success_turns_it_on() -> None:
    """The third failed batch in a row makes it unhealthy, the next good one healthy, and each change is told once."""
    bench = bench_of()
    for item in (1, 2):
        await bench.run_alone(item, RuntimeError("broken"))
    assert await bench.run_alone(3) == ScriptedRun.answer(3)
    assert bench.health == []
    for item in (4, 5, 6, 7):
        await bench.run_alone(item, RuntimeError("broken"))
    assert bench.health == [False]
    assert await bench.run_alone(8) == ScriptedRun.answer(8)
    assert bench.health == [False, True]
    assert bench.batcher.state is BatcherState.OPEN


async def test_a_run_that_is_cancelled_fails_its_batch_alone() -> None:
    """An engine's thread pool that cancels a run leaves neither its callers nor the queue hanging."""
    bench = bench_of()
    bench.run.script = [asyncio.CancelledError()]
    tasks = await bench.submit(0, 1, 2)
    await bench.run.finish(2)
    [failed] = await endings(tasks[:1])
    assert isinstance(failed, EngineError)
    assert await values(tasks[1:]) == answers(1, 2)
    assert bench.tally.outcomes == {ItemOutcome.OK: 2, ItemOutcome.FAILED: 1}


# --- out of memory ---


async def test_out_of_memory_halves_the_batch_and_lowers_the_maximum() -> None:
    """Both halves are run once and all are answered; no later batch is larger than a half."""
    bench = bench_of(max_batch=5)
    bench.run.script = [None, MemoryError("5 do not fit")]
    tasks = await bench.submit(*range(10))
    bench.run.busy = False
    await bench.run.finish()
    assert bench.run.calls == [[0], [1, 2, 3, 4, 5], [1, 2, 3], [4, 5], [6, 7, 8], [9]]
    assert bench.batcher.max_batch == 3
    assert await values(tasks) == answers(*range(10))
    assert bench.batcher.healthy


async def test_out_of_memory_in_one_half_does_not_fail_the_other() -> None:
    """Each half is tried once; the one that fails again fails its own callers only."""
    for script, good in (([MemoryError(), None], (3, 4)), ([None, MemoryError()], (1, 2))):
        bench = bench_of()
        bench.run.script = [None, MemoryError(), *script]
        tasks = await bench.submit(0, 1, 2, 3, 4)
        bench.run.busy = False
        await bench.run.finish()
        assert bench.run.calls == [[0], [1, 2, 3, 4], [1, 2], [3, 4]]
        ends = await endings(tasks)
        assert [item for item, end in enumerate(ends) if isinstance(end, ItemResult)] == [0, *good]
        assert bench.tally.outcomes == {ItemOutcome.OK: 3, ItemOutcome.FAILED: 2}
        assert bench.batcher.healthy


async def test_out_of_memory_in_both_halves_is_a_failed_batch() -> None:
    """Halving happens once; then the callers are told, and it counts as a failure."""
    bench = bench_of(max_failures=1)
    bench.run.script = [None, MemoryError(), MemoryError(), MemoryError()]
    tasks = await bench.submit(0, 1, 2, 3)
    bench.run.busy = False
    await bench.run.finish()
    assert bench.run.calls == [[0], [1, 2, 3], [1, 2], [3]]
    for failed in (await endings(tasks))[1:]:
        assert isinstance(failed, EngineError)
        assert isinstance(failed.__cause__, MemoryError)
    assert bench.batcher.max_batch == 2
    assert bench.health == [False]


async def test_out_of_memory_with_one_item_is_a_failed_batch() -> None:
    """One item cannot be halved: it is tried once, and the maximum stays."""
    bench = bench_of()
    failed = await bench.run_alone(0, MemoryError("not even one"))
    assert isinstance(failed, EngineError)
    assert bench.run.calls == [[0]]
    assert bench.batcher.max_batch == 4
    assert await bench.run_alone(1) == ScriptedRun.answer(1)


# --- a bug in the batcher itself ---


async def test_a_bug_in_the_pump_fails_everything_pending_openly() -> None:
    """Every caller, waiting or in flight, gets the cause at once; new ones are refused and readiness hears of it."""
    bench = bench_of(slots=2, max_batch=2)
    tasks = await bench.submit(*range(6))
    bench.tally.bug_in = "dispatched"
    await bench.run.finish()
    [answered, *failed] = await endings(tasks)
    assert isinstance(answered, ItemResult)
    for error in failed:
        assert isinstance(error, EngineError)
        assert isinstance(error.__cause__, ZeroDivisionError)
    assert bench.batcher.state is BatcherState.BROKEN
    assert bench.health == [False]
    with pytest.raises(NotReady) as refused, bench.batcher.admit():
        pass
    assert isinstance(refused.value.__cause__, ZeroDivisionError)
    assert bench.tally.outcomes == {ItemOutcome.OK: 1, ItemOutcome.FAILED: 5}
    assert bench.clock.pending == 0


async def test_a_bug_on_a_first_arrival_reaches_its_caller() -> None:
    """The pump that breaks inside `submit` fails that very item."""
    bench = bench_of()
    bench.tally.bug_in = "dispatched"
    [failed] = await endings(await bench.submit(0))
    assert isinstance(failed, EngineError)
    assert bench.batcher.state is BatcherState.BROKEN
    assert bench.batcher.admitted == 0


async def test_a_bug_after_a_run_fails_everything_pending_openly() -> None:
    """The batch that has just run is told too, not left to its deadline."""
    bench = bench_of()
    tasks = await bench.submit(0, 1, 2)
    bench.tally.bug_in = "ran"
    await bench.run.finish()
    for error in await endings(tasks):
        assert isinstance(error, EngineError)
        assert isinstance(error.__cause__, ZeroDivisionError)
    assert bench.batcher.state is BatcherState.BROKEN
    assert bench.batcher.in_flight == 0


# --- deadlines ---


async def test_an_item_that_expires_in_the_queue_is_never_run() -> None:
    """It ends at its deadline, not later, and frees its place; the others are answered."""
    bench = bench_of()
    tasks = await bench.submit(0)
    tasks += await bench.submit(1, within_s=2.0)
    tasks += await bench.submit(2)
    await bench.clock.advance(1.999)
    assert not tasks[1].done()
    await bench.clock.advance(0.001)
    assert isinstance((await endings(tasks[1:2]))[0], DeadlineExceeded)
    assert (bench.batcher.depth, bench.batcher.admitted) == (1, 2)
    await bench.run.finish(2)
    assert bench.run.calls == [[0], [2]]
    assert await values([tasks[0], tasks[2]]) == answers(0, 2)
    assert bench.tally.outcomes == {ItemOutcome.OK: 2, ItemOutcome.EXPIRED: 1}


async def test_an_item_whose_timer_is_late_is_still_never_run() -> None:
    """The cut looks at the clock itself: an expired item is failed there, and leaves no hole in the batch."""
    bench = bench_of()
    tasks = await bench.submit(0)
    tasks += await bench.submit(1, within_s=2.0)
    tasks += await bench.submit(2)
    bench.clock.jump(2.0)
    await bench.run.finish(2)
    assert bench.run.calls == [[0], [2]]
    assert isinstance((await endings(tasks))[1], DeadlineExceeded)
    assert bench.tally.outcomes == {ItemOutcome.OK: 2, ItemOutcome.EXPIRED: 1}


async def test_a_queue_that_has_expired_whole_starts_nothing() -> None:
    """With every waiting item expired there is no empty batch, and the next arrival is served."""
    bench = bench_of()
    await bench.submit(0)
    expired = await bench.submit(1, 2, within_s=2.0)
    bench.clock.jump(2.0)
    await bench.run.finish()
    assert bench.tally.sizes == [1]
    assert all(isinstance(error, DeadlineExceeded) for error in await endings(expired))
    assert await bench.run_alone(3) == ScriptedRun.answer(3)


async def test_a_deadline_in_flight_ends_the_caller_at_that_moment() -> None:
    """The caller does not wait for the run; its row is dropped and its sibling is answered."""
    bench = bench_of()
    first = await bench.submit(0)
    hurried = await bench.submit(1, within_s=2.0)
    patient = await bench.submit(2)
    await bench.run.finish()
    await bench.clock.advance(2.0)
    assert isinstance((await endings(hurried))[0], DeadlineExceeded)
    assert (bench.batcher.in_flight, bench.batcher.admitted) == (2, 1)
    await bench.run.finish()
    assert await values(first + patient) == answers(0, 2)
    assert bench.tally.outcomes == {ItemOutcome.OK: 2, ItemOutcome.EXPIRED: 1}


async def test_a_deadline_already_past_is_refused_without_queueing() -> None:
    """An image that took too long to decode is neither queued nor run."""
    bench = bench_of()
    await bench.submit(0)
    with bench.batcher.admit():
        deadline = bench.clock.now() + 1.0
        bench.clock.jump(1.0)
        with pytest.raises(DeadlineExceeded):
            await bench.batcher.submit([1], deadline=deadline)
    assert bench.tally.outcomes == {ItemOutcome.EXPIRED: 1}
    await bench.run.finish()
    assert bench.run.calls == [[0]]


# --- capacity ---


async def test_rejection_at_capacity_comes_in_the_same_turn() -> None:
    """Without a free place `admit` raises at once; a place is free again as soon as one item ends."""
    bench = bench_of(capacity=2)
    tasks = await bench.submit(0, 1)
    with pytest.raises(Overloaded) as refused, bench.batcher.admit():
        pass
    assert refused.value.retry_after_s == 1.0
    assert bench.tally.outcomes == {ItemOutcome.OVERLOADED: 1}
    await bench.run.finish()
    with bench.batcher.admit():
        assert bench.batcher.admitted == 2
    await bench.run.finish()
    assert await values(tasks) == answers(0, 1)


async def test_several_places_at_once_or_none() -> None:
    """Three of four are taken and given back together; two more do not fit and take none; five never can."""
    bench = bench_of(capacity=4)
    with bench.batcher.admit(3):
        assert bench.batcher.admitted == 3
        with pytest.raises(Overloaded), bench.batcher.admit(2):
            pass
        assert bench.batcher.admitted == 3
        assert bench.tally.outcomes == {ItemOutcome.OVERLOADED: 2}
        with pytest.raises(BadRequest, match="--capacity of 4"), bench.batcher.admit(5):
            pass
    assert bench.batcher.admitted == 0


async def test_a_place_is_taken_before_decoding() -> None:
    """Capacity counts images that are not queued yet, and gives the place back when decoding fails."""
    bench = bench_of(capacity=1)

    def decode_badly() -> None:
        with bench.batcher.admit():
            assert (bench.batcher.admitted, bench.batcher.depth) == (1, 0)
            with pytest.raises(Overloaded), bench.batcher.admit():
                pass
            raise ValueError("not an image")

    with pytest.raises(ValueError, match="not an image"):
        decode_badly()
    assert bench.batcher.admitted == 0


@pytest.mark.parametrize(("slots", "expected_s"), [(1, 16.0), (2, 8.0)])
async def test_retry_after_follows_the_measured_drain_rate(slots: int, expected_s: float) -> None:
    """Batches of 4 that take 2 s drain 32 places in 16 s through one slot, in 8 s through two."""
    bench = bench_of(slots=slots, max_batch=4, capacity=32)
    tasks = await bench.submit(*range(9 * slots))
    for _ in range(3):  # batches of one, of four and of four
        await bench.clock.advance(2.0)
        await bench.run.finish(slots)
    await values(tasks)
    await bench.submit(*range(32))
    with pytest.raises(Overloaded) as refused, bench.batcher.admit():
        pass
    assert refused.value.retry_after_s == pytest.approx(expected_s)


async def test_retry_after_knows_a_lowered_maximum() -> None:
    """After running out of memory the queue drains in smaller batches, and callers are told to wait longer."""
    bench = bench_of(max_batch=4, capacity=8)
    bench.run.script = [None, MemoryError()]
    tasks = await bench.submit(*range(5))
    await bench.run.finish(4)
    await values(tasks)
    for _ in range(60):  # until what the large batch took has faded: one and two items take 1 s
        tasks = await bench.submit(0, 1, 2)
        for _ in range(2):
            await bench.clock.advance(1.0)
            await bench.run.finish()
        await values(tasks)
    await bench.submit(*range(8))
    with pytest.raises(Overloaded) as refused, bench.batcher.admit():
        pass
    assert refused.value.retry_after_s == pytest.approx(8 / 1.5, rel=0.1)  # three images in two seconds of late


async def test_retry_after_knows_what_is_not_the_engine() -> None:
    """Where decoding is the slow step, the wait told follows the rate at which places come free, not the engine's."""
    bench = bench_of(max_batch=4, capacity=8)
    for _ in range(10):  # one image in half a second, which the engine answers at once
        await bench.clock.advance(0.5)
        tasks = await bench.submit(0)
        await bench.run.finish()
        await values(tasks)
    with contextlib.ExitStack() as places:
        for _ in range(8):
            places.enter_context(bench.batcher.admit())
        with pytest.raises(Overloaded) as refused, bench.batcher.admit():
            pass
    assert refused.value.retry_after_s == pytest.approx(4.0)


# --- closing ---


async def test_closing_answers_what_was_accepted_and_refuses_the_rest() -> None:
    """Waiting items are still run; whoever comes later gets ShuttingDown; then it is closed."""
    bench = bench_of()
    tasks = await bench.submit(0, 1, 2)
    closing = await bench.close()
    assert state_of(bench) is BatcherState.DRAINING
    assert not bench.batcher.healthy
    [refused] = await endings(await bench.submit(3))
    assert isinstance(refused, ShuttingDown)
    await bench.run.finish(2)
    assert await values(tasks) == answers(0, 1, 2)
    assert closing.done()
    assert state_of(bench) is BatcherState.CLOSED
    assert bench.clock.pending == 0
    with pytest.raises(ShuttingDown), bench.batcher.admit():
        pass


async def test_closing_answers_an_image_that_is_still_being_decoded() -> None:
    """A place taken before the closing is good until its answer; the closing waits for it."""
    bench = bench_of()
    decoded = asyncio.Event()

    async def decode_then_submit() -> ItemResult[str]:
        with bench.batcher.admit():
            await decoded.wait()
            return (await bench.batcher.submit([7], deadline=bench.clock.now() + 60))[0]

    caller = asyncio.create_task(decode_then_submit())
    await settle()
    closing = await bench.close()
    assert not closing.done()
    decoded.set()
    await settle()
    await bench.run.finish()
    assert (await caller).value == ScriptedRun.answer(7)
    assert closing.done()


async def test_closing_ends_when_the_last_image_turns_out_bad() -> None:
    """A place that is given back without a batch lets a waiting closing go."""
    bench = bench_of()
    with bench.batcher.admit():  # decoding, which fails
        closing = await bench.close()
        assert not closing.done()
    await settle()
    assert closing.done()


async def test_closing_waits_for_a_run_that_nobody_waits_for() -> None:
    """Its callers have left, but the engine is still inside and must not be taken away."""
    bench = bench_of()
    [gone] = await bench.submit(0)
    gone.cancel()
    closing = await bench.close()
    assert bench.batcher.admitted == 0
    assert not closing.done()
    await bench.run.finish()
    assert closing.done()


async def test_closing_an_idle_batcher_takes_no_time() -> None:
    """Nothing accepted, nothing to wait for."""
    bench = bench_of()
    assert (await bench.close()).done()
    assert bench.batcher.state is BatcherState.CLOSED


async def test_after_the_drain_limit_the_rest_is_failed() -> None:
    """Queued, in flight or being decoded: at the limit each gets ShuttingDown, and late rows are dropped."""
    bench = bench_of()
    tasks = await bench.submit(0, 1)
    with bench.batcher.admit():  # decoding
        closing = await bench.close(drain_s=5.0)
        await bench.clock.advance(4.999)
        assert not closing.done()
        await bench.clock.advance(0.001)
        assert closing.done()
        with pytest.raises(ShuttingDown):
            await bench.batcher.submit([2], deadline=bench.clock.now() + 60)
    assert all(isinstance(error, ShuttingDown) for error in await endings(tasks))
    assert bench.tally.outcomes == {ItemOutcome.FAILED: 3}
    assert bench.batcher.in_flight == 1
    await bench.run.finish()
    assert bench.run.calls == [[0]]
    assert (bench.batcher.in_flight, bench.clock.pending) == (0, 0)


async def test_closing_twice_is_closing_once() -> None:
    """A second call while the first drains ends with it, and one after it returns at once."""
    bench = bench_of()
    tasks = await bench.submit(0)
    first, second = await bench.close(), await bench.close(drain_s=50.0)
    await bench.run.finish()
    await values(tasks)
    assert first.done()
    assert second.done()
    assert (await bench.close()).done()
    assert bench.batcher.state is BatcherState.CLOSED
    assert bench.clock.pending == 0


async def test_a_second_closing_can_shorten_the_first() -> None:
    """Asked to hurry, the drain ends at the earlier limit for both."""
    bench = bench_of()
    tasks = await bench.submit(0)
    first, second = await bench.close(drain_s=50.0), await bench.close(drain_s=1.0)
    await bench.clock.advance(1.0)
    assert first.done()
    assert second.done()
    assert isinstance((await endings(tasks))[0], ShuttingDown)
    await bench.run.finish()
    assert bench.clock.pending == 0


async def test_a_broken_batcher_closes() -> None:
    """Closing what is broken waits only for the engine to come to rest, and leaves it broken."""
    bench = bench_of()
    bench.tally.bug_in = "dispatched"
    await endings(await bench.submit(0))
    closing = await bench.close()
    await bench.run.finish()
    assert closing.done()
    assert bench.batcher.state is BatcherState.BROKEN


@pytest.mark.parametrize("step", [None, RuntimeError("scripted")], ids=["answered", "failed"])
@pytest.mark.parametrize("turns", range(8))
async def test_leaving_while_the_result_arrives(turns: int, step: Exception | None) -> None:
    """However close to its result a caller leaves, the counter says what the caller saw."""
    bench = bench_of()
    bench.run.script.append(step)
    (task,) = await bench.submit(0)
    bench.run.release()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await settle()

    seen = (
        ItemOutcome.CANCELLED
        if task.cancelled()
        else ItemOutcome.OK
        if task.exception() is None
        else ItemOutcome.FAILED
    )
    assert bench.tally.outcomes == {seen: 1}
    assert bench.clock.pending == 0


# --- everything at once ---

Step = tuple[str, float]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.just(60.0)),
        st.tuples(st.just("submit"), st.sampled_from([0.0005, 0.003, 0.01])),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("release"), st.integers(0, 4)),
        st.tuples(st.just("advance"), st.sampled_from([0.0, 0.0003, 0.001, 0.005])),
        st.tuples(st.just("jump"), st.sampled_from([0.0005, 0.005])),
        st.tuples(st.sampled_from(["raise", "memory", "cancelled", "short", "bad"]), st.just(0)),
    ),
    max_size=25,
)
BREAKS = st.sampled_from(["nothing", "close", "force", "dispatched", "ran"])


FAULTS: dict[str, BaseException | list[str | Exception]] = {
    "raise": RuntimeError("scripted"),
    "memory": MemoryError("scripted"),
    "cancelled": asyncio.CancelledError(),
    "short": [],
}


class Story:
    """A random life of a batcher, checked at every step."""

    def __init__(self, bench: Bench, limits: BatchLimits) -> None:
        self.bench = bench
        self.limits = limits
        self.tasks: list[asyncio.Task[ItemResult[str]]] = []
        self.deadlines: list[float] = []
        self.late: set[int] = set()
        """Callers that left after their deadline: their items count as expired."""
        self.closing: asyncio.Task[None] | None = None

    async def play(self, steps: Sequence[Step]) -> None:
        """Do these."""
        for name, number in steps:
            await self.step(name, number)
            batcher, run = self.bench.batcher, self.bench.run
            assert run.running <= self.limits.slots
            assert batcher.admitted <= self.limits.capacity
            if name == "advance":
                assert run.running == self.limits.slots or batcher.depth == 0, "an idle slot while items wait"

    async def step(self, name: str, number: float) -> None:
        run, clock = self.bench.run, self.bench.clock
        match name:
            case "submit":
                self.deadlines.append(clock.now() + number)
                self.tasks.append(asyncio.create_task(self.bench.call(len(self.tasks), number)))
                await asyncio.sleep(0)
            case "cancel" if self.tasks:
                caller = int(number) % len(self.tasks)
                if self.tasks[caller].cancel() and clock.now() >= self.deadlines[caller]:
                    self.late.add(caller)
                await asyncio.sleep(0)  # it has left before its deadline can pass
            case "release" if run.running:
                run.release()
                for _ in range(int(number)):
                    await asyncio.sleep(0)
            case "advance":
                await clock.advance(number)
            case "jump":
                clock.jump(number)
            case "bad":
                run.bad.add(len(self.tasks))
            case "raise" | "memory" | "cancelled" | "short":
                run.script.append(FAULTS[name])

    async def break_off(self, how: str) -> None:
        """What happens in the middle."""
        if how in ("close", "force"):
            self.closing = await self.bench.close(3600.0 if how == "close" else 0.002)
        elif how != "nothing":
            self.bench.tally.bug_in = how

    async def wind_down(self) -> None:
        """Let every run end and every drain limit pass, but no long deadline."""
        for _ in range(3):
            await self.bench.clock.advance(0.010)
            while self.bench.run.running:
                await self.bench.run.finish()

    def check(self) -> None:
        """Every caller has had one end, the counters say so, and nothing is left behind."""
        bench = self.bench
        assert all(task.done() for task in self.tasks), "a submit that never ended"
        assert self.closing is None or self.closing.done()
        ends: dict[ItemOutcome, int] = dict.fromkeys(ItemOutcome, 0)
        refused = 0
        for item, task in enumerate(self.tasks):
            if task.cancelled():
                ends[ItemOutcome.EXPIRED if item in self.late else ItemOutcome.CANCELLED] += 1
            elif (error := task.exception()) is None:
                assert task.result().value == ScriptedRun.answer(item)
                assert item not in bench.run.bad
                ends[ItemOutcome.OK] += 1
            elif isinstance(error, DeadlineExceeded):
                ends[ItemOutcome.EXPIRED] += 1
            elif isinstance(error, Overloaded):
                ends[ItemOutcome.OVERLOADED] += 1
            else:
                assert isinstance(error, EngineError | ShuttingDown | NotReady)
                ends[ItemOutcome.FAILED] += 1
        refused = (
            ends[ItemOutcome.FAILED] - bench.tally.outcomes[ItemOutcome.FAILED]
        )  # by `admit`: no item of the batcher
        assert refused >= 0
        assert refused == len(self.tasks) - bench.admitted - ends[ItemOutcome.OVERLOADED]
        ends[ItemOutcome.FAILED] -= refused
        assert ends == {outcome: bench.tally.outcomes[outcome] for outcome in ItemOutcome}
        ran = [item for call in bench.run.calls for item in call]
        assert max(map(len, bench.run.calls), default=0) <= self.limits.max_batch
        assert len(bench.tally.queued_s) == sum(bench.tally.sizes) <= len(ran)
        assert (bench.batcher.admitted, bench.batcher.depth, bench.batcher.in_flight) == (0, 0, 0)
        assert bench.clock.pending == 0, "a timer left"


@given(
    limits=st.builds(
        BatchLimits,
        slots=st.integers(1, 3),
        max_batch=st.integers(1, 5),
        capacity=st.integers(1, 12),
        apart=st.booleans(),
    ),
    before=STEPS,
    how=BREAKS,
    after=STEPS,
)
@settings(max_examples=300, deadline=None)
def test_every_submit_ends_exactly_once(limits: BatchLimits, before: list[Step], how: str, after: list[Step]) -> None:
    """Whatever arrives, leaves, fails, expires, breaks or closes: one end each, true counters, nothing left over."""

    async def live() -> None:
        problems: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
        own = asyncio.all_tasks()
        story = Story(Bench(limits), limits)
        await story.play(before)
        await story.break_off(how)
        await story.play(after)
        await story.wind_down()
        story.check()
        assert asyncio.all_tasks() == own
        assert problems == []

    asyncio.run(live())
