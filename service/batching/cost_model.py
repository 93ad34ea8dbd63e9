"""How long a batch will take, by what was measured. Pure: it knows no clock."""

import math
from bisect import bisect_right
from dataclasses import dataclass

_MEMORY = 0.95  # weight that one more batch leaves to all before it


@dataclass(slots=True)
class CostModel:
    """Duration of a batch of n as a + b * n seconds: least squares over finished batches, older ones fading.

    `memory` is the decay: each new batch multiplies the weights of all older batches by it.
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

    def largest_within(self, seconds: float, most: int) -> int:
        """The largest batch, at most `most`, that should run no longer than `seconds`; at least 1, and 1 unmeasured."""
        if not self.weight:
            return 1
        return max(1, bisect_right(range(1, most + 1), seconds, key=lambda n: self.predict(n) or 0.0))


def even_share(waiting: int, running: int, slots: int) -> int:
    """How many of the waiting items the next of `slots` should take, so that all slots end together.

    A batch of all of them would leave other slots idle. What runs counts half: on average half of it is done.
    """
    return math.ceil((waiting + running / 2) / slots)
