"""The clock that the service reads and sets timers on; tests replace it by one they turn by hand."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


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


class LoopClock:
    """`time.monotonic`, and timers of the running event loop."""

    def now(self) -> float:
        """Monotonic time in seconds."""
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the event loop at `when`."""
        return asyncio.get_running_loop().call_later(max(0.0, when - self.now()), callback)
