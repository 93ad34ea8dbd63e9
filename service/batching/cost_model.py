"""Predicts how long a batch takes from the batches that were measured. Uses no clock."""

import math
from bisect import bisect_right
from dataclasses import dataclass

_MEMORY = 0.95  # weight that one more batch leaves to all before it


@dataclass(slots=True)
class CostModel:
    """Predicts the duration of a batch of n as a + b * n seconds: weighted least squares over finished batches.

    `memory` is the decay: each new batch multiplies the weights of all older batches by it.
    """

    memory: float = _MEMORY
    weight: float = 0.0
    n: float = 0.0
    t: float = 0.0
    nn: float = 0.0
    nt: float = 0.0

    def observe(self, n: float, took_s: float) -> None:
        """Add the duration of one finished batch."""
        self.weight = self.weight * self.memory + 1.0
        self.n = self.n * self.memory + n
        self.t = self.t * self.memory + took_s
        self.nn = self.nn * self.memory + n * n
        self.nt = self.nt * self.memory + n * took_s

    def predict(self, n: float) -> float | None:
        """Predicted seconds for a batch of `n`, or None before any measurement."""
        if not self.weight:
            return None
        mean_n, mean_t = self.n / self.weight, self.t / self.weight
        variance = self.nn / self.weight - mean_n**2
        slope = (self.nt / self.weight - mean_n * mean_t) / variance if variance > 1e-9 else mean_t / mean_n
        slope = min(max(slope, 0.0), mean_t / mean_n)
        return mean_t + slope * (n - mean_n)

    def largest_within(self, seconds: float, most: int) -> int:
        """The largest batch, at most `most`, for `seconds`; at least 1, and 1 before any measurement."""
        if not self.weight:
            return 1
        return max(1, bisect_right(range(1, most + 1), seconds, key=lambda n: self.predict(n) or 0.0))


def even_share(waiting: int, running: int, slots: int) -> int:
    """How many of the waiting items the next of `slots` should take, so that all slots end together.

    A running item counts as half: on average half of it is done.
    """
    return math.ceil((waiting + running / 2) / slots)
