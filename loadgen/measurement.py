"""Measures a load: a closed loop sends when a response comes, an open loop sends at random times."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from loadgen.connection import Connect, Connection, Response

_MAX_CONNECTIONS = 1000  # of a rate
_MAX_CPU = 0.9  # of a core: the generator is one thread
_MIN_LATE_MS = 2.0
_MAX_LATE = 0.1  # of the latency at the same percentile


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """A number of connections that never pause, or a rate of arrivals per second; the other is None."""

    connections: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.connections} connection{'s' if self.connections != 1 else ''}"


@dataclass(frozen=True, slots=True)
class MeasurementPlan:
    """How long a load lasts before it is measured and while it is, and when a request times out, in seconds."""

    warm_up_s: float = 2.0
    seconds: float = 10.0
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What was measured under one load, given by `connections` or by `rate`.

    `per_second` counts the successful responses that came during the measurement. `requests` counts the successful
    requests that started in it, even if they ended later, and `latency_ms` is their mean, p50, p90, p95, p99 and max,
    empty without any; a percentile is a latency that occurred. `errors` counts the failed requests that were in flight
    in it by kind, so that refusals (429) stand apart, and `error_examples` has a text of each. `late_ms` is the 99th
    percentile of how late requests were sent at a rate, and `cpu_s` the CPU time of the generator. `notes` say why the
    figures may be those of the generator.
    """

    connections: int | None
    rate: float | None
    per_second: float
    requests: int
    latency_ms: dict[str, float]
    errors: dict[str, int]
    error_examples: dict[str, str]
    late_ms: float
    cpu_s: float
    notes: list[str]

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


async def measure(
    connect: Connect, images: int, level: LoadLevel, plan: MeasurementPlan, now: Callable[[], float] = time.monotonic
) -> LoadResult:
    """Put a load on the servers of `connect`, with so many images in turn. `now` is in seconds."""
    measurement = _Measurement(images, plan, now)
    count = _MAX_CONNECTIONS if level.connections is None else level.connections
    connections = [connect(number) for number in range(count)]
    try:
        async with asyncio.TaskGroup() as tasks:
            measuring = tasks.create_task(measurement.cpu_s())
            if level.rate is None:
                for connection in connections:
                    tasks.create_task(measurement.send_closed(connection))
            else:
                tasks.create_task(measurement.send_open(connections, poisson_gaps(level.rate)))
    finally:
        for connection in connections:
            await connection.aclose()
    return measurement.result(level, measuring.result())


def poisson_gaps(rate: float, seed: int = 0) -> Iterator[float]:
    """Seconds between the arrivals of a Poisson process with `rate` arrivals per second."""
    generator = random.Random(seed)
    while True:
        yield generator.expovariate(rate)


class _Measurement:
    """Sends requests until its end, and records those of the time after the warm-up."""

    def __init__(self, images: int, plan: MeasurementPlan, now: Callable[[], float]) -> None:
        self._plan = plan
        self._now = now
        self._begin = now() + plan.warm_up_s
        self._end = self._begin + plan.seconds
        self._images = itertools.cycle(range(images))
        self._answers = 0
        self._latencies_s: list[float] = []
        self._late_s: list[float] = []
        self._errors: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    async def send_closed(self, connection: Connection) -> None:
        """Send the next request as soon as there is a response."""
        while (now := self._now()) < self._end:
            await self._send(connection, now)

    async def send_open(self, connections: list[Connection], gaps: Iterator[float]) -> None:
        """Send a request after each of `gaps`, in seconds, on as many connections as that takes.

        Latency counts from when a request is due (or sent, if its timer came a moment before), not from when it could
        be sent: a server that stalls shows in the latency of all requests that fell due meanwhile. To leave these out
        is known as coordinated omission. With all connections busy a due request waits for one.
        """
        idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for connection in reversed(connections):
            idle.put_nowait(connection)

        async def arrive(due: float) -> None:
            now = self._now()
            if self._begin <= due < self._end:
                self._late_s.append(max(0.0, now - due))
            connection = await idle.get()
            await self._send(connection, min(now, due))
            idle.put_nowait(connection)

        due = self._now()
        async with asyncio.TaskGroup() as arrivals:
            while (due := due + next(gaps)) < self._end:
                await asyncio.sleep(max(0.0, due - self._now()))
                arrivals.create_task(arrive(due))

    async def _send(self, connection: Connection, started: float) -> None:
        left_s = started + self._plan.timeout_s - self._now()
        response = await connection.send(next(self._images), left_s) if left_s > 0 else Response("timeout")
        ended = self._now()
        if response.failure:
            if started < self._end and ended >= self._begin:
                self._errors[response.failure] += 1
                self._examples.setdefault(response.failure, response.text)
            return
        if self._begin <= started < self._end:
            self._latencies_s.append(ended - started)
        if self._begin <= ended < self._end:
            self._answers += 1

    async def cpu_s(self) -> float:
        """The CPU time of this process during the measurement."""
        await asyncio.sleep(self._plan.warm_up_s)
        before = time.process_time()
        await asyncio.sleep(self._plan.seconds)
        return time.process_time() - before

    def result(self, level: LoadLevel, cpu_s: float) -> LoadResult:
        latency, late_ms = _latency_ms(self._latencies_s), _latency_ms(self._late_s).get("p99", 0.0)
        notes = []
        if late_ms > max(_MIN_LATE_MS, _MAX_LATE * latency.get("p99", 0.0)):
            notes.append(f"the generator fell behind: one request in a hundred was sent {late_ms:.1f} ms late")
        if (share := cpu_s / self._plan.seconds) > _MAX_CPU:
            notes.append(
                f"the generator itself was busy for {share:.0%} of the time: the server may be faster than this"
            )
        if not latency:
            notes.append("there was no good answer")
        return LoadResult(
            connections=level.connections,
            rate=level.rate,
            per_second=self._answers / self._plan.seconds,
            requests=len(self._latencies_s),
            latency_ms=latency,
            errors=dict(self._errors.most_common()),
            error_examples=self._examples,
            late_ms=late_ms,
            cpu_s=cpu_s,
            notes=notes,
        )


def _latency_ms(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    found = np.percentile(seconds, (50, 90, 95, 99, 100), method="inverted_cdf") * 1000
    names = ("p50", "p90", "p95", "p99", "max")
    return {"mean": float(np.mean(seconds)) * 1000, **dict(zip(names, found.tolist(), strict=True))}
