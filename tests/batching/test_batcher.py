"""The batcher with a scripted engine and a manual clock: what runs together, in what order, and how each item ends."""

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from service.batching.batcher import Batcher, BatcherState
from service.batching.fair_scheduler import FairScheduler
from service.batching.slo import SloUnattainable
from service.common.clock import timeout_at
from service.common.errors import BadRequest, DeadlineExceeded, EngineError, NotReady, Overloaded, ShuttingDown
from service.common.types import BatchLimits, ItemOutcome, ItemResult, SloOutcome
from tests.fakes import ManualClock, ScriptedRun, Tally, settle

pytestmark = pytest.mark.anyio

OK, OVERLOADED, EXPIRED, CANCELLED, FAILED = ItemOutcome
ONE_SLOT = BatchLimits(slots=1, max_batch=4, capacity=64)

Caller = asyncio.Task[ItemResult[str]]


class FaultyTally(Tally):
    """Metrics with a bug that can be switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.bug_in: str | None = None

    def batch_started(self, size: int, queued_s: Sequence[float]) -> None:
        if self.bug_in == "batch_started":
            raise ZeroDivisionError("a bug")
        super().batch_started(size, queued_s)

    def batch_ended(self, run_s: float, size: int, failed: bool) -> None:
        if self.bug_in == "batch_ended":
            raise ZeroDivisionError("a bug")
        super().batch_ended(run_s, size, failed)


class Bench:
    """A batcher of whole numbers on a manual clock; its runs wait for `run.finish` unless `run.busy` is cleared."""

    def __init__(
        self, limits: BatchLimits = ONE_SLOT, clock: ManualClock | None = None, device: FairScheduler | None = None
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
            scheduler=device,
        )

    def state(self) -> BatcherState:
        """Its state now, for a type checker that takes an attribute for unchanged."""
        return self.batcher.state

    @property
    def counts(self) -> tuple[int, int, int]:
        """Items that wait, that run, and all that are admitted."""
        return self.batcher.depth, self.batcher.in_flight, self.batcher.admitted

    async def call(self, item: int, within_s: float = 60.0) -> ItemResult[str]:
        """What a caller does."""
        deadline = self.clock.now() + within_s
        with timeout_at(deadline, self.clock), self.batcher.admit() as admission:
            self.admitted += 1
            return (await self.batcher.submit([item], deadline=deadline, admission=admission))[0]

    async def call_all(self, items: Sequence[int]) -> list[str]:
        """What a caller with several images does."""
        with self.batcher.admit(len(items)):
            return [one.value for one in await self.batcher.submit(items, deadline=self.clock.now() + 60)]

    async def submit(self, *items: int, within_s: float = 60.0) -> list[Caller]:
        """Callers of these items, having come as far as they can."""
        callers = [asyncio.create_task(self.call(item, within_s)) for item in items]
        await settle()
        return callers

    async def close(self, drain_s: float = 5.0) -> asyncio.Task[None]:
        """A closing that has begun."""
        task = asyncio.create_task(self.batcher.aclose(drain_s))
        await settle()
        return task

    async def finish_all(self) -> None:
        """Let this run end and every later one at once."""
        self.run.busy = False
        await self.run.finish()

    async def run_alone(self, item: int, step: BaseException | None = None, took_s: float = 0.0) -> str | BaseException:
        """How an item ends whose run takes so long and does so."""
        self.run.script.append(step)
        callers = await self.submit(item)
        await self.clock.advance(took_s)
        await self.run.finish()
        [ending] = await endings(callers)
        return ending.value if isinstance(ending, ItemResult) else ending


async def endings(callers: Sequence[Caller]) -> list[ItemResult[str] | BaseException]:
    """The result or the error of each, which must be there by now."""
    await settle()
    assert all(caller.done() for caller in callers), "a caller that still waits"
    return await asyncio.gather(*callers, return_exceptions=True)


async def values(callers: Sequence[Caller]) -> list[str]:
    """The answers, which must be there by now; raises where one failed."""
    await endings(callers)
    return [caller.result().value for caller in callers]


def answers(*items: int) -> list[str]:
    """What a working engine gives for these."""
    return [ScriptedRun.answer(item) for item in items]


# --- what runs together ---


async def test_idle_engine_starts_at_once() -> None:
    """A first arrival is dispatched in the turn in which it arrives, with no time passing."""
    bench = Bench()
    caller = asyncio.create_task(bench.call(1))
    await asyncio.sleep(0)
    assert bench.tally.sizes == [1]
    await settle()
    await bench.run.finish()
    assert await caller == ItemResult(ScriptedRun.answer(1), queue_s=0.0, run_s=0.0, batch_size=1)


async def test_items_of_one_caller_fill_batches() -> None:
    """Ten items at once go to an idle engine as 8 and 2, not as 1 and 9; their answers come in order."""
    bench = Bench(BatchLimits(1, max_batch=8))
    bench.run.busy = False
    assert await bench.call_all(range(10)) == answers(*range(10))
    assert bench.run.calls == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]
    assert bench.tally.outcomes == {OK: 10}
    assert bench.clock.pending == 0


async def test_items_of_one_caller_end_each_once() -> None:
    """One bad row: the caller has its error, what waits leaves the queue, and each item is counted as it ended."""
    bench = Bench(BatchLimits(1, max_batch=2))
    bench.run.bad = {1}
    caller = asyncio.create_task(bench.call_all(range(6)))
    await settle()
    await bench.run.finish()
    with pytest.raises(EngineError):
        await caller
    assert bench.batcher.depth == 0
    assert bench.tally.outcomes == {OK: 1, FAILED: 1, CANCELLED: 4}
    assert (bench.run.calls, bench.clock.pending) == ([[0, 1]], 0)


async def test_a_batch_grows_only_while_every_slot_is_busy() -> None:
    """What arrives during a run forms the next batches, up to the maximum, in order, without further arrivals."""
    bench = Bench()
    callers = await bench.submit(*range(10))
    assert bench.run.calls == [[0]]
    assert bench.counts == (9, 1, 10)
    await bench.run.finish()
    assert bench.run.calls == [[0], [1, 2, 3, 4]]
    await bench.run.finish(3)
    assert bench.run.calls == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert bench.tally.sizes == [1, 4, 4, 1]
    assert await values(callers) == answers(*range(10))
    assert bench.tally.outcomes == {OK: 10}


async def test_arrivals_spread_over_a_run_share_the_next_batch() -> None:
    """Eight arrivals at different moments of one run make one batch, and each is told how long it waited and ran."""
    bench = Bench(BatchLimits(1, max_batch=8))
    callers = await bench.submit(0)
    for item in range(1, 9):
        callers += await bench.submit(item)
        await bench.clock.advance(0.004)
    await bench.run.finish()
    await bench.clock.advance(0.010)
    await bench.run.finish()
    assert bench.tally.sizes == [1, 8]
    results = await asyncio.gather(*callers[1:])
    assert [one.queue_s for one in results] == pytest.approx([0.004 * left for left in range(8, 0, -1)])
    assert {(round(one.run_s, 6), one.batch_size) for one in results} == {(0.010, 8)}


async def test_each_slot_runs_a_batch_of_its_own() -> None:
    """With three slots three batches run at once, and the first that ends takes what waits."""
    bench = Bench(BatchLimits(slots=3, max_batch=4))
    callers = await bench.submit(*range(6))
    assert bench.run.calls == [[0], [1], [2]]
    await bench.run.finish()
    assert bench.run.calls == [[0], [1], [2], [3, 4, 5]]
    assert bench.run.running == 3
    await bench.run.finish(3)
    assert await values(callers) == answers(*range(6))


async def test_slots_that_compute_apart_divide_what_waits() -> None:
    """The first that ends leaves the others their parts, with what runs taken for half done; none takes too much."""
    bench = Bench(BatchLimits(slots=3, max_batch=4, apart=True))
    callers = await bench.submit(*range(11))
    await bench.run.finish()
    assert bench.run.calls == [[0], [1], [2], [3, 4, 5]]
    await bench.run.finish(2)
    assert bench.run.calls[4:] == [[6, 7, 8], [9, 10]]
    await bench.submit(*range(11, 31))
    await bench.run.finish()
    assert bench.run.calls[6:] == [[11, 12, 13, 14]]
    assert await values(callers[:6]) == answers(*range(6))


async def test_idle_slots_divide_what_comes_at_once() -> None:
    """Eight at once go to two idle slots as four and most of the others where these compute apart."""
    bench = Bench(BatchLimits(slots=2, max_batch=8, apart=True))
    caller = asyncio.create_task(bench.call_all(range(8)))
    await settle()
    assert bench.run.calls == [[0, 1, 2, 3], [4, 5, 6]]
    await bench.run.finish(3)
    assert await caller == answers(*range(8))


async def test_nothing_is_kept_for_a_slot_of_others() -> None:
    """Where another model holds the second slot of the device, the first takes all that waits."""
    clock = ManualClock()
    device = FairScheduler(2, clock)
    limits = BatchLimits(slots=2, max_batch=8, apart=True)
    one, other = Bench(limits, clock, device), Bench(limits, clock, device)
    await other.submit(0)
    await one.submit(0)
    await one.submit(*range(1, 7))
    await one.run.finish()
    assert one.run.calls == [[0], [1, 2, 3, 4, 5, 6]]


# --- callers that leave ---


async def test_cancelling_a_queued_item_frees_its_place_in_the_same_turn() -> None:
    """The item is never run, its place is free one turn later, and its siblings are answered."""
    bench = Bench(BatchLimits(1, 4, capacity=4))
    callers = await bench.submit(0, 1, 2, 3)
    callers.pop(2).cancel()
    await asyncio.sleep(0)
    assert bench.counts == (2, 1, 3)
    callers += await bench.submit(4)
    await bench.finish_all()
    assert bench.run.calls == [[0], [1, 3, 4]]
    assert await values(callers) == answers(0, 1, 3, 4)
    assert bench.tally.outcomes == {OK: 4, CANCELLED: 1}


async def test_cancelling_an_item_in_flight_drops_its_row() -> None:
    """The others of the batch get their own rows, not their neighbour's, and the place is free at once."""
    bench = Bench()
    callers = await bench.submit(0, 1, 2, 3)
    await bench.run.finish()
    callers.pop(2).cancel()
    await asyncio.sleep(0)
    assert bench.counts == (0, 3, 2)
    await bench.run.finish()
    assert await values(callers) == answers(0, 1, 3)
    assert bench.tally.outcomes == {OK: 3, CANCELLED: 1}
    assert bench.batcher.in_flight == 0


@pytest.mark.parametrize("step", [None, RuntimeError("scripted")], ids=["answered", "failed"])
@pytest.mark.parametrize("turns", range(8))
async def test_leaving_while_the_result_arrives(turns: int, step: Exception | None) -> None:
    """However close to its result a caller leaves, the counter says what the caller saw."""
    bench = Bench()
    bench.run.script.append(step)
    [caller] = await bench.submit(0)
    bench.run.release()
    for _ in range(turns):
        await asyncio.sleep(0)
    caller.cancel()
    await settle()

    seen = CANCELLED if caller.cancelled() else OK if caller.exception() is None else FAILED
    assert bench.tally.outcomes == {seen: 1}
    assert bench.clock.pending == 0


# --- failures ---


@pytest.mark.parametrize(
    "cause", [RuntimeError("the device is gone"), asyncio.CancelledError()], ids=lambda one: type(one).__name__
)
async def test_a_run_that_fails_fails_its_batch_alone(cause: BaseException) -> None:
    """Its callers get EngineError, where it raises and where threads that are gone cancel it; the next is answered."""
    bench = Bench()
    bench.run.script = [cause]
    [failed, *callers] = await bench.submit(0, 1, 2)
    await bench.finish_all()
    [error] = await endings([failed])
    assert isinstance(error, EngineError)
    assert error.__cause__ is (cause if isinstance(cause, RuntimeError) else None)
    assert await values(callers) == answers(1, 2)
    assert bench.tally.outcomes == {OK: 2, FAILED: 1}


@pytest.mark.parametrize("rows", [[], ["one"], ["one", "two", "three"]])
async def test_a_wrong_number_of_rows_is_an_engine_error(rows: list[str | Exception]) -> None:
    """Too few or too many rows are given to nobody, since nobody can tell whose they are."""
    bench = Bench()
    bench.run.script = [None, rows]
    [first, *callers] = await bench.submit(0, 1, 2)
    await bench.run.finish(2)
    assert await values([first]) == answers(0)
    for failed in await endings(callers):
        assert isinstance(failed, EngineError)
        assert f"{len(rows)} rows for 2 items" in failed.detail


async def test_a_bad_row_fails_its_own_caller_only() -> None:
    """An exception in place of one row reaches that caller as EngineError; its siblings are answered."""
    bench = Bench()
    bench.run.bad = {2}
    callers = await bench.submit(0, 1, 2, 3)
    await bench.run.finish(2)
    [failed] = await endings([callers.pop(2)])
    assert isinstance(failed, EngineError)
    assert isinstance(failed.__cause__, ValueError)
    assert await values(callers) == answers(0, 1, 3)
    assert bench.tally.outcomes == {OK: 3, FAILED: 1}
    assert bench.batcher.healthy


async def test_failures_in_a_row_turn_health_off_and_a_success_turns_it_on() -> None:
    """The third failed batch in a row makes it unhealthy, the next good one healthy, and each change is told once."""
    bench = Bench()
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


# --- out of memory ---


async def test_out_of_memory_halves_the_batch_and_lowers_the_maximum() -> None:
    """Both halves are run once and all are answered; no later batch is larger than a half."""
    bench = Bench(BatchLimits(1, max_batch=5))
    bench.run.script = [None, MemoryError("5 do not fit")]
    callers = await bench.submit(*range(10))
    await bench.finish_all()
    assert bench.run.calls == [[0], [1, 2, 3, 4, 5], [1, 2, 3], [4, 5], [6, 7, 8], [9]]
    assert bench.batcher.max_batch == 3
    assert await values(callers) == answers(*range(10))
    assert bench.batcher.healthy


@pytest.mark.parametrize(
    ("halves", "answered"),
    [((MemoryError(), None), [0, 3, 4]), ((None, MemoryError()), [0, 1, 2]), ((MemoryError(), MemoryError()), [0])],
    ids=["first", "second", "both"],
)
async def test_out_of_memory_in_a_half_fails_that_half(
    halves: tuple[MemoryError | None, MemoryError | None], answered: list[int]
) -> None:
    """Each half is tried once; one that fails again fails its own callers, and both are a failed batch."""
    bench = Bench(BatchLimits(1, 4, max_failures=1))
    bench.run.script = [None, MemoryError(), *halves]
    callers = await bench.submit(*range(5))
    await bench.finish_all()
    assert bench.run.calls == [[0], [1, 2, 3, 4], [1, 2], [3, 4]]
    ends = await endings(callers)
    assert [item for item, end in enumerate(ends) if isinstance(end, ItemResult)] == answered
    failed = [end for end in ends if isinstance(end, EngineError)]
    assert all(isinstance(error.__cause__, MemoryError) for error in failed)
    assert bench.tally.outcomes == {OK: len(answered), FAILED: len(failed)}
    assert bench.health == ([] if None in halves else [False])
    assert bench.batcher.max_batch == 2


async def test_out_of_memory_with_one_item_is_a_failed_batch() -> None:
    """One item cannot be halved: it is tried once, and the maximum stays."""
    bench = Bench()
    failed = await bench.run_alone(0, MemoryError("not even one"))
    assert isinstance(failed, EngineError)
    assert bench.run.calls == [[0]]
    assert bench.batcher.max_batch == 4
    assert await bench.run_alone(1) == ScriptedRun.answer(1)


# --- a bug in the batcher itself ---


@pytest.mark.parametrize(("bug_in", "answered"), [("batch_started", 1), ("batch_ended", 0)])
async def test_a_bug_fails_everything_pending_openly(bug_in: str, answered: int) -> None:
    """Every caller, waiting or in flight, gets the cause at once; new ones are refused and readiness hears of it."""
    bench = Bench(BatchLimits(slots=2, max_batch=2))
    callers = await bench.submit(*range(6))
    bench.tally.bug_in = bug_in
    await bench.run.finish()
    await endings(callers)
    assert await values(callers[:answered]) == answers(*range(answered))
    for error in await endings(callers[answered:]):
        assert isinstance(error, EngineError)
        assert isinstance(error.__cause__, ZeroDivisionError)
    assert bench.state() is BatcherState.BROKEN
    assert bench.health == [False]
    with pytest.raises(NotReady) as refused, bench.batcher.admit():
        pass
    assert isinstance(refused.value.__cause__, ZeroDivisionError)
    assert bench.tally.outcomes[FAILED] == 6 - answered
    assert bench.clock.pending == 0


async def test_a_bug_on_a_first_arrival_reaches_its_caller() -> None:
    """A dispatch that breaks inside `submit` fails that very item; the batcher closes, and stays broken."""
    bench = Bench()
    bench.tally.bug_in = "batch_started"
    [failed] = await endings(await bench.submit(0))
    assert isinstance(failed, EngineError)
    assert bench.batcher.admitted == 0
    closing = await bench.close()
    assert not closing.done(), "the engine is still inside"
    await bench.run.finish()
    assert closing.done()
    assert bench.state() is BatcherState.BROKEN


# --- deadlines ---


async def test_items_past_their_deadline_are_never_run() -> None:
    """The caller is told at once, no run begins, and each of its items is counted."""
    bench = Bench()
    with bench.batcher.admit(3), pytest.raises(DeadlineExceeded):
        await bench.batcher.submit(range(3), deadline=bench.clock.now())
    assert bench.run.calls == []
    assert bench.tally.outcomes == {EXPIRED: 3}


async def test_an_item_that_expires_in_the_queue_is_never_run() -> None:
    """It ends at its deadline, not later, and frees its place; the others are answered."""
    bench = Bench()
    callers = await bench.submit(0)
    [hurried] = await bench.submit(1, within_s=2.0)
    callers += await bench.submit(2)
    await bench.clock.advance(1.999)
    assert not hurried.done()
    await bench.clock.advance(0.001)
    assert isinstance((await endings([hurried]))[0], DeadlineExceeded)
    assert bench.counts == (1, 1, 2)
    await bench.run.finish(2)
    assert bench.run.calls == [[0], [2]]
    assert await values(callers) == answers(0, 2)
    assert bench.tally.outcomes == {OK: 2, EXPIRED: 1}


async def test_items_whose_timer_is_late_are_still_never_run() -> None:
    """The cut looks at the clock: expired items are failed there, leave no hole in the batch, and no empty batch."""
    bench = Bench()
    await bench.submit(0)
    expired = await bench.submit(1, within_s=2.0)
    await bench.submit(2)
    bench.clock.jump(2.0)
    await bench.run.finish()
    expired += await bench.submit(3, 4, within_s=2.0)
    bench.clock.jump(2.0)
    await bench.run.finish()
    assert bench.run.calls == [[0], [2]]
    assert all(isinstance(error, DeadlineExceeded) for error in await endings(expired))
    assert bench.tally.outcomes == {OK: 2, EXPIRED: 3}
    assert await bench.run_alone(5) == ScriptedRun.answer(5)


async def test_a_deadline_in_flight_ends_the_caller_at_that_moment() -> None:
    """The caller does not wait for the run; its row is dropped and its sibling is answered."""
    bench = Bench()
    callers = await bench.submit(0)
    hurried = await bench.submit(1, within_s=2.0)
    callers += await bench.submit(2)
    await bench.run.finish()
    await bench.clock.advance(2.0)
    assert isinstance((await endings(hurried))[0], DeadlineExceeded)
    assert bench.counts == (0, 2, 1)
    await bench.run.finish()
    assert await values(callers) == answers(0, 2)
    assert bench.tally.outcomes == {OK: 2, EXPIRED: 1}


async def test_what_waits_behind_a_slow_batch_is_refused_when_its_answer_is_due() -> None:
    """With a latency bound of 50 ms it is told when they are over, not when the batch returns."""
    bench = Bench(BatchLimits(1, 4, slo_s=0.05))
    await bench.run_alone(0, took_s=0.01)
    callers = await bench.submit(1, 2)
    await bench.run.finish(2)
    assert await values(callers) == answers(1, 2)
    assert bench.clock.pending == 0
    callers = await bench.submit(3)
    [late] = await bench.submit(4)
    await bench.clock.advance(0.0499)
    assert not late.done()
    await bench.clock.advance(0.0001)
    [refusal] = await endings([late])
    assert isinstance(refusal, SloUnattainable)
    assert bench.counts == (0, 1, 1)
    await bench.run.finish()
    assert await values(callers) == answers(3)
    assert bench.run.calls == [[0], [1], [2], [3]]
    assert bench.tally.slo == {SloOutcome.WITHIN: 4, SloOutcome.REFUSED: 1}
    assert bench.clock.pending == 0


# --- capacity ---


async def test_rejection_at_capacity_comes_in_the_same_turn() -> None:
    """Without a free place `admit` raises at once; a place is free again as soon as one item ends."""
    bench = Bench(BatchLimits(1, 4, capacity=2))
    callers = await bench.submit(0, 1)
    with pytest.raises(Overloaded) as refused, bench.batcher.admit():
        pass
    assert refused.value.retry_after_s == 1.0
    assert bench.tally.outcomes == {OVERLOADED: 1}
    await bench.run.finish()
    with bench.batcher.admit():
        assert bench.batcher.admitted == 2
    await bench.run.finish()
    assert await values(callers) == answers(0, 1)


async def test_several_are_admitted_at_once_or_none() -> None:
    """Three of four are, before anything is queued, and released together; two more do not fit, and five never can."""
    bench = Bench(BatchLimits(1, 4, capacity=4))
    with bench.batcher.admit(3):
        assert bench.counts == (0, 0, 3)
        with pytest.raises(Overloaded), bench.batcher.admit(2):
            pass
        assert bench.batcher.admitted == 3
        assert bench.tally.outcomes == {OVERLOADED: 2}
        with pytest.raises(BadRequest, match="--capacity of 4"), bench.batcher.admit(5):
            pass
    assert bench.batcher.admitted == 0


async def test_retry_after_knows_a_lowered_maximum() -> None:
    """After running out of memory the queue drains in smaller batches, and callers are told to wait longer."""
    bench = Bench(BatchLimits(1, max_batch=4, capacity=8))
    bench.run.script = [None, MemoryError()]
    callers = await bench.submit(*range(5))
    await bench.run.finish(4)
    await values(callers)
    for _ in range(60):  # until what the large batch took has faded: one and two items take 1 s
        callers = await bench.submit(0, 1, 2)
        for _ in range(2):
            await bench.clock.advance(1.0)
            await bench.run.finish()
        await values(callers)
    await bench.submit(*range(8))
    with pytest.raises(Overloaded) as refused, bench.batcher.admit():
        pass
    assert refused.value.retry_after_s == pytest.approx(8 / 1.5, rel=0.1)  # three images in two seconds of late


async def test_retry_after_knows_what_is_not_the_engine() -> None:
    """Where decoding is the slow step, the wait told follows the rate at which images end, not the engine's."""
    bench = Bench(BatchLimits(1, 4, capacity=8))
    for _ in range(10):
        with bench.batcher.admit():  # half a second of decoding, and none in the engine
            await bench.clock.advance(0.5)
    with contextlib.ExitStack() as decoding:
        for _ in range(8):
            decoding.enter_context(bench.batcher.admit())
        with pytest.raises(Overloaded) as refused, bench.batcher.admit():
            pass
    assert refused.value.retry_after_s == pytest.approx(4.0)


# --- closing ---


async def test_closing_answers_what_was_accepted_and_refuses_the_rest() -> None:
    """Waiting items are still run; whoever comes later gets ShuttingDown; then it is closed."""
    bench = Bench()
    callers = await bench.submit(0, 1, 2)
    closing = await bench.close()
    assert bench.state() is BatcherState.DRAINING
    assert not bench.batcher.healthy
    [refused] = await endings(await bench.submit(3))
    assert isinstance(refused, ShuttingDown)
    await bench.run.finish(2)
    assert await values(callers) == answers(0, 1, 2)
    assert closing.done()
    assert bench.state() is BatcherState.CLOSED
    assert bench.clock.pending == 0
    with pytest.raises(ShuttingDown), bench.batcher.admit():
        pass


async def test_closing_answers_an_image_that_is_still_being_decoded() -> None:
    """An admission from before the closing is good until its answer; the closing waits for it."""
    bench = Bench()
    with bench.batcher.admit():
        closing = await bench.close()
        assert not closing.done()
        caller = asyncio.create_task(bench.batcher.submit([7], deadline=bench.clock.now() + 60))
        await settle()
        await bench.run.finish()
        assert (await caller)[0].value == ScriptedRun.answer(7)
        assert not closing.done()
    await settle()
    assert closing.done()


async def test_closing_waits_for_a_run_that_nobody_waits_for() -> None:
    """Its callers have left, but the engine is still inside and must not be taken away."""
    bench = Bench()
    [gone] = await bench.submit(0)
    gone.cancel()
    closing = await bench.close()
    assert bench.batcher.admitted == 0
    assert not closing.done()
    await bench.run.finish()
    assert closing.done()


async def test_after_the_drain_limit_the_rest_is_failed() -> None:
    """Queued, in flight or being decoded: at the limit each gets ShuttingDown, and late rows are dropped."""
    bench = Bench()
    callers = await bench.submit(0, 1)
    with bench.batcher.admit():  # decoding
        closing = await bench.close(drain_s=5.0)
        await bench.clock.advance(4.999)
        assert not closing.done()
        await bench.clock.advance(0.001)
        assert closing.done()
        with pytest.raises(ShuttingDown):
            await bench.batcher.submit([2], deadline=bench.clock.now() + 60)
    assert all(isinstance(error, ShuttingDown) for error in await endings(callers))
    assert bench.tally.outcomes == {FAILED: 3}
    assert bench.batcher.in_flight == 1
    await bench.run.finish()
    assert bench.run.calls == [[0]]
    assert (bench.batcher.in_flight, bench.clock.pending) == (0, 0)


@pytest.mark.parametrize("hurried", [False, True])
async def test_closing_twice_is_closing_once(hurried: bool) -> None:
    """A second call ends with the first, at the earlier limit of both, and one after it returns at once."""
    bench = Bench()
    callers = await bench.submit(0)
    closings = [await bench.close(drain_s=50.0), await bench.close(drain_s=1.0 if hurried else 60.0)]
    if hurried:
        await bench.clock.advance(1.0)
    await bench.run.finish()
    assert isinstance((await endings(callers))[0], ShuttingDown if hurried else ItemResult)
    assert all(closing.done() for closing in closings)
    assert (await bench.close()).done()
    assert bench.batcher.state is BatcherState.CLOSED
    assert bench.clock.pending == 0
