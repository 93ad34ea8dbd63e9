"""Measures one load: warm-up, the measurement itself in windows, and the wait for what is still under way."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadgen.loops import Loop
from loadgen.recorder import Recorder
from loadgen.results import STEADY, Point, Window, steady
from service.common.clock import Clock

_TICK_S = 0.25
_BUSY = 0.9  # of a core: the generator is one thread
_STARVED = 0.25  # of the time, ready but without a processor
_SCHEDSTAT = Path("/proc/self/schedstat")
_LATE_S = 0.002
_LATE_SHARE = 0.1  # of the latency at the same percentile


@dataclass(frozen=True, slots=True)
class Load:
    """So many connections that never pause, or a rate of arrivals per second; the other is None."""

    connections: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        """For a person."""
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.connections} connection{'s' if self.connections != 1 else ''}"


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure: `seconds`, or windows of `window_s` until they are steady, `max_windows` at most.

    `tolerance` is by how much steady windows may differ, as a fraction; a request is given up after `timeout_s`.
    """

    warm_up_s: float = 2.0
    seconds: float = 10.0
    window_s: float | None = None
    max_windows: int = 10
    tolerance: float = 0.1
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a measurement under way: seconds since it began and good answers in the last of them."""

    load: Load
    warming_up: bool
    elapsed_s: float
    last: Window
    failed: int
    under_way: int


Watch = Callable[[Progress], None]

Waited = Callable[[], float]
"""Seconds that the generator has waited so far for a processor that others had."""


def waited_for_processor() -> float:
    """Seconds that the calling process's first thread was ready to run and did not; 0 where Linux does not say.

    The second number of /proc/PID/schedstat (Linux, Documentation/scheduler/sched-stats).
    """
    try:
        return int(_SCHEDSTAT.read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, LookupError, ValueError):
        return 0.0


@dataclass(frozen=True, slots=True)
class _Volume:
    """What has been used so far."""

    sent: int
    received: int
    cpu_s: float
    starved_s: float
    connects: int
    lines: int
    waited: int

    def since(self, before: "_Volume") -> "_Volume":
        return _Volume(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a measurement gave, besides the requests themselves."""

    begin: float
    end: float
    windows: tuple[Window, ...]
    used: _Volume
    unanswered: int


class Measurement:
    """One run of a loop. `stop` set ends it early, with the figures so far."""

    def __init__(
        self,
        load: Load,
        loop: Loop,
        recorder: Recorder,
        plan: Plan,
        *,
        clock: Clock,
        stop: asyncio.Event,
        watch: Watch,
        starved: Waited = waited_for_processor,
    ) -> None:
        self._load = load
        self._loop = loop
        self._recorder = recorder
        self._plan = plan
        self._clock = clock
        self._stop = stop
        self._watch = watch
        self._starved = starved
        self._start = 0.0

    async def run(self) -> Point:
        """Ask, measure and close the connections."""
        plan, clock = self._plan, self._clock
        self._start = clock.now()
        self._loop.start()
        try:
            await self._until(self._start + plan.warm_up_s)
            marks, windows = await self._windows()
            first = 0 if plan.window_s is None else max(0, len(windows) - STEADY)
            (begin, before), (end, after) = marks[first], marks[-1]
            self._loop.stop()
            give_up = end + plan.timeout_s + 2 * _TICK_S
            while self._loop.under_way and not self._stop.is_set() and clock.now() < give_up:
                await self._until(min(clock.now() + _TICK_S, give_up))
            unanswered = self._loop.under_way
        finally:
            self._loop.stop()
            await self._loop.aclose()
        return self._point(_Taken(begin, end, tuple(windows), after.since(before), unanswered))

    def _volume(self) -> _Volume:
        recorder, loop = self._recorder, self._loop
        cpu_s, starved_s = time.process_time(), self._starved()
        return _Volume(recorder.sent, recorder.received, cpu_s, starved_s, *loop.connects, loop.waited)

    async def _windows(self) -> tuple[list[tuple[float, _Volume]], list[Window]]:
        """The windows, and at the beginning and after each of them the time and what had been used."""
        plan = self._plan
        length = plan.seconds / STEADY if plan.window_s is None else plan.window_s
        count = STEADY if plan.window_s is None else plan.max_windows
        marks, windows = [(self._clock.now(), self._volume())], list[Window]()
        while len(windows) < count and not self._stop.is_set():
            await self._until(marks[0][0] + len(marks) * length)
            marks.append((self._clock.now(), self._volume()))
            windows.append(self._recorder.window(marks[-2][0], marks[-1][0]))
            if plan.window_s is not None and steady(windows, plan.tolerance):
                break
        return marks, windows

    async def _until(self, when: float) -> None:
        """Wait, and every now and then give up what takes too long, and say how things are."""
        while (now := self._clock.now()) < when and not self._stop.is_set():
            await self._sleep(min(when, now + _TICK_S))
            now = self._clock.now()
            self._loop.expire(now - self._plan.timeout_s)
            measured = now - self._start - self._plan.warm_up_s
            last = self._recorder.window(max(self._start, now - 1), now)
            under_way, failed = self._loop.under_way, self._recorder.failed
            self._watch(Progress(self._load, measured <= 0, now - self._start, last, failed, under_way))

    async def _sleep(self, when: float) -> None:
        woken = asyncio.Event()
        timer = self._clock.call_at(when, woken.set)
        stopped, waking = asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(woken.wait())
        try:
            await asyncio.wait({stopped, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            stopped.cancel()
            waking.cancel()

    def _point(self, taken: _Taken) -> Point:
        period = taken.begin, taken.end
        recorder, whole = self._recorder, self._recorder.window(*period)
        errors, latency = recorder.errors(*period), recorder.latency(*period)
        late = recorder.late(*period)
        late_s = float(np.percentile(late, 99)) if late.size else None
        cpu = taken.used.cpu_s / whole.seconds if whole.seconds > 0 else 0.0
        starved = taken.used.starved_s / whole.seconds if whole.seconds > 0 else 0.0
        invalid = self._doubts(late_s, latency.p99, cpu)
        if not whole.requests:
            invalid.append("there was no good answer")
        stable = steady(taken.windows, self._plan.tolerance)
        notes = list(invalid)
        if starved > _STARVED:
            notes.append(
                f"the generator itself waited for a processor for {starved:.0%} of the time, which is in the latency: "
                "leave it one, or run it on another machine"
            )
        if not stable:
            notes.append(f"unstable: the last {STEADY} windows differ by more than {self._plan.tolerance:.0%}")
        if taken.used.waited:
            notes.append(
                f"{taken.used.waited} requests waited for a connection, all being busy; it is in their latency"
            )
        if self._stop.is_set():
            notes.append(f"stopped early: {taken.unanswered} requests had no answer yet")
        return Point(
            connections=self._load.connections,
            rate=self._load.rate,
            seconds=whole.seconds,
            requests=whole.requests,
            requests_per_second=whole.requests_per_second,
            latency_ms=latency,
            errors=errors,
            error_examples={failure: recorder.example(failure) for failure in errors},
            unanswered=taken.unanswered,
            stable=stable,
            valid=not invalid,
            notes=tuple(notes),
            windows=taken.windows,
            groups=recorder.grouped(*period),
            server_ms=recorder.server(*period),
            bytes_sent=taken.used.sent,
            bytes_received=taken.used.received,
            reconnects=taken.used.connects - taken.used.lines,
            late_ms=None if late_s is None else late_s * 1000,
            cpu_s=taken.used.cpu_s,
        )

    @staticmethod
    def _doubts(late_s: float | None, p99_ms: float | None, cpu: float) -> list[str]:
        """Why the figures are rather those of the generator than of the server."""
        doubts = []
        if late_s is not None and late_s > max(_LATE_S, _LATE_SHARE * (p99_ms or 0.0) / 1000):
            doubts.append(f"the generator fell behind: one request in a hundred was sent {late_s * 1000:.1f} ms late")
        if cpu > _BUSY:
            doubts.append(
                f"the generator itself was busy for {cpu:.0%} of the time: the server may be faster than this"
            )
        return doubts
