"""Both kinds of load, in virtual time and with connections that answer as scripted."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from loadgen import measurement
from loadgen.connection import Response
from loadgen.measurement import LoadLevel, LoadResult, MeasurementPlan, measure, poisson_gaps
from tests.virtual_time import in_virtual_time

ResponseTime = Callable[[float], float]
"""The response time in seconds of a request that is sent at that time since the start; inf for no response."""


@dataclass
class Bench:
    """Connections that answer after the scripted time, and what they sent."""

    response_time: ResponseTime
    failure: str = ""
    sent: list[int] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    closed: int = 0

    def connect(self, number: int) -> "ScriptedConnection":
        """A connection with that number."""
        return ScriptedConnection(self, number)

    async def measure(self, level: LoadLevel, plan: MeasurementPlan) -> LoadResult:
        """Measure with two images."""
        loop = asyncio.get_running_loop()
        self.start = loop.time()
        return await measure(self.connect, 2, level, plan, loop.time)


@dataclass
class ScriptedConnection:
    """Answers after the scripted time."""

    bench: Bench
    number: int

    async def send(self, image: int, timeout_s: float) -> Response:
        """Send it."""
        bench = self.bench
        bench.sent.append(image)
        bench.used.add(self.number)
        seconds = bench.response_time(asyncio.get_running_loop().time() - bench.start)
        await asyncio.sleep(min(seconds, timeout_s))
        return Response("timeout") if seconds > timeout_s else Response(bench.failure, b"a text")

    async def aclose(self) -> None:
        """Nothing is open."""
        self.bench.closed += 1


def stalled(begin: float, end: float, response_time: float) -> ResponseTime:
    """A server that answers nothing between two times since the start."""
    return lambda now: end - now + response_time if begin <= now < end else response_time


@in_virtual_time
async def test_closed_loop() -> None:
    """Two connections and 0.1 s per response are 20 a second, whatever was in the warm-up, with every figure right."""
    bench = Bench(lambda now: 0.5 if now < 0.9 else 0.1)
    result = await bench.measure(LoadLevel(connections=2), MeasurementPlan(warm_up_s=1, seconds=3))

    assert (result.connections, result.rate, result.errors, result.late_ms) == (2, None, {}, 0)
    assert result.per_second == pytest.approx(20, abs=0.7)
    assert result.requests == pytest.approx(60, abs=2)
    assert list(result.latency_ms) == ["mean", "p50", "p90", "p95", "p99", "max"]
    assert list(result.latency_ms.values()) == pytest.approx([100] * 6)
    assert bench.sent[:4] == [0, 1, 0, 1]
    assert (bench.used, bench.closed) == ({0, 1}, 2)


@in_virtual_time
async def test_a_stall_shows_at_a_rate() -> None:
    """A stall of one second in ten delays every request that arrives in it: p99 of the open loop shows that."""
    script, plan = stalled(3, 4, 0.01), MeasurementPlan(warm_up_s=0, seconds=10)
    closed = await Bench(script).measure(LoadLevel(connections=1), plan)
    bench = Bench(script)
    at_rate = await bench.measure(LoadLevel(rate=100), plan)

    assert closed.latency_ms["p99"] == pytest.approx(10)
    assert at_rate.latency_ms["p50"] == pytest.approx(10)
    assert 850 < at_rate.latency_ms["p99"] <= 1010
    assert 80 <= len(bench.used) <= 125  # about a hundred were in flight at the end of the stall


@in_virtual_time
async def test_waiting_for_a_connection_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all connections busy a due request waits for one, and the wait is part of its latency."""
    monkeypatch.setattr(measurement, "_MAX_CONNECTIONS", 1)
    bench = Bench(lambda _now: 0.2)
    result = await bench.measure(LoadLevel(rate=10), MeasurementPlan(warm_up_s=0, seconds=3))

    assert bench.used == {0}
    assert result.per_second == pytest.approx(5, abs=0.7)
    assert result.latency_ms["max"] == pytest.approx(1000 * (0.2 * result.requests - 3), abs=500)
    assert result.errors == {}


@in_virtual_time
async def test_late_generator() -> None:
    """If the generator sends late, the result says by how much, and it is in the latency."""
    bench = Bench(lambda _now: 0.001)
    loop = asyncio.get_running_loop()

    async def disturb() -> None:
        await asyncio.sleep(0.05)
        loop._selector.passed_s += 0.5  # type: ignore[attr-defined]

    disturbing = asyncio.ensure_future(disturb())
    result = await bench.measure(LoadLevel(rate=20), MeasurementPlan(warm_up_s=0, seconds=3))
    await disturbing

    assert 300 < result.late_ms <= 500
    assert "fell behind" in result.notes[0]
    assert result.latency_ms["max"] > 300


@pytest.mark.parametrize("level", [LoadLevel(connections=2), LoadLevel(rate=10)], ids=str)
def test_timeouts(level: LoadLevel) -> None:
    """Requests to a silent server time out and count as errors; the measurement ends in time."""

    @in_virtual_time
    async def run() -> None:
        bench = Bench(stalled(1, float("inf"), 0.01))
        result = await bench.measure(level, MeasurementPlan(warm_up_s=0, seconds=3, timeout_s=1))

        assert result.errors.keys() == {"timeout"}
        assert result.failed == 4 if level.connections else 10 < result.failed < 30
        assert result.requests > 0
        assert asyncio.get_running_loop().time() - bench.start <= 4.1

    run()


@in_virtual_time
async def test_failures() -> None:
    """Failures are counted by kind with an example, and are in no latency."""
    bench = Bench(lambda _now: 0.1, failure="status 429")
    result = await bench.measure(LoadLevel(connections=1), MeasurementPlan(warm_up_s=1, seconds=1))

    assert result.errors["status 429"] == pytest.approx(10, abs=1)
    assert result.error_examples == {"status 429": "a text"}
    assert (result.requests, result.per_second, result.latency_ms) == (0, 0, {})
    assert "there was no good answer" in result.notes


def test_poisson_gaps() -> None:
    """Arrivals have the rate and the spread of a Poisson process, and repeat for the same seed only."""
    gaps = np.array(list(itertools.islice(poisson_gaps(50, 1), 20_000)))

    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)
    assert np.mean(gaps > 2 / 50) == pytest.approx(np.exp(-2), rel=0.06)
    assert list(itertools.islice(poisson_gaps(50, 1), 9)) == gaps[:9].tolist()
    assert list(itertools.islice(poisson_gaps(50, 2), 9)) != gaps[:9].tolist()


def test_percentiles_occurred() -> None:
    """Of 1 to 100 ms the 99th percentile is 99 ms, and none lies between two latencies."""
    latency = measurement._latency_ms([number / 1000 for number in range(1, 101)])

    assert list(latency.values()) == pytest.approx([50.5, 50, 90, 95, 99, 100])
    assert measurement._latency_ms([0.001, 0.002])["p50"] == 1
