"""Random lives of one or two batchers on a device: every submit ends exactly once."""

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.fair_scheduler import FairScheduler
from service.common.errors import DeadlineExceeded, EngineError, NotReady, Overloaded, ShuttingDown
from service.common.types import BatchLimits, ItemOutcome, SloOutcome
from tests.batching.test_batcher import CANCELLED, EXPIRED, FAILED, OK, OVERLOADED, Bench, Caller
from tests.fakes import ManualClock, ScriptedRun, settle

Step = tuple[str, float]

STEP = st.one_of(
    st.tuples(st.just("submit"), st.just(60.0)),
    st.tuples(st.just("submit"), st.sampled_from([0.0005, 0.003, 0.01])),
    st.tuples(st.just("cancel"), st.integers(0, 40)),
    st.tuples(st.just("release"), st.integers(0, 4)),
    st.tuples(st.just("advance"), st.sampled_from([0.0, 0.0003, 0.001, 0.005])),
    st.tuples(st.just("jump"), st.sampled_from([0.0005, 0.005])),
    st.tuples(st.sampled_from(["raise", "memory", "cancelled", "short", "bad"]), st.just(0)),
)
STEPS = st.lists(st.tuples(st.integers(0, 1), STEP), max_size=30)
"""Each a step of the model with that number."""
LIMITS = st.builds(
    BatchLimits,
    slots=st.integers(1, 3),
    max_batch=st.integers(1, 5),
    capacity=st.integers(1, 12),
    slo_s=st.sampled_from([0.0, 0.004]),
    apart=st.booleans(),
)
FAULTS: dict[str, BaseException | list[str | Exception]] = {
    "raise": RuntimeError("scripted"),
    "memory": MemoryError("scripted"),
    "cancelled": asyncio.CancelledError(),
    "short": [],
}


class Story:
    """A random life of a batcher."""

    def __init__(self, limits: BatchLimits, clock: ManualClock, device: FairScheduler) -> None:
        self.bench = Bench(limits, clock, device)
        self.limits = limits
        self.tasks: list[Caller] = []
        self.deadlines: list[float] = []
        self.late: set[int] = set()
        """Callers that left after their deadline: their items count as expired."""
        self.closing: asyncio.Task[None] | None = None

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

    def check(self) -> None:
        """Every caller has had one end, the counters say so, and nothing is left behind."""
        bench = self.bench
        assert all(task.done() for task in self.tasks), "a submit that never ended"
        assert self.closing is None or self.closing.done()
        ends: dict[ItemOutcome, int] = dict.fromkeys(ItemOutcome, 0)
        for item, task in enumerate(self.tasks):
            if task.cancelled():
                ends[EXPIRED if item in self.late else CANCELLED] += 1
            elif (error := task.exception()) is None:
                assert task.result().value == ScriptedRun.answer(item)
                assert item not in bench.run.bad
                ends[OK] += 1
            elif isinstance(error, DeadlineExceeded):
                ends[EXPIRED] += 1
            elif isinstance(error, Overloaded):
                ends[OVERLOADED] += 1
            else:
                assert isinstance(error, EngineError | ShuttingDown | NotReady)
                ends[FAILED] += 1
        refused = ends[FAILED] - bench.tally.outcomes[FAILED]  # by `admit`: no item of the batcher
        overloaded = len(self.tasks) - bench.admitted - refused
        assert refused >= 0
        if self.limits.slo_s:  # an item may be refused in the queue too
            assert 0 <= overloaded <= ends[OVERLOADED]
            assert bench.tally.slo[SloOutcome.WITHIN] + bench.tally.slo[SloOutcome.OVER] == ends[OK]
        else:
            assert overloaded == ends[OVERLOADED]
        ends[FAILED] -= refused
        assert ends == {outcome: bench.tally.outcomes[outcome] for outcome in ItemOutcome}
        ran = [item for call in bench.run.calls for item in call]
        assert max(map(len, bench.run.calls), default=0) <= self.limits.max_batch
        assert len(bench.tally.queued_s) == sum(bench.tally.sizes) <= len(ran)
        assert bench.counts == (0, 0, 0)
        assert bench.clock.pending == 0, "a timer left"


class Device:
    """The stories of all models of a device with so many slots, checked at every step."""

    def __init__(self, limits: Sequence[BatchLimits], slots: int) -> None:
        self.clock = ManualClock()
        self.scheduler = FairScheduler(slots, self.clock)
        self.stories = [Story(one, self.clock, self.scheduler) for one in limits]

    async def play(self, steps: Sequence[tuple[int, Step]]) -> None:
        for number, (name, value) in steps:
            await self.stories[number % len(self.stories)].step(name, value)
            assert sum(story.bench.run.running for story in self.stories) <= self.scheduler.limit
            for story in self.stories:
                assert story.bench.run.running <= story.limits.slots
                assert story.bench.batcher.admitted <= story.limits.capacity
            if name == "advance":
                self.check_no_idle_slot()

    def check_no_idle_slot(self) -> None:
        """Nobody waits for a device that has room."""
        scheduler = self.scheduler
        assert scheduler.running <= scheduler.limit + 1e-9
        if not all(scheduler._fits(scheduler.weight(flow.own_slots)) for flow in scheduler._waiting):
            return  # one that needs more than is left goes first
        for story in self.stories:
            bench, slots = story.bench, story.limits.slots
            if scheduler.running + scheduler.weight(slots) <= scheduler.limit + 1e-9:
                assert not bench.batcher.depth or bench.run.running == slots

    async def wind_down(self) -> None:
        """Let every run end and every drain limit pass, but no long deadline."""
        for _ in range(3):
            await self.clock.advance(0.010)
            while busy := [story.bench.run for story in self.stories if story.bench.run.running]:
                await busy[0].finish()
        await settle()
        assert self.scheduler.running == 0


@given(
    limits=st.lists(LIMITS, min_size=1, max_size=2),
    slots=st.integers(1, 3),
    before=STEPS,
    how=st.sampled_from(["nothing", "close", "force", "batch_started", "batch_ended"]),
    after=STEPS,
)
@settings(max_examples=400, deadline=None)
def test_every_submit_ends_exactly_once(
    limits: list[BatchLimits],
    slots: int,
    before: list[tuple[int, Step]],
    how: str,
    after: list[tuple[int, Step]],
) -> None:
    """Whatever arrives, leaves, fails, expires, breaks or closes: one end each, true counters, nothing left over.

    What breaks or closes is the first model; no slot of the device is lost.
    """

    async def live() -> None:
        problems: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
        own = asyncio.all_tasks()
        device = Device(limits, slots)
        await device.play(before)
        await device.stories[0].break_off(how)
        await device.play(after)
        await device.wind_down()
        for story in device.stories:
            story.check()
        assert asyncio.all_tasks() == own
        assert problems == []

    asyncio.run(live())
