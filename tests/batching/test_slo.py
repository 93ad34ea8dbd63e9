"""Answers within a bound: loads of every kind on an engine of known speed, in virtual time."""

import asyncio
import contextlib
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from service.batching.batcher import Batcher
from service.batching.fair_scheduler import FairScheduler
from service.batching.queue import Admission, QueuedItem
from service.batching.slo import LatencyBound, QuantileForecast, SloUnattainable
from service.common.clock import timeout_at
from service.common.errors import DeadlineExceeded, Overloaded
from service.common.types import BatchLimits, ItemOutcome, ItemResult, SloOutcome
from tests.fakes import ManualClock, Tally
from tests.virtual_time import VirtualClock, in_virtual_time

WITHIN, OVER, REFUSED = SloOutcome
BOUND_S = 0.05
SLOTS = 2

Cost = Callable[[int, float, random.Random], float]
"""Seconds of a batch of so many, at that second of the load."""


def steady(n: int, _second: float, _chance: random.Random) -> float:
    """As on a CPU: a batch is hardly cheaper than its items."""
    return 0.002 + 0.006 * n


def bimodal(n: int, _second: float, chance: random.Random) -> float:
    """One run in 25 takes three times as long."""
    return steady(n, 0, chance) * (3 if chance.random() < 0.04 else 1)


def spread(n: int, _second: float, chance: random.Random) -> float:
    """Every run takes another time."""
    return steady(n, 0, chance) * chance.lognormvariate(0, 0.25)


def flat(n: int, _second: float, _chance: random.Random) -> float:
    """As on a card: a batch of 32 takes hardly longer than one of 1."""
    return 0.01 + 0.0006 * n


def half_the_bound(n: int, _second: float, _chance: random.Random) -> float:
    """A run leaves time for hardly another one."""
    return 0.004 + 0.025 * n


def slow_for_a_while(n: int, second: float, chance: random.Random) -> float:
    """Three times as slow from the third to the fifth second."""
    return steady(n, 0, chance) * (3 if 3 <= second < 5 else 1)


@dataclass
class Server:
    """A batcher behind two decoding threads; it keeps when each answered request came, and how long it took."""

    cost: Cost
    bound_s: float = BOUND_S
    max_batch: int = 8
    patience_s: float = 30.0
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    answered: list[tuple[float, float]] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    expired: int = 0
    device: FairScheduler | None = None

    def __post_init__(self) -> None:
        self.clock = VirtualClock()
        self.tally = Tally()
        self.began = self.clock.now()
        self.decoders = asyncio.Semaphore(2)
        limits = BatchLimits(SLOTS, self.max_batch, slo_s=self.bound_s, apart=True)
        self.batcher: Batcher[int, int] = Batcher(
            self._run, limits, clock=self.clock, metrics=self.tally, scheduler=self.device
        )

    @property
    def second(self) -> float:
        return self.clock.now() - self.began

    async def _run(self, items: Sequence[int]) -> list[int | Exception]:
        self.sizes.append(len(items))
        await asyncio.sleep(self.cost(len(items), self.second, self.chance))
        return list(items)

    async def ask(self, crops: int = 1) -> None:
        """One request."""
        came = self.second
        deadline = self.clock.now() + self.patience_s
        try:
            with timeout_at(deadline, self.clock), self.batcher.admit(crops) as admission:
                async with self.decoders:
                    await asyncio.sleep(0.001)
                await self.batcher.submit(range(crops), deadline=deadline, admission=admission)
            self.answered.append((came, self.second - came))
        except Overloaded:
            self.refused_s.append(self.second - came)
        except DeadlineExceeded:
            self.expired += 1

    async def poisson(self, rate: float, seconds: float) -> None:
        """Requests at random moments, which wait for nobody's answer."""
        chance = random.Random(7)
        until = self.second + seconds
        tasks = []
        while self.second < until:
            tasks.append(asyncio.create_task(self.ask()))
            await asyncio.sleep(chance.expovariate(rate))
        await asyncio.gather(*tasks)

    def within(self, start: float, end: float) -> list[float]:
        """How long the requests took that came then and were answered."""
        return [took for came, took in self.answered if start <= came < end]


def p99(times: Sequence[float]) -> float:
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]


def most_in_time(cost: Cost, max_batch: int) -> float:
    """Requests per second of all slots with the best size of those that half of the bound is enough for."""
    chance = random.Random(3)
    means = {n: sum(cost(n, 0, chance) for _ in range(2000)) / 2000 for n in range(1, max_batch + 1)}
    return max(SLOTS * n / mean for n, mean in means.items() if mean <= BOUND_S / 2)


async def loaded(cost: Cost, load: float, max_batch: int) -> Server:
    server = Server(cost, max_batch=max_batch)
    await server.poisson(load * most_in_time(cost, max_batch), 6.0)
    return server


# --- loads ---


@pytest.mark.parametrize("load", [0.5, 0.9, 1.5, 3.0])
@pytest.mark.parametrize(("cost", "max_batch"), [(steady, 8), (bimodal, 8), (spread, 8), (flat, 4)])
@in_virtual_time
async def test_accepted_requests_are_answered_in_time(cost: Cost, max_batch: int, load: float) -> None:
    """At half, most, one and a half and three times what the slots can do: p99 within the bound, and goodput stays."""
    server = await loaded(cost, load, max_batch)
    took = server.within(1, 6)
    goodput = len(took) / 5 / most_in_time(cost, max_batch)
    assert p99(took) <= BOUND_S
    assert goodput >= (0.8 if load > 1 else 0.7 * load), goodput
    assert server.tally.slo[WITHIN] + server.tally.slo[OVER] == len(server.answered)
    assert server.tally.slo[REFUSED] == server.tally.outcomes[ItemOutcome.OVERLOADED] == len(server.refused_s)


@in_virtual_time
async def test_without_a_bound_nothing_is_refused_and_answers_are_late() -> None:
    """The same load without the setting, up to the capacity: that is what the bound is for."""
    server = Server(steady, bound_s=0.0)
    await server.poisson(1.5 * most_in_time(steady, 8), 6.0)
    assert p99([took for _, took in server.answered]) > 5 * BOUND_S
    assert not server.tally.slo


@in_virtual_time
async def test_refusals_come_early() -> None:
    """At three times the capacity 9 in 10 of the refused are told at once, before anything is decoded."""
    server = await loaded(steady, 3.0, 8)
    at_once = sum(took == 0 for took in server.refused_s)
    assert at_once >= 0.9 * len(server.refused_s) > 100
    assert max(server.refused_s) <= BOUND_S + 1e-9


@in_virtual_time
async def test_a_model_that_is_slow_for_a_while_refuses_more_and_recovers() -> None:
    """Three times as slow for two seconds: hardly an answer is late, some are given, and then as many as before."""
    server = Server(slow_for_a_while)
    await server.poisson(2.0 * most_in_time(steady, 8), 8.0)
    late = sum(took > BOUND_S for _, took in server.answered)
    assert late <= 0.02 * len(server.answered)
    assert len(server.within(4, 5)) >= 15
    assert len(server.within(7, 8)) >= 0.9 * len(server.within(2, 3))


@in_virtual_time
async def test_a_burst_after_idle_is_cut_to_what_fits() -> None:
    """A hundred at once on a server that has only seen single ones: the accepted are in time, and there are some."""
    server = Server(steady)
    for _ in range(100):
        await asyncio.sleep(0.2)
        await server.ask()
    await asyncio.gather(*(server.ask() for _ in range(100)))
    assert 3 <= len(server.answered) - 100 <= 97
    assert max(took for _, took in server.answered) <= BOUND_S


@in_virtual_time
async def test_the_first_burst_of_all_admits_one_for_each_slot() -> None:
    """With nothing measured, nobody has to wait for another one's run."""
    server = Server(steady)
    await asyncio.gather(*(server.ask() for _ in range(50)))
    assert len(server.answered) == SLOTS


@pytest.mark.parametrize("crops", [1, 10])
@in_virtual_time
async def test_a_lone_request_is_never_refused(crops: int) -> None:
    """On an engine that can never meet the bound each request that finds nobody is answered, late, and counted so."""
    server = Server(lambda n, _second, _chance: 0.2 * n)
    for _ in range(20):
        await server.ask(crops)
    assert (len(server.answered), server.refused_s) == (20, [])
    assert server.tally.slo == {OVER: 20 * crops}


@in_virtual_time
async def test_a_model_that_could_never_answer_in_time_accepts_again_once_it_can() -> None:
    """No memory of bad times locks it: the traffic itself, one at a time, finds out."""
    server = Server(lambda n, second, _chance: 0.2 if second < 5 else 0.004 * n)
    await server.poisson(100.0, 8.0)
    assert 0 < len(server.within(0, 4)) <= 4 / 0.2 + 1
    assert len(server.within(6, 8)) >= 150
    assert p99(server.within(6, 8)) <= BOUND_S


@in_virtual_time
async def test_ten_crops_take_ten_places() -> None:
    """Requests of ten beside single ones: each is answered whole and in time, or not at all."""
    server = Server(lambda n, _second, _chance: 0.001 + 0.001 * n)
    for _ in range(400):
        await asyncio.gather(*(server.ask(crops) for crops in (1, 10, 1, 10, 10)))
    assert p99([took for _, took in server.answered]) <= BOUND_S
    assert len(server.answered) > 800
    assert sum(server.tally.slo.values()) == sum(server.tally.outcomes.values()) == 400 * 32


@in_virtual_time
async def test_callers_in_more_of_a_hurry_than_the_bound_are_answered() -> None:
    """Who would have left by then is not run: an engine that runs for those answers nobody, one run after the other."""
    server = Server(steady, bound_s=0.1, patience_s=0.06)
    await server.poisson(2.0 * most_in_time(steady, 8), 6.0)
    assert len(server.within(1, 6)) / 5 >= 0.5 * most_in_time(steady, 8)
    assert sum(server.sizes) <= 1.01 * len(server.answered)
    assert server.tally.outcomes[ItemOutcome.EXPIRED] == server.expired > 100
    assert server.tally.slo[REFUSED] == len(server.refused_s)
    assert server.tally.slo[WITHIN] + server.tally.slo[OVER] == len(server.answered)


@in_virtual_time
async def test_two_models_with_long_runs_keep_the_device_at_work() -> None:
    """Runs of half the bound make whole queues too late at once: the other model goes on all the same."""
    device = FairScheduler(SLOTS, VirtualClock(), 0.02)
    servers = [Server(half_the_bound, device=device) for _ in range(2)]
    await asyncio.gather(*(server.poisson(100.0, 6.0) for server in servers))
    assert device.running == 0
    for server in servers:
        assert len(server.within(1, 6)) >= 50
        assert max(took for _, took in server.answered) <= 2 * BOUND_S


# --- the parts ---


def new_bound(slots: int = SLOTS) -> tuple[LatencyBound, ManualClock]:
    """A bound that has measured nothing, and its clock."""
    clock = ManualClock()
    return LatencyBound(BOUND_S, slots, clock=clock, metrics=Tally()), clock


def answer(bound: LatencyBound, clock: ManualClock, took_s: float, in_flight: int) -> None:
    """An answer that took so long, of a request that found so many images in flight, itself among them."""
    now = clock.now()
    with bound.watch(Admission(now, 1, in_flight, now + BOUND_S), OrderedDict(), []):
        clock.jump(took_s)


def test_the_batch_is_the_largest_that_ends_in_time() -> None:
    """By the measured time of each size, for every item in it; one that was admitted alone runs whatever remains."""
    bound, _ = new_bound()
    for n in (1, 2, 4, 8) * 4:
        bound.batch_ended(n, 0.005 + 0.005 * n)

    def cut(now: float, dues: Sequence[float]) -> int:
        """How many of the items that are due then run at once."""
        futures = [asyncio.Future[ItemResult[int]](loop=loop) for _ in dues]
        admissions = [Admission(at=10.0, count=1, in_flight=9, due=due) for due in dues]
        items = [QueuedItem(1, 60.0, 10.0, *one) for one in zip(admissions, futures, strict=True)]
        return len(bound.cut_batch(OrderedDict.fromkeys(items), now, 8))

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        moments = (10.0, 10.0199, 10.0301, 10.0399, 10.0401)
        assert [cut(now, [10.05] * 8) for now in moments] == [8, 5, 2, 1, 0]
        assert cut(11.0, [math.inf] * 8) == 8
        assert cut(10.0, [10.05, 10.05, 10.016, 10.05]) == 2, "the third would be late in a batch of three"


def test_late_answers_tighten_and_good_ones_loosen() -> None:
    """After answers over the bound the next are due earlier, at most by half; many good ones give it all back."""
    bound, clock = new_bound()

    def due_s() -> float:
        return bound.admit(Admission(0.0, 1, 2)).due

    answer(bound, clock, 0.001, 2)
    assert due_s() == pytest.approx(BOUND_S)
    for _ in range(5):
        answer(bound, clock, 0.06, 40)
    assert due_s() == pytest.approx(BOUND_S * 0.98**5)
    for _ in range(10_000):
        answer(bound, clock, 0.001, 2)
    assert due_s() == pytest.approx(BOUND_S)


def test_a_refusal_says_when_and_why() -> None:
    """The setting, and as many seconds as the excess should take."""
    bound, clock = new_bound(slots=1)
    for in_flight in range(1, 20):
        answer(bound, clock, 0.01 * in_flight, in_flight)
    with pytest.raises(SloUnattainable, match="within the 50 ms of --slo-ms") as caught:
        bound.admit(Admission(0.0, 1, 40))
    assert caught.value.retry_after_s == pytest.approx(0.4 - BOUND_S, rel=0.2)


def test_a_forecast_covers_its_quantile() -> None:
    """Of a thousand random times 95 in 100 stay below what was predicted, and not all of them."""
    chance = random.Random(2)
    forecast = QuantileForecast(0.95, 48)
    below = 0
    for _ in range(1000):
        n = chance.randint(1, 8)
        took_s = 0.01 * n * chance.lognormvariate(0, 0.3)
        below += took_s <= (forecast.predict(n) or math.inf)
        forecast.observe(n, took_s)
    assert 920 <= below <= 980


def test_a_forecast_starts_again_when_the_model_has_changed() -> None:
    """After a row of times that are all far off only those count; a few odd ones among good ones change little."""
    forecast = QuantileForecast(0.99, 12)
    for _ in range(300):
        forecast.observe(1, 0.01)
    for _ in range(12):
        forecast.observe(1, 0.05)
    assert forecast.predict(1) == pytest.approx(0.05)
    assert forecast.predict(2) == pytest.approx(0.1)
