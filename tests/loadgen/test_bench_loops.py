"""How load is made and measured, on a clock turned by hand and lines that answer when they are told."""

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from loadgen.connection import OK, TIMEOUT, Done, Line, Outcome
from loadgen.loops import ClosedLoop, OpenLoop, at_random, in_turn, poisson
from loadgen.measurement import Load, Measurement, Plan, Progress, waited_for_processor
from loadgen.recorder import Recorder
from loadgen.results import Latency, Point, Window, steady
from tests.fakes import ManualClock, settle

pytestmark = pytest.mark.anyio

Takes = Callable[[float], float]
"""How many seconds the answer takes to a request that is sent at that time; inf for never."""


class ScriptedLine(Line):
    """Answers after as long as the script says."""

    def __init__(self, done: Done, clock: ManualClock, takes: Takes) -> None:
        super().__init__([b"request"] * 2, done)
        self._clock = clock
        self._takes = takes
        self._sent = 0

    def _send(self, payload: bytes) -> None:
        self.connects = 1
        self._sent += 1
        number = self._sent
        seconds = self._takes(self._clock.now())

        def answer() -> None:
            if self.busy and self._sent == number:
                self.finish(Outcome(OK, timing=b"decode;dur=2, total;dur=4"))

        if seconds < float("inf"):
            self._clock.call_at(self._clock.now() + seconds, answer)

    def give_up(self) -> None:
        """As the others do."""
        self.finish(Outcome(TIMEOUT))

    async def aclose(self) -> None:
        """Nothing is open."""


class Bench:
    """A measurement on a clock that is turned by hand."""

    def __init__(self, takes: Takes) -> None:
        self.clock = ManualClock()
        self.recorder = Recorder([7, 11], ["small", "large"])
        self.stop = asyncio.Event()
        self.seen: list[Progress] = []
        self.lines = 0
        self.starved = 0.0
        self._takes = takes

    def line(self, _number: int, done: Done) -> Line:
        """A new one."""
        self.lines += 1
        return ScriptedLine(done, self.clock, self._takes)

    def closed(self, connections: int) -> ClosedLoop:
        """So many that never pause."""
        return ClosedLoop(self.line, connections, in_turn(2), self.recorder, self.clock)

    def open(self, gaps: Iterator[float], bound: int = 1000) -> OpenLoop:
        """Arrivals with these gaps."""
        return OpenLoop(self.line, gaps, in_turn(2), self.recorder, self.clock, bound)

    async def measure(self, loop: ClosedLoop | OpenLoop, plan: Plan, load: Load) -> Point:
        """The point, with time turned on until it is there."""

        running = asyncio.ensure_future(
            Measurement(
                load,
                loop,
                self.recorder,
                plan,
                clock=self.clock,
                stop=self.stop,
                watch=self.seen.append,
                starved=lambda: self.clock.now() * self.starved,
            ).run()
        )
        await settle()
        for _ in range(10_000):
            if running.done():
                break
            await self.clock.advance(0.05)
        return running.result()


def every(gap: float) -> Iterator[float]:
    """Arrivals that are evenly spaced."""
    return itertools.repeat(gap)


async def test_closed_loop_by_hand() -> None:
    """Two connections, 0.1 s an answer: 20 a second, whatever was in the warm-up, with every figure as it must be."""
    bench = Bench(lambda _now: 0.1)

    point = await bench.measure(bench.closed(2), Plan(warm_up_s=1, seconds=3), Load(connections=2))

    assert point.requests == 60
    assert point.seconds == pytest.approx(3)
    assert point.requests_per_second == pytest.approx(20)
    assert (point.latency_ms.p50, point.latency_ms.max) == pytest.approx((100, 100))
    assert [window.requests for window in point.windows] == [20, 20, 20]
    assert (point.stable, point.errors, point.unanswered, point.reconnects) == (True, {}, 0, 0)
    assert point.bytes_sent == 30 * 7 + 30 * 11
    assert [(group.name, group.requests) for group in point.groups] == [("small", 30), ("large", 30)]
    assert point.server_ms is not None
    assert (point.server_ms.input, point.server_ms.total, point.server_ms.queue) == (2, 4, 0)
    assert bench.lines == 2
    assert {progress.warming_up for progress in bench.seen} == {True, False}


def stalled(began: float, until: float, takes: float) -> Takes:
    """A server that answers nothing between two times since the start, and `takes` seconds otherwise."""
    first = 1000.0  # the manual clock's start

    def script(now: float) -> float:
        return first + until - now + takes if began <= now - first < until else takes

    return script


async def test_a_stall_shows_at_a_rate() -> None:
    """A server that stalls for a second of ten is slow for all who came meanwhile: open p99 says so, closed p99 not."""
    script = stalled(3, 4, 0.01)
    of_rate, of_line = Bench(script), Bench(script)

    at_rate = await of_rate.measure(of_rate.open(every(0.01)), Plan(warm_up_s=0, seconds=10), Load(rate=100))
    by_line = await of_line.measure(of_line.closed(1), Plan(warm_up_s=0, seconds=10), Load(connections=1))

    assert by_line.latency_ms.p99 == pytest.approx(10)  # one request in about 900 was slow: that is all it saw
    assert by_line.latency_ms.max == pytest.approx(1010, abs=15)
    assert at_rate.latency_ms.p50 == pytest.approx(10)
    assert at_rate.latency_ms.p90 == pytest.approx(10, abs=20)
    assert at_rate.latency_ms.p95 == pytest.approx(510, abs=30)
    assert at_rate.latency_ms.p99 == pytest.approx(910, abs=30)
    assert at_rate.valid


async def test_waiting_for_a_line_counts() -> None:
    """With one line only, what is due waits for it, and the wait is part of its latency."""
    bench = Bench(lambda _now: 0.2)

    point = await bench.measure(bench.open(every(0.1), bound=1), Plan(warm_up_s=0, seconds=3), Load(rate=10))

    assert bench.lines == 1
    assert point.requests_per_second == pytest.approx(5, abs=0.4)
    assert point.latency_ms.max == pytest.approx(3000, abs=400)  # the thirtieth came after 3 s and was answered at 6
    assert point.errors == {}
    assert any("28 requests waited for a connection" in note for note in point.notes)


async def test_lines_are_as_many_as_it_takes() -> None:
    """At 100 a second and 0.1 s an answer about ten requests are under way at once, and so many lines are opened."""
    bench = Bench(lambda _now: 0.1)

    point = await bench.measure(bench.open(every(0.01)), Plan(warm_up_s=1, seconds=2), Load(rate=100))

    assert 9 <= bench.lines <= 12
    assert point.requests_per_second == pytest.approx(100, rel=0.1)
    assert point.notes == ()


async def test_a_timer_that_comes_early() -> None:
    """A timer within half a millisecond of what is due sends it, and its latency counts from there, not from later."""
    bench = Bench(lambda _now: 0.01)
    loop = bench.open(every(0.1))
    loop.start()
    await bench.clock.advance(0.0996)
    bench.clock.call_at(bench.clock.now(), loop.arrive)
    await bench.clock.advance(0)
    assert bench.lines == 1
    await bench.clock.advance(0.02)
    loop.stop()

    assert bench.recorder.latency(1000, 1001).max == pytest.approx(10)


async def test_too_high_a_rate() -> None:
    """At a rate that nobody can send the event loop still turns, and the point says that it is not valid."""
    bench = Bench(lambda _now: 0.0)
    loop = bench.open(every(1e-9))
    loop.start()
    bench.clock.jump(1)
    before = bench.clock.pending
    loop.arrive()

    assert bench.lines == 64
    assert bench.clock.pending > before  # it comes again
    loop.stop()
    assert bench.recorder.late(0, 2000).size == 64


async def test_a_generator_that_falls_behind_says_so() -> None:
    """Where the generator itself sent late, the point is not valid and says by how much."""
    bench = Bench(lambda _now: 0.001)
    loop = bench.open(every(0.1))

    async def disturb() -> None:
        await bench.clock.advance(0.05)
        bench.clock.jump(0.5)  # something else had the processor for half a second

    disturbing = asyncio.ensure_future(disturb())
    point = await bench.measure(loop, Plan(warm_up_s=0, seconds=3), Load(rate=10))
    await disturbing

    assert not point.valid
    assert point.late_ms == pytest.approx(450, abs=60)
    assert "fell behind" in point.notes[0]
    assert point.latency_ms.max is not None
    assert point.latency_ms.max > 400  # it is in the latency all the same


@pytest.mark.parametrize(("share", "noted"), [(0.4, True), (0.1, False)])
async def test_a_generator_without_a_processor_says_so(share: float, noted: bool) -> None:
    """Where others had the processor while the generator was ready, the point says for how much of the time."""
    bench = Bench(lambda _now: 0.001)
    bench.starved = share
    point = await bench.measure(bench.closed(1), Plan(warm_up_s=1, seconds=3), Load(connections=1))

    assert any("waited for a processor for 40% of the time" in note for note in point.notes) == noted
    assert point.valid


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long a thread was ready and did not run")
def test_waiting_for_a_processor_is_read() -> None:
    """The time that this process has waited never shrinks, and grows where two threads share one processor."""
    before = waited_for_processor()
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        end = time.monotonic() + 20
        while waited_for_processor() < before + 0.05 and time.monotonic() < end:
            pass
        rival.kill()
        rival.wait()
    finally:
        os.sched_setaffinity(0, allowed)
    assert waited_for_processor() >= before + 0.05


@pytest.mark.parametrize("kind", ["closed", "open"])
async def test_a_request_without_an_answer_is_given_up(kind: str) -> None:
    """A server that falls silent gives timeouts, which are errors; the measurement ends all the same."""
    bench = Bench(stalled(1, float("inf"), 0.01))
    loop = bench.closed(2) if kind == "closed" else bench.open(every(0.1), bound=3)

    plan = Plan(warm_up_s=0, seconds=3, timeout_s=1)
    point = await bench.measure(loop, plan, Load(connections=2) if kind == "closed" else Load(rate=10))

    assert point.errors == {TIMEOUT: 4 if kind == "closed" else 20}
    assert point.unanswered == 0
    assert point.requests > 0
    assert not point.stable


async def test_stopping_early() -> None:
    """Ctrl-C ends it with what was measured so far, and says what had no answer."""
    bench = Bench(stalled(1, float("inf"), 0.1))

    async def press() -> None:
        while bench.clock.now() < 1002:
            await settle()
        bench.stop.set()

    pressing = asyncio.ensure_future(press())
    point = await bench.measure(bench.closed(3), Plan(warm_up_s=0, seconds=60), Load(connections=3))
    await pressing

    assert point.seconds == pytest.approx(2, abs=0.4)
    assert (point.requests, point.unanswered) == (30, 3)
    assert any("stopped early" in note for note in point.notes)


@pytest.mark.parametrize(
    ("rates", "windows", "stable"),
    [
        ([0.5, 0.1, 0.1, 0.1, 0.1], 4, True),  # the first is warming up; then three agree
        ([0.1, 0.2, 0.1, 0.2, 0.1, 0.2], 6, False),
    ],
)
async def test_windows_until_steady(rates: list[float], windows: int, stable: bool) -> None:
    """Windows are measured until three in a row agree, the most otherwise; the figures are of the last three."""
    bench = Bench(lambda now: rates[min(int((now - 1000) // 2), len(rates) - 1)])

    plan = Plan(warm_up_s=0, window_s=2, max_windows=6)
    point = await bench.measure(bench.closed(1), plan, Load(connections=1))

    assert len(point.windows) == windows
    assert point.stable is stable
    assert any("unstable" in note for note in point.notes) is not stable
    assert point.seconds == pytest.approx(6)
    assert point.requests == sum(window.requests for window in point.windows[-3:])
    assert point.bytes_sent == pytest.approx(9 * point.requests, abs=18)  # two images in turn, of 7 and 11 bytes


def window(rate: float, mean: float) -> Window:
    """A window with these figures."""
    return Window(1, round(rate), rate, Latency(mean=mean))


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([(500, 1), (100, 10), (105, 10), (110, 10)], True),
        ([(100, 10), (105, 10), (111, 10)], False),
        ([(100, 10), (100, 10.5), (100, 11.1)], False),
        ([(100, 10), (100, 10)], False),
        ([(0, 0), (0, 0), (0, 0)], False),
    ],
)
async def test_what_steady_is(windows: list[tuple[float, float]], expected: bool) -> None:
    """Three windows agree where the most is within a tenth of the least, in throughput and in latency."""
    assert steady([window(*one) for one in windows], 0.1) is expected


async def test_arrivals() -> None:
    """Arrivals have the rate, the spread of a Poisson process, and come again for the same seed only."""
    gaps = np.array(list(itertools.islice(poisson(50, 1), 20_000)))

    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)
    assert np.mean(gaps > 2 / 50) == pytest.approx(np.exp(-2), rel=0.06)
    assert list(itertools.islice(poisson(50, 1), 9)) == gaps[:9].tolist()
    assert list(itertools.islice(poisson(50, 2), 9)) != gaps[:9].tolist()


async def test_which_image_is_next() -> None:
    """In turn each comes as often; at random all come, the same ones for the same seed."""
    turn, dice, again = in_turn(3), at_random(3, 5), at_random(3, 5)

    assert [turn() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    drawn = [dice() for _ in range(50)]
    assert set(drawn) == {0, 1, 2}
    assert drawn == [again() for _ in range(50)]


async def test_percentiles_are_times_that_occurred() -> None:
    """Of 1 to 100 ms the 99th percentile is 99 ms, and none lies between two."""
    latency = Latency.of(np.arange(1, 101) / 1000)

    assert (latency.p50, latency.p90, latency.p95, latency.p99, latency.max) == pytest.approx((50, 90, 95, 99, 100))
    assert Latency.of(np.array([0.001, 0.002])).p50 == 1
    assert Latency.of(np.array([])).p99 is None
