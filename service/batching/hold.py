"""The wait for a fuller batch, where the pacer finds that one pays: a timer, and what ends it early."""

from collections.abc import Callable

from service.batching.cost_model import Pacer
from service.common.clock import Clock, Timer


class Hold:
    """At most one wait at a time; `end` is called when its time is over."""

    def __init__(self, pacer: Pacer, clock: Clock, end: Callable[[], None]) -> None:
        self._pacer = pacer
        self._clock = clock
        self._end = end
        self._timer: Timer | None = None
        self._until = 0.0

    def goes_on(self, waiting: int, max_batch: int, earliest_deadline: float) -> bool:
        """Whether `waiting` items should wait for more; begins a wait, keeps it, or ends it because enough came."""
        until = self._pacer.hold_until(self._clock.now(), waiting, max_batch, earliest_deadline)
        if self._timer is None:
            if until is None or not self._pacer.may_hold():
                return False
        elif until is None:
            self.cancel()
            self._pacer.held(reached=True)
            return False
        elif until >= self._until:
            return True
        else:  # someone in a hurry has come
            self.cancel()
        self._timer, self._until = self._clock.call_at(until, self._time_is_over), until
        return True

    def cancel(self) -> None:
        """End the wait, without a word."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_over(self) -> None:
        self._timer = None
        self._pacer.held(reached=False)
        self._end()
