"""Loops and measurements, on a manual clock and with connections that answer as scripted."""

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from loadgen.connection import OK, TIMEOUT, Connection, OnResult, RequestResult
from loadgen.loops import ClosedLoop, LoadLoop, OpenLoop, at_random, in_turn, poisson_gaps
from loadgen.measurement import LoadMeasurement, LoadProgress, MeasurementPlan, cpu_wait_s
from loadgen.recorder import Recorder
from loadgen.results import LatencySummary, LevelResult, LoadLevel, Window, is_stable
from tests.fakes import ManualClock, settle

pytestmark = pytest.mark.anyio

ResponseTime = Callable[[float], float]
"""The response time in seconds of a request that is sent at that time; inf for no response."""


class ScriptedConnection(Connection):
    """Answers after the scripted time."""

    def __init__(self, on_result: OnResult, clock: ManualClock, response_time: ResponseTime) -> None:
        super().__init__([b"request"] * 2, on_result)
        self._clock = clock
        self._response_time = response_time
        self._sent = 0

    def _send(self, payload: bytes) -> None:
        self.connects = 1
        self._sent += 1
        number = self._sent
        seconds = self._response_time(self._clock.now())

        def answer() -> None:
            if self.busy and self._sent == number:
                self._finish(RequestResult(OK, timing=b"decode;dur=2, total;dur=4"))

        if seconds < float("inf"):
            self._clock.call_at(self._clock.now() + seconds, answer)

    def _abort(self) -> None:
        """An answer that comes later is ignored."""

    async def aclose(self) -> None:
        """Nothing is open."""


class Bench:
    """A measurement on a manual clock."""

    def __init__(self, response_time: ResponseTime) -> None:
        self.clock = ManualClock()
        self.recorder = Recorder([7, 11], ["small", "large"])
        self.stop = asyncio.Event()
        self.progress: list[LoadProgress] = []
        self.connections = 0
        self.cpu_wait = 0.0
        self._response_time = response_time

    def connect(self, _number: int, on_result: OnResult) -> Connection:
        """A new connection."""
        self.connections += 1
        return ScriptedConnection(on_result, self.clock, self._response_time)

    def closed(self, connections: int) -> ClosedLoop:
        """A closed loop."""
        return ClosedLoop(self.connect, in_turn(2), self.recorder, self.clock, connections)

    def open(self, gap_s: float, max_connections: int = 1000) -> OpenLoop:
        """An open loop with evenly spaced arrivals."""
        return OpenLoop(self.connect, in_turn(2), self.recorder, self.clock, max_connections, itertools.repeat(gap_s))

    async def measure(self, loop: LoadLoop, plan: MeasurementPlan) -> LevelResult:
        """The result, with the clock turned on until it is there."""
        running = asyncio.ensure_future(
            LoadMeasurement(
                LoadLevel(connections=1),
                loop,
                self.recorder,
                plan,
                clock=self.clock,
                stop=self.stop,
                on_progress=self.progress.append,
                cpu_wait_s=lambda: self.clock.now() * self.cpu_wait,
            ).run()
        )
        await settle()
        for _ in range(10_000):
            if running.done():
                break
            await self.clock.advance(0.05)
        return running.result()


async def test_closed_loop() -> None:
    """Two connections and 0.1 s per response are 20 a second, whatever was in the warm-up, with every figure right."""
    bench = Bench(lambda _now: 0.1)

    result = await bench.measure(bench.closed(2), MeasurementPlan(warm_up_s=1, seconds=3))

    assert result.requests == 60
    assert result.seconds == pytest.approx(3)
    assert result.requests_per_second == pytest.approx(20)
    assert (result.latency_ms.p50, result.latency_ms.max) == pytest.approx((100, 100))
    assert [window.requests for window in result.windows] == [20, 20, 20]
    assert (result.stable, result.errors, result.unanswered, result.reconnects) == (True, {}, 0, 0)
    assert result.bytes_sent == 30 * 7 + 30 * 11
    assert [(group.name, group.requests) for group in result.groups] == [("small", 30), ("large", 30)]
    assert result.server_ms is not None
    assert (result.server_ms.input, result.server_ms.total, result.server_ms.queue) == (2, 4, 0)
    assert bench.connections == 2
    assert {progress.warming_up for progress in bench.progress} == {True, False}


def stalled(begin: float, end: float, response_time: float) -> ResponseTime:
    """A server that answers nothing between two times since the start."""
    start = 1000.0  # of the manual clock

    def script(now: float) -> float:
        return start + end - now + response_time if begin <= now - start < end else response_time

    return script


async def test_a_stall_shows_at_a_rate() -> None:
    """A stall of one second in ten delays every request that arrives in it: p99 of the open loop shows that."""
    script, plan = stalled(3, 4, 0.01), MeasurementPlan(warm_up_s=0, seconds=10)
    of_open, of_closed = Bench(script), Bench(script)

    opened = await of_open.measure(of_open.open(0.01), plan)
    closed = await of_closed.measure(of_closed.closed(1), plan)

    assert closed.latency_ms.p99 == pytest.approx(10)  # one request of about 900 was slow
    assert closed.latency_ms.max == pytest.approx(1010, abs=15)
    assert opened.latency_ms.p50 == pytest.approx(10)
    assert opened.latency_ms.p90 == pytest.approx(10, abs=20)
    assert opened.latency_ms.p95 == pytest.approx(510, abs=30)
    assert opened.latency_ms.p99 == pytest.approx(910, abs=30)
    assert opened.valid
    assert 100 <= of_open.connections <= 110  # a hundred were in flight at the end of the stall


async def test_waiting_for_a_connection_counts() -> None:
    """With one connection, a due request waits for it, and the wait is part of its latency."""
    bench = Bench(lambda _now: 0.2)

    result = await bench.measure(bench.open(0.1, max_connections=1), MeasurementPlan(warm_up_s=0, seconds=3))

    assert bench.connections == 1
    assert result.requests_per_second == pytest.approx(5, abs=0.4)
    assert result.latency_ms.max == pytest.approx(3000, abs=400)  # the thirtieth was due at 3 s and answered at 6
    assert result.errors == {}
    assert any("28 requests waited for a connection" in note for note in result.notes)


async def test_too_high_a_rate() -> None:
    """At a rate above what can be sent, the event loop still runs other tasks."""
    bench = Bench(lambda _now: 0.0)
    loop = bench.open(1e-9)
    loop.start()
    bench.clock.jump(1)
    before = bench.clock.pending
    loop.send_due()

    assert bench.connections == 64
    assert bench.clock.pending > before  # the timer is set again
    loop.stop()
    assert bench.recorder.delays(0, 2000).size == 64


async def test_late_generator() -> None:
    """If the generator sends late, the result is not valid and says by how much."""
    bench = Bench(lambda _now: 0.001)

    async def disturb() -> None:
        await bench.clock.advance(0.05)
        bench.clock.jump(0.5)  # another process had the processor for half a second

    disturbing = asyncio.ensure_future(disturb())
    result = await bench.measure(bench.open(0.1), MeasurementPlan(warm_up_s=0, seconds=3))
    await disturbing

    assert not result.valid
    assert result.late_ms == pytest.approx(450, abs=60)
    assert "fell behind" in result.notes[0]
    assert result.latency_ms.max is not None
    assert result.latency_ms.max > 400  # it is in the latency as well


@pytest.mark.parametrize(("share", "noted"), [(0.4, True), (0.1, False)])
async def test_generator_without_a_processor(share: float, noted: bool) -> None:
    """Where other processes had the processor, the result says for how much of the time."""
    bench = Bench(lambda _now: 0.001)
    bench.cpu_wait = share
    result = await bench.measure(bench.closed(1), MeasurementPlan(warm_up_s=1, seconds=3))

    assert any("waited for a processor for 40% of the time" in note for note in result.notes) == noted
    assert result.valid


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how long a thread was ready and did not run")
def test_cpu_wait() -> None:
    """The wait for a processor grows while two processes share one."""
    before = cpu_wait_s()
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        end = time.monotonic() + 20
        while cpu_wait_s() < before + 0.05 and time.monotonic() < end:
            pass
        rival.kill()
        rival.wait()
    finally:
        os.sched_setaffinity(0, allowed)
    assert cpu_wait_s() >= before + 0.05


@pytest.mark.parametrize("kind", ["closed", "open"])
async def test_timeouts(kind: str) -> None:
    """Requests to a silent server time out and count as errors; the measurement ends in time."""
    bench = Bench(stalled(1, float("inf"), 0.01))
    loop = bench.closed(2) if kind == "closed" else bench.open(0.1, max_connections=3)

    result = await bench.measure(loop, MeasurementPlan(warm_up_s=0, seconds=3, timeout_s=1))

    assert result.errors == {TIMEOUT: 4 if kind == "closed" else 20}
    assert result.unanswered == 0
    assert result.requests > 0
    assert not result.stable


async def test_stopping_early() -> None:
    """A stop ends the measurement with the results so far, and says how many requests had no answer."""
    bench = Bench(stalled(1, float("inf"), 0.1))

    async def press() -> None:
        while bench.clock.now() < 1002:
            await settle()
        bench.stop.set()

    pressing = asyncio.ensure_future(press())
    result = await bench.measure(bench.closed(3), MeasurementPlan(warm_up_s=0, seconds=60))
    await pressing

    assert result.seconds == pytest.approx(2, abs=0.4)
    assert (result.requests, result.unanswered) == (30, 3)
    assert any("stopped early" in note for note in result.notes)


@pytest.mark.parametrize(
    ("response_times", "windows", "stable"),
    [
        ([0.5, 0.1, 0.1, 0.1, 0.1], 4, True),  # the first is warming up; then three agree
        ([0.1, 0.2, 0.1, 0.2, 0.1, 0.2], 6, False),
    ],
)
async def test_windows_until_stable(response_times: list[float], windows: int, stable: bool) -> None:
    """Windows are measured until three in a row agree, or up to the most; the figures are of the last three."""
    bench = Bench(lambda now: response_times[min(int((now - 1000) // 2), len(response_times) - 1)])

    result = await bench.measure(bench.closed(1), MeasurementPlan(warm_up_s=0, window_s=2, max_windows=6))

    assert len(result.windows) == windows
    assert result.stable is stable
    assert any("unstable" in note for note in result.notes) is not stable
    assert result.seconds == pytest.approx(6)
    assert result.requests == sum(window.requests for window in result.windows[-3:])
    assert result.bytes_sent == pytest.approx(9 * result.requests, abs=18)  # two images in turn, of 7 and 11 bytes


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([(500, 1), (100, 10), (105, 10), (110, 10)], True),
        ([(100, 10), (105, 10), (111, 10)], False),
        ([(100, 10), (100, 10.5), (100, 11.1)], False),
        ([(0, 0), (0, 0), (0, 0)], False),
    ],
)
async def test_stability(windows: list[tuple[float, float]], expected: bool) -> None:
    """Three windows agree where the highest is within a tenth of the lowest, in throughput and in mean latency."""
    measured = [Window(1, round(rate), rate, LatencySummary(mean=mean)) for rate, mean in windows]

    assert is_stable(measured, 0.1) is expected


def first(gaps: Iterator[float], count: int) -> list[float]:
    """The first of them."""
    return list(itertools.islice(gaps, count))


async def test_poisson_gaps() -> None:
    """Arrivals have the rate and the spread of a Poisson process, and repeat for the same seed only."""
    gaps = np.array(first(poisson_gaps(50, 1), 20_000))

    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)
    assert np.mean(gaps > 2 / 50) == pytest.approx(np.exp(-2), rel=0.06)
    assert first(poisson_gaps(50, 1), 9) == gaps[:9].tolist()
    assert first(poisson_gaps(50, 2), 9) != gaps[:9].tolist()


async def test_order_of_images() -> None:
    """In turn every image comes equally often; at random every image comes, in an order that the seed decides."""
    turn, random, again = in_turn(3), at_random(3, 5), at_random(3, 5)

    assert [turn() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    drawn = [random() for _ in range(50)]
    assert set(drawn) == {0, 1, 2}
    assert drawn == [again() for _ in range(50)]


async def test_percentiles_occurred() -> None:
    """Of 1 to 100 ms the 99th percentile is 99 ms, and none lies between two latencies."""
    latency = LatencySummary.of(np.arange(1, 101) / 1000)

    assert (latency.p50, latency.p90, latency.p95, latency.p99, latency.max) == pytest.approx((50, 90, 95, 99, 100))
    assert LatencySummary.of(np.array([0.001, 0.002])).p50 == 1
    assert LatencySummary.of(np.array([])).p99 is None
