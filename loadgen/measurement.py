"""Measures one load level: a warm-up, the measurement in windows, and the wait for requests still in flight."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadgen.loops import LoadLoop
from loadgen.recorder import Recorder
from loadgen.results import STABLE_WINDOWS, LevelResult, LoadLevel, Window, is_stable
from service.common.clock import Clock

_TICK_S = 0.25
_MAX_CPU = 0.9  # of a core: the generator is one thread
_MAX_CPU_WAIT = 0.25  # of the time
_SCHEDSTAT = Path("/proc/self/schedstat")
_MIN_LATE_S = 0.002
_MAX_LATE = 0.1  # of the latency at the same percentile


@dataclass(frozen=True, slots=True)
class MeasurementPlan:
    """How long to measure: `seconds`, or windows of `window_s` until they are stable, `max_windows` at most.

    `tolerance` is the fraction by which stable windows may differ. A request times out after `timeout_s`.
    """

    warm_up_s: float = 2.0
    seconds: float = 10.0
    window_s: float | None = None
    max_windows: int = 10
    tolerance: float = 0.1
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """A measurement that is running: seconds since its start, and its last second as a window."""

    level: LoadLevel
    warming_up: bool
    elapsed_s: float
    last: Window
    failed: int
    in_flight: int


OnProgress = Callable[[LoadProgress], None]


def cpu_wait_s() -> float:
    """Seconds that the first thread of this process waited for a CPU; 0 if Linux does not report it.

    The second number of /proc/PID/schedstat (Linux, Documentation/scheduler/sched-stats).
    """
    try:
        return int(_SCHEDSTAT.read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, LookupError, ValueError):
        return 0.0


@dataclass(frozen=True, slots=True)
class _Usage:
    """Counters of the loop and the generator at `time`, or their growth between two times."""

    time: float
    sent: int
    received: int
    cpu_s: float
    cpu_wait_s: float
    reconnects: int
    delayed: int

    def since(self, before: "_Usage") -> "_Usage":
        return _Usage(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))

    def share(self, seconds: float) -> float:
        return seconds / self.time if self.time > 0 else 0.0


class LoadMeasurement:
    """Runs a loop and measures it. Once `stop` is set it ends early, with the results so far."""

    def __init__(
        self,
        level: LoadLevel,
        loop: LoadLoop,
        recorder: Recorder,
        plan: MeasurementPlan,
        *,
        clock: Clock,
        stop: asyncio.Event,
        on_progress: OnProgress,
        cpu_wait_s: Callable[[], float] = cpu_wait_s,
    ) -> None:
        self._level = level
        self._loop = loop
        self._recorder = recorder
        self._plan = plan
        self._clock = clock
        self._stop = stop
        self._on_progress = on_progress
        self._cpu_wait_s = cpu_wait_s
        self._start = 0.0

    async def run(self) -> LevelResult:
        plan, clock = self._plan, self._clock
        self._start = clock.now()
        self._loop.start()
        try:
            await self._wait_until(self._start + plan.warm_up_s)
            usages, windows = await self._measure_windows()
            self._loop.stop()
            give_up = usages[-1].time + plan.timeout_s + 2 * _TICK_S
            while self._loop.in_flight and not self._stop.is_set() and clock.now() < give_up:
                await self._wait_until(min(clock.now() + _TICK_S, give_up))
            unanswered = self._loop.in_flight
        finally:
            self._loop.stop()
            await self._loop.aclose()
        first = 0 if plan.window_s is None else max(0, len(windows) - STABLE_WINDOWS)
        return self._result(usages[first], usages[-1], tuple(windows), unanswered)

    async def _measure_windows(self) -> tuple[list[_Usage], list[Window]]:
        """Returns the windows, and the usage at the start and after each of them."""
        plan = self._plan
        length = plan.seconds / STABLE_WINDOWS if plan.window_s is None else plan.window_s
        count = STABLE_WINDOWS if plan.window_s is None else plan.max_windows
        usages, windows = [self._usage()], list[Window]()
        while len(windows) < count and not self._stop.is_set():
            await self._wait_until(usages[0].time + len(usages) * length)
            usages.append(self._usage())
            windows.append(self._recorder.window(usages[-2].time, usages[-1].time))
            if plan.window_s is not None and is_stable(windows, plan.tolerance):
                break
        return usages, windows

    def _usage(self) -> _Usage:
        recorder, loop = self._recorder, self._loop
        return _Usage(
            time=self._clock.now(),
            sent=recorder.sent,
            received=recorder.received,
            cpu_s=time.process_time(),
            cpu_wait_s=self._cpu_wait_s(),
            reconnects=loop.reconnects,
            delayed=loop.delayed,
        )

    async def _wait_until(self, end: float) -> None:
        """Wait; at each tick, time out requests and report progress."""
        while (now := self._clock.now()) < end and not self._stop.is_set():
            tick = asyncio.Event()
            self._clock.call_at(min(end, now + _TICK_S), tick.set)
            await tick.wait()
            now = self._clock.now()
            self._loop.expire(now - self._plan.timeout_s)
            elapsed_s = now - self._start
            self._on_progress(
                LoadProgress(
                    level=self._level,
                    warming_up=elapsed_s <= self._plan.warm_up_s,
                    elapsed_s=elapsed_s,
                    last=self._recorder.window(max(self._start, now - 1), now),
                    failed=self._recorder.failed,
                    in_flight=self._loop.in_flight,
                )
            )

    def _result(self, before: _Usage, after: _Usage, windows: tuple[Window, ...], unanswered: int) -> LevelResult:
        period, used, recorder = (before.time, after.time), after.since(before), self._recorder
        whole, latency, errors = recorder.window(*period), recorder.latency(*period), recorder.errors(*period)
        delays = recorder.delays(*period)
        late_s = float(np.percentile(delays, 99)) if delays.size else None
        stable = is_stable(windows, self._plan.tolerance)
        doubts = _doubts(late_s, latency.p99, used)
        if not whole.requests:
            doubts.append("there was no good answer")
        notes = list(doubts)
        if (cpu_wait := used.share(used.cpu_wait_s)) > _MAX_CPU_WAIT:
            notes.append(
                f"the generator itself waited for a processor for {cpu_wait:.0%} of the time, which is in the latency: "
                "leave it one, or run it on another machine"
            )
        if not stable:
            notes.append(f"unstable: the last {STABLE_WINDOWS} windows differ by more than {self._plan.tolerance:.0%}")
        if used.delayed:
            notes.append(f"{used.delayed} requests waited for a connection, all being busy; it is in their latency")
        if self._stop.is_set():
            notes.append(f"stopped early: {unanswered} requests had no answer yet")
        return LevelResult(
            connections=self._level.connections,
            rate=self._level.rate,
            seconds=whole.seconds,
            requests=whole.requests,
            requests_per_second=whole.requests_per_second,
            latency_ms=latency,
            errors=errors,
            error_examples={failure: recorder.example(failure) for failure in errors},
            unanswered=unanswered,
            stable=stable,
            valid=not doubts,
            notes=tuple(notes),
            windows=windows,
            groups=recorder.groups(*period),
            server_ms=recorder.server_timing(*period),
            bytes_sent=used.sent,
            bytes_received=used.received,
            reconnects=used.reconnects,
            late_ms=None if late_s is None else late_s * 1000,
            cpu_s=used.cpu_s,
        )


def _doubts(late_s: float | None, p99_ms: float | None, used: _Usage) -> list[str]:
    """Why the results may be limited by the generator and not by the server."""
    doubts = []
    if late_s is not None and late_s > max(_MIN_LATE_S, _MAX_LATE * (p99_ms or 0.0) / 1000):
        doubts.append(f"the generator fell behind: one request in a hundred was sent {late_s * 1000:.1f} ms late")
    if (cpu := used.share(used.cpu_s)) > _MAX_CPU:
        doubts.append(f"the generator itself was busy for {cpu:.0%} of the time: the server may be faster than this")
    return doubts
