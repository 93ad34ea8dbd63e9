"""When to wait a moment for a fuller batch, and how long a queue will take. Pure: given times, it returns times."""

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

_MEMORY = 0.95  # weight that one more batch leaves to all before it
_LATELY_S, _FEWEST, _MOST = 10.0, 8, 64  # places given back that tell how fast the house drains, decoding included
_FIRST_RETRY_S = 1.0  # what to tell a refused caller before any batch has been measured
_PROBE_EVERY = 32  # one hold in so many is tried although holds have not been paying


@dataclass(slots=True)
class CostModel:
    """Duration of a batch of n as a + b * n seconds: least squares over finished batches, older ones fading.

    `memory` is the weight that one more batch leaves to all before it.
    """

    memory: float = _MEMORY
    weight: float = 0.0
    n: float = 0.0
    t: float = 0.0
    nn: float = 0.0
    nt: float = 0.0

    def observe(self, n: float, took_s: float) -> None:
        """Take in one finished batch."""
        self.weight = self.weight * self.memory + 1.0
        self.n = self.n * self.memory + n
        self.t = self.t * self.memory + took_s
        self.nn = self.nn * self.memory + n * n
        self.nt = self.nt * self.memory + n * took_s

    def predict(self, n: float) -> float | None:
        """Seconds for a batch of `n`, or None before any was seen."""
        if not self.weight:
            return None
        mean_n, mean_t = self.n / self.weight, self.t / self.weight
        variance = self.nn / self.weight - mean_n**2
        slope = (self.nt / self.weight - mean_n * mean_t) / variance if variance > 1e-9 else mean_t / mean_n
        slope = min(max(slope, 0.0), mean_t / mean_n)
        return mean_t + slope * (n - mean_n)


def even_part(waiting: int, running: int, slots: int) -> int:
    """How many of those who wait the next of `slots` should take for all slots to end together.

    A batch that takes all lasts while another slot stands idle. Those that run are taken for half done.
    """
    return math.ceil((waiting + running / 2) / slots)


class Pacer:
    """Decides holds for one batcher. A hold never outlasts `max_hold_s` after a completion; 0 turns holds off."""

    def __init__(self, max_hold_s: float) -> None:
        self._max_hold_s = max_hold_s
        self._cost = CostModel()
        self._completed_at = float("-inf")
        self._peak = 0.0
        self._score = 1.0
        self._asked = 0
        self._released: deque[float] = deque(maxlen=_MOST)

    def outstanding(self, count: int) -> None:
        """Note how many items wait or run now; the peak of it fades with each batch."""
        self._peak = max(self._peak, float(count))

    def finished(self, now: float, n: int, took_s: float) -> None:
        """Note that a batch of `n` finished at `now`."""
        self._cost.observe(n, took_s)
        self._completed_at = now
        self._peak *= _MEMORY

    def most_within(self, quantum_s: float, max_batch: int) -> int:
        """The largest batch, at most `max_batch`, that should run no longer than `quantum_s`; at least 1.

        Before any was measured that is 1, unless the time is infinite.
        """
        if math.isinf(quantum_s):
            return max_batch
        return max(1, bisect_right(range(1, max_batch + 1), quantum_s, key=self._run_s))

    def _run_s(self, n: int) -> float:
        seconds = self._cost.predict(n)
        return math.inf if seconds is None else seconds

    def hold_until(self, now: float, waiting: int, max_batch: int, earliest_deadline: float) -> float | None:
        """Until when `waiting` items should wait for more, at most `max_batch`, or None to dispatch them now.

        Only just after a completion, and only while fewer wait than were lately outstanding at once: callers that
        answer each other's answers are about to come back. A first arrival at an idle engine is never held.
        """
        if self._max_hold_s <= 0 or waiting >= min(round(self._peak), max_batch):
            return None
        until = min(self._completed_at + self._max_hold_s, earliest_deadline - (self._cost.predict(waiting) or 0.0))
        return until if until > now else None

    def may_hold(self) -> bool:
        """Whether holds have been reaching their number often enough to begin another."""
        self._asked += 1
        return self._score >= 0.5 or self._asked % _PROBE_EVERY == 0

    def held(self, reached: bool) -> None:
        """Note whether a hold ended because enough items came (or else because time ran out)."""
        self._score = 0.9 * self._score + 0.1 * float(reached)

    def retry_after_s(self, queued: int, max_batch: int, slots: int) -> float:
        """Seconds until `queued` items should have drained through `slots` executors, `max_batch` at a time."""
        drained_s = self._drained_s(queued)
        one = self._cost.predict(min(max(queued, 1), max_batch))
        if one is None:
            return drained_s or _FIRST_RETRY_S
        return max(one, one * queued / max_batch / slots, drained_s)

    def released(self, now: float) -> None:
        """Note that a place was given back at `now`, whatever its image had been waiting for."""
        self._released.append(now)
        while now - self._released[0] > _LATELY_S:
            self._released.popleft()

    def _drained_s(self, queued: int) -> float:
        """Seconds for `queued` places at the rate of late; 0 where too few were given back to tell."""
        if len(self._released) < _FEWEST:
            return 0.0
        span_s = self._released[-1] - self._released[0]
        return queued * span_s / (len(self._released) - 1)
