"""How long batches and a queue will take, by what was measured. Pure: given times, it returns times."""

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

_MEMORY = 0.95  # weight that one more batch leaves to all before it
_LATELY_S, _FEWEST, _MOST = 10.0, 8, 64  # places given back that tell how fast the house drains, decoding included
_FIRST_RETRY_S = 1.0  # what to tell a refused caller before any batch has been measured


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
    """Predicts the run of a batch, and how long a refused caller should wait, for one batcher."""

    def __init__(self) -> None:
        self._cost = CostModel()
        self._released: deque[float] = deque(maxlen=_MOST)

    def finished(self, n: int, took_s: float) -> None:
        """Note that a batch of `n` took so long."""
        self._cost.observe(n, took_s)

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
