"""One device, several models: which runs next, for how much of the time, and that no slot is lost or taken twice."""

import asyncio
import gc
import math
import random
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import pytest

from service.batching.batcher import Batcher, BatcherState
from service.batching.fair_scheduler import FairScheduler, SlotLease
from service.common.errors import EngineError
from service.common.types import BatchLimits
from tests.batching.test_batcher import Bench, answers, endings, values
from tests.fakes import ManualClock, Tally, settle

pytestmark = pytest.mark.anyio


class Member:
    """A model with `work` batches to run on a device; `ran` are those that run."""

    def __init__(self, device: FairScheduler, work: int = 0, own_slots: int = 0) -> None:
        self.device = device
        self.work = work
        self.ran: deque[SlotLease] = deque()
        self.flow = device.join(self.go, own_slots)

    def go(self) -> None:
        while self.work and (lease := self.device.take(self.flow)):
            self.work -= 1
            self.ran.append(lease)

    def end(self) -> None:
        """Its oldest batch has ended."""
        self.device.release(self.ran.popleft())


class Load:
    """A model whose batches take `run_s` each on the manual clock, and `item_s` more for each item."""

    def __init__(
        self, clock: ManualClock, device: FairScheduler, run_s: float = 0, *, item_s: float = 0, own_slots: int = 1
    ) -> None:
        self.clock = clock
        self.run_s = run_s
        self.item_s = item_s
        self.tally = Tally()
        self.batcher: Batcher[int, int] = Batcher(
            self._run, BatchLimits(own_slots, 4, 1000), clock=clock, metrics=self.tally, scheduler=device
        )
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def used_s(self) -> float:
        """Seconds of its batches that have ended."""
        return sum(self.tally.runs_s)

    async def ask(self, count: int) -> None:
        """So many callers with an item each."""
        self.tasks += [asyncio.get_running_loop().create_task(self._call()) for _ in range(count)]
        await settle()

    async def _call(self) -> None:
        with self.batcher.admit():
            await self.batcher.submit([1], deadline=self.clock.now() + 1e6)

    async def _run(self, items: Sequence[int]) -> list[int | Exception]:
        ended = asyncio.get_running_loop().create_future()
        took_s = self.run_s + self.item_s * len(items)
        self.clock.call_at(self.clock.now() + took_s, lambda: ended.set_result(None))
        await ended
        return list(items)


async def end_all(clock: ManualClock, loads: Sequence[Load]) -> None:
    """Let everything be answered."""
    while not all(task.done() for load in loads for task in load.tasks):
        await clock.advance(1.0)
    await asyncio.gather(*(task for load in loads for task in load.tasks))


# --- the allocator alone ---


def test_a_slot_given_back_in_its_own_turn_goes_on_to_the_next() -> None:
    """Whoever finds that its work is too late by now keeps nobody waiting: the device is not left idle."""
    device = FairScheduler(1, ManualClock())
    one, last = Member(device, work=1), Member(device, work=1)
    dropped: list[SlotLease] = []

    def drop() -> None:
        if not dropped and (lease := device.take(late)):
            dropped.append(lease)
            device.release(lease)

    late = device.join(drop)
    one.go()
    assert device.take(late) is None
    last.go()
    one.end()
    assert (len(dropped), len(last.ran), device.running) == (1, 1, 1)


@pytest.mark.parametrize(("slots", "own_slots", "share"), [(1, 1, 1.0), (4, 1, 1.0), (4, 4, 0.25), (4, 2, 0.5)])
def test_utilisation(slots: int, own_slots: int, share: float) -> None:
    """Utilisation is the share of slot time that batches took lately, however long each takes; reads change nothing."""
    clock = ManualClock()
    device = FairScheduler(slots, clock)
    member = Member(device, work=1, own_slots=own_slots)
    assert device.utilisation() == 0
    member.go()
    clock.jump(15)
    assert [device.utilisation() for _ in range(3)] == pytest.approx([share * (1 - math.exp(-1))] * 3)
    clock.jump(600)
    assert device.utilisation() == pytest.approx(share)
    member.end()
    assert device.utilisation() == pytest.approx(share)
    clock.jump(15)
    assert device.utilisation() == pytest.approx(share * math.exp(-1))


def test_utilisation_of_short_batches() -> None:
    """A device whose batches run three tenths of the time has a utilisation of 0.3, never above 1 when full."""
    clock = ManualClock()
    device = FairScheduler(1, clock)
    for busy_s, idle_s, expected in ((0.03, 0.07, 0.3), (0.1, 0.0, 1.0)):
        for _ in range(1200):
            member = Member(device, work=1)
            member.go()
            clock.jump(busy_s)
            member.end()
            clock.jump(idle_s)
        assert device.utilisation() == pytest.approx(expected, abs=0.005)
        assert device.utilisation() <= 1


def test_more_slots_begin_at_once() -> None:
    """A higher limit starts those who wait; a lower one stops nothing, and nothing begins until it is kept."""
    device = FairScheduler(1, ManualClock())
    member = Member(device, work=5)
    member.go()
    device.resize(3)
    assert len(member.ran) == 3
    device.resize(1)
    member.end()
    member.end()
    assert (len(member.ran), member.work) == (1, 2)
    member.end()
    assert (len(member.ran), member.work) == (1, 1)


def test_a_device_keeps_nothing_of_a_model_that_has_gone() -> None:
    """The last that ran there is not held by it, be the device ever so idle afterwards."""
    device = FairScheduler(1, ManualClock())
    member = Member(device, work=1)
    member.go()
    member.end()
    gone = weakref.ref(member)
    del member
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("seed", range(20))
def test_slots_are_neither_lost_nor_doubled(seed: int) -> None:
    """Whoever asks, ends and leaves: never more than the limit run, and none is free while somebody has work."""
    chance = random.Random(seed)
    clock = ManualClock()
    device = FairScheduler(chance.randint(1, 3), clock)
    members = [Member(device) for _ in range(4)]

    def running() -> list[Member]:
        return [member for member in members if member.ran]

    for _ in range(300):
        member = chance.choice(members)
        clock.jump(chance.random())
        step: Callable[[], None] | None = None
        match chance.randrange(4):
            case 0 | 1:
                member.work += 1
                step = member.go
            case 2 if running():
                step = chance.choice(running()).end
            case 3 if member.work:
                member.work = 0
        if step:
            step()
        assert device.running == sum(len(one.ran) for one in members) <= device.limit
        assert device.running == device.limit or not any(one.work for one in members)


def test_an_engine_with_fewer_slots_takes_more_of_the_device() -> None:
    """On four slots a batch of one that fills it with two counts double, so threads stay four."""
    device = FairScheduler(4, ManualClock())
    flows = {own_slots: device.join(lambda: None, own_slots) for own_slots in (4, 2, 1, 3)}
    ran: dict[int, list[SlotLease]] = {own_slots: [] for own_slots in flows}

    def take(own_slots: int) -> bool:
        if lease := device.take(flows[own_slots]):
            ran[own_slots].append(lease)
        return lease is not None

    def release(own_slots: int) -> None:
        while ran[own_slots]:
            device.release(ran[own_slots].pop())

    assert [take(2), take(4), take(4), take(4)] == [True, True, True, False]
    assert device.running == 4
    release(2)
    assert not take(1), "it needs all four"
    release(4)
    assert device.running == 0
    assert take(1)
    release(1)
    assert [take(3), take(3), take(3), take(3)] == [True, True, True, False]
    release(3)
    assert device.running == 0


def test_one_that_needs_the_whole_device_is_not_kept_out() -> None:
    """While it is next nobody smaller begins, although there is room; then all go on."""
    clock = ManualClock()
    device = FairScheduler(2, clock)
    small, other = Member(device, work=20), Member(device, work=20)
    whole = Member(device, work=3, own_slots=1)
    for member in (small, other, whole):
        member.go()
    for _ in range(60):
        running = [member for member in (small, other, whole) if member.ran]
        if not running:
            break
        assert not whole.ran or running == [whole]
        clock.jump(0.1)
        running[0].end()
    assert (small.work, other.work, whole.work) == (0, 0, 0)


# --- batchers on it ---


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("run_s", [0.1, 1.0, 2.0])
async def test_two_floods_share_the_time(slots: int, run_s: float) -> None:
    """However long the batches of each, both get half of the device, to within a batch of each."""
    clock = ManualClock()
    device = FairScheduler(slots, clock)
    short, long = Load(clock, device, 0.1, own_slots=slots), Load(clock, device, run_s, own_slots=slots)
    for load in (short, long):
        await load.ask(900)
    await clock.advance(20.0)
    assert short.used_s + long.used_s == pytest.approx(20.0 * slots, abs=slots * run_s + 0.11)
    assert abs(short.used_s - long.used_s) <= 2 * slots * run_s + 0.11
    await end_all(clock, [short, long])


async def test_one_alone_has_all_and_owes_nothing_for_it() -> None:
    """With the other idle it gets the whole device; when the other comes, the past is not held against either."""
    clock = ManualClock()
    device = FairScheduler(1, clock)
    first, late = Load(clock, device, 0.5), Load(clock, device, 0.5)
    await first.ask(400)
    await clock.advance(20.0)
    assert first.used_s == pytest.approx(20.0)
    await late.ask(200)
    before = first.used_s
    await clock.advance(10.0)
    assert first.used_s - before == pytest.approx(5.0, abs=0.51)
    assert late.used_s == pytest.approx(5.0, abs=0.51)
    await end_all(clock, [first, late])


async def test_a_slow_batch_is_forgiven_once_the_device_has_rested() -> None:
    """A minute in one batch, then nothing: a flood of another model later does not go first for a minute."""
    clock = ManualClock()
    device = FairScheduler(1, clock)
    slow, flood = Load(clock, device, 60.0), Load(clock, device, 0.1)
    await slow.ask(1)
    await clock.advance(70.0)
    slow.run_s = 0.1
    await flood.ask(400)
    await clock.advance(1.0)
    await slow.ask(1)
    await clock.advance(1.0)
    assert slow.tally.queued_s == [0.0, pytest.approx(0.1, abs=0.11)]
    assert flood.batcher.depth > 100
    await end_all(clock, [slow, flood])


async def test_a_flood_makes_nobody_wait_longer_than_a_round() -> None:
    """Eight models on one slot, one of them flooded: no other waits longer than a batch of each of the eight."""
    clock = ManualClock()
    device = FairScheduler(1, clock)
    longest = 0.2
    flooded = Load(clock, device, longest)
    others = [Load(clock, device, longest * share) for share in (0.1, 0.2, 0.4, 0.5, 0.7, 0.9, 1.0)]
    await flooded.ask(900)
    chance = random.Random(5)
    for _ in range(400):
        if chance.random() < 0.3:
            await chance.choice(others).ask(1)
        await clock.advance(0.05)
    waits = [wait for other in others for wait in other.tally.queued_s]
    assert len(waits) > 80
    assert max(waits) <= (1 + len(others)) * longest
    assert flooded.batcher.depth > 100, "the flood lasted"
    await end_all(clock, [flooded, *others])


async def test_a_batch_is_cut_when_its_slot_is_there() -> None:
    """What arrives while another model holds the device goes into one batch, not into one that was cut before."""
    clock = ManualClock()
    device = FairScheduler(1, clock)
    limits = BatchLimits(1, 8)
    busy, waiting = Bench(limits, clock, device), Bench(limits, clock, device)
    first = await busy.submit(0)
    tasks = []
    for item in range(6):
        tasks += await waiting.submit(item)
    assert waiting.run.calls == []
    await busy.run.finish()
    assert waiting.run.calls == [[0, 1, 2, 3, 4, 5]]
    await waiting.run.finish()
    assert await values(first + tasks) == answers(0, *range(6))


async def test_a_bug_while_a_batch_is_cut_costs_the_others_no_slot() -> None:
    """The queue with the bug is broken and says so; the slot that it had taken goes to the other model."""
    clock = ManualClock()
    device = FairScheduler(1, clock, 0.02)
    sound, faulty = (Bench(BatchLimits(1, 4), clock, device) for _ in range(2))
    first = await sound.submit(0)
    second = await faulty.submit(1)
    device.quantum_s = None  # type: ignore[assignment]
    await sound.run.finish()
    device.quantum_s = 0.02
    [failed] = await endings(second)
    assert isinstance(failed, EngineError)
    assert isinstance(failed.__cause__, TypeError)
    assert (faulty.batcher.state, sound.batcher.state) == (BatcherState.BROKEN, BatcherState.OPEN)
    third = await sound.submit(2)
    await sound.run.finish()
    assert await values([*first, *third]) == answers(0, 2)


# --- how long a batch may be while others wait ---


async def test_beside_others_a_batch_is_cut_to_the_quantum() -> None:
    """Two floods: each batch lasts at most 20 ms by what was measured, one item at least, and both get half."""
    clock = ManualClock()
    device = FairScheduler(1, clock, quantum_s=0.02)
    light, heavy = Load(clock, device, item_s=0.009), Load(clock, device, item_s=0.03)
    await light.ask(400)
    await heavy.ask(400)
    await clock.advance(3.0)
    assert set(light.tally.sizes[2:]) == {2}
    assert set(heavy.tally.sizes) == {1}
    assert abs(light.used_s - heavy.used_s) <= 0.06
    await end_all(clock, [light, heavy])


async def test_a_light_model_waits_for_single_runs_of_a_flooded_heavy_one() -> None:
    """Two slots, one flood of 50 ms an item: a light request is answered within one item of it and its own run."""
    clock = ManualClock()
    device = FairScheduler(2, clock, quantum_s=0.02)
    heavy, light = (
        Load(clock, device, item_s=0.05, own_slots=2),
        Load(clock, device, item_s=0.002, own_slots=2),
    )
    await heavy.ask(900)
    await light.ask(1)
    await clock.advance(1.0)
    before = len(light.tally.queued_s)
    for _ in range(30):
        await light.ask(1)
        await clock.advance(0.313)
    waits = sorted(light.tally.queued_s[before:])
    assert len(waits) == 30
    assert waits[15] <= 0.05
    assert waits[-1] <= 0.05 + 1e-9
    assert heavy.batcher.depth > 100, "the flood lasted"
    assert heavy.used_s >= 0.9 * 2 * (clock.now() - 1000), "no slot was left idle for the light one"
    await end_all(clock, [heavy, light])


async def test_the_quantum_is_forgotten_when_the_others_have_been_silent() -> None:
    """Within seconds of another model's request batches stay short; after that they grow again."""
    clock = ManualClock()
    device = FairScheduler(1, clock, quantum_s=0.02)
    flooded, other = Load(clock, device, item_s=0.01), Load(clock, device, item_s=0.01)
    await other.ask(1)
    await flooded.ask(900)
    await clock.advance(4.5)
    assert max(flooded.tally.sizes) == 2
    await clock.advance(2.0)
    assert flooded.tally.sizes[-1] == 4
    await end_all(clock, [flooded, other])
