"""The clock that the service reads time from and sets timers on. Tests use one that they advance by hand."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from service.common.errors import DeadlineExceeded


class Timer(Protocol):
    """A callback that has not run yet."""

    def cancel(self) -> None:
        """Never run it."""


class Clock(Protocol):
    """Monotonic seconds and one-shot timers."""

    def now(self) -> float:
        """Monotonic time in seconds."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` once `now()` has reached `when`."""


_EARLY_S = 0.002  # uvloop counts whole milliseconds, so that a timer may run 1.5 ms before its time


class LoopClock:
    """`time.monotonic`, and timers of the running event loop."""

    def now(self) -> float:
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the event loop at `when`, never before."""
        return asyncio.get_running_loop().call_later(max(0.0, when - self.now()) + _EARLY_S, callback)


@asynccontextmanager
async def timeout_at(deadline: float, clock: Clock) -> AsyncIterator[None]:
    """Runs the block until `clock` reaches `deadline` (seconds), then cancels it and raises DeadlineExceeded."""
    if deadline <= clock.now():
        raise DeadlineExceeded
    try:
        async with asyncio.timeout(None) as scope:
            timer = clock.call_at(deadline, lambda: scope.reschedule(0))  # 0: at once
            try:
                yield
            finally:
                timer.cancel()
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise DeadlineExceeded from error
