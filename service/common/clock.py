"""The clock that the service reads time from and sets timers on. Tests use one that they advance by hand."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

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

    now = staticmethod(time.monotonic)  # each request reads it a dozen times

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the event loop at `when`, never before."""
        return asyncio.get_running_loop().call_later(max(0.0, when - self.now()) + _EARLY_S, callback)


@dataclass(slots=True)
class timeout_at:  # noqa: N801 - used as `asyncio.timeout_at` is
    """Runs the block until `clock` reaches `deadline` (seconds), then cancels it and raises DeadlineExceeded."""

    deadline: float
    clock: Clock
    _expired: bool = field(default=False, init=False)
    _task: asyncio.Task[Any] = field(init=False)
    _before: int = field(init=False)
    _timer: Timer = field(init=False)

    def __enter__(self) -> None:
        if self.deadline <= self.clock.now():
            raise DeadlineExceeded
        task = asyncio.current_task()
        assert task is not None
        self._task, self._before = task, task.cancelling()
        self._timer = self.clock.call_at(self.deadline, self._expire)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._timer.cancel()
        if self._expired and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise DeadlineExceeded from error

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()
