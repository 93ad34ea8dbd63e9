"""Keeps answers within a bound on their time: who is admitted, who is refused in time, and how large a batch may be.

Pure: given times, it returns times. Everything is learned from what was measured last; nothing is configured but the
bound. It knows neither the decoder nor the engine nor the other models on the device: a request's whole time is
measured over the places that were taken when it came, and so whatever it has to wait for is in the figure.
"""

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

from service.batching.cost_model import CostModel
from service.common.errors import Overloaded

_LET_IN = 0.95  # of those let in should be in time; the others are refused before they are run
_RUN = 0.99  # of those run should be in time
_MEMORY = 0.98  # weight that one more measurement leaves to all before it
_FAR_OFF = 1.5  # times as long as expected, or as short
_RUNS_CHANGED, _ANSWERS_CHANGED = 12, 48  # in a row; answers of one batch are late together
_WINDOW, _EVERY = 128, 8  # measurements whose spread counts, and after how many new ones it is found anew
_TIGHTEN, _LOOSEN, _TIGHTEST = 0.98, 1e-4, 0.5  # per answer over and within the bound: they balance at one in 200
_SHORTEST_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Place:
    """What one request was admitted with: when, for how many items, and how many places were taken with its own.

    `due` is the time of the clock by which its answer should be ready; infinity where it is run however late.
    """

    arrived: float
    count: int
    position: int
    due: float = math.inf


class SloUnattainable(Overloaded):
    """The answer could not be ready within the bound."""

    def __init__(self, bound_s: float, retry_after_s: float) -> None:
        super().__init__(retry_after_s, f"no answer could be ready within the {bound_s * 1000:g} ms of --slo-ms")


class Forecast:
    """Seconds as a straight line over a number, and by how much a `share` of the last measurements stayed below it.

    After `change` measurements in a row that were far off only those count: the world has changed.
    """

    def __init__(self, share: float, change: int) -> None:
        self._share = share
        self._change = change
        self._begin()

    def _begin(self) -> None:
        self._line = CostModel(memory=_MEMORY)
        self._latest: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._odd: list[tuple[float, float]] = []
        self._margin = 1.0
        self._since = 0

    def observe(self, n: float, took_s: float) -> None:
        """Take in one measurement."""
        if usual_s := self._line.predict(n):
            if 1 / _FAR_OFF < took_s / usual_s < _FAR_OFF:
                self._odd.clear()
            else:
                self._odd.append((n, took_s))
            if len(self._odd) == self._change:
                odd = self._odd
                self._begin()
                for one in odd:
                    self.observe(*one)
                return
        self._line.observe(n, took_s)
        self._latest.append((n, took_s))
        self._since += 1
        if self._since >= min(_EVERY, len(self._latest)):
            self._since, self._margin = 0, self._spread()

    def at_most(self, n: float) -> float | None:
        """Seconds that are enough in that share of cases, or None before any measurement."""
        usual_s = self._line.predict(n)
        return None if usual_s is None else usual_s * self._margin

    def _spread(self) -> float:
        """By how much the line of now must be raised for that share of the last measurements; at least 1.

        By the line of now, or what it did not know at first would be held against what it has learned since.
        """
        ratios = sorted(took_s / max(self._line.predict(n) or 0.0, 1e-9) for n, took_s in self._latest)
        return max(1.0, ratios[math.ceil(self._share * len(ratios)) - 1])


class Slo:
    """One model's bound. `slots` is how many batches of it run at once, which is as many as are admitted unmeasured."""

    def __init__(self, bound_s: float, slots: int) -> None:
        self.bound_s = bound_s
        self._aim_s = bound_s
        self._slots = slots
        self._answers = Forecast(_LET_IN, _ANSWERS_CHANGED)
        self._runs = Forecast(_RUN, _RUNS_CHANGED)

    def place(self, now: float, taken: int, count: int) -> Place:
        """Admit a request of `count` items while `taken` places are taken. Raises SloUnattainable.

        With no place taken it is admitted whatever is expected, and never refused later: so an idle server answers,
        and a model whose expectations are outdated measures again.
        """
        if not taken:
            return Place(now, count, count)
        position = taken + count
        expected_s = self._answers.at_most(self._rounds(position))
        if (expected_s or 0.0) > self._aim_s or (expected_s is None and position > self._slots):
            raise self._refusal(expected_s)
        return Place(now, count, position, now + self._aim_s)

    def fitting(self, now: float, place: Place, most: int, deadline: float = math.inf) -> int:
        """The largest batch, at most `most`, that ends when its answer is due, and before its caller's `deadline`.

        0 where not even it alone does. A lone one is run whatever remains.
        """
        if math.isinf(place.due):
            return most
        if self._runs.at_most(1) is None:
            return 1
        left_s = min(place.due, deadline) - now
        return bisect_right(range(1, most + 1), left_s, key=lambda n: self._runs.at_most(n) or 0.0)

    def ran(self, n: int, took_s: float) -> None:
        """A batch of `n` took so long."""
        self._runs.observe(n, took_s)

    def answered(self, now: float, place: Place) -> bool:
        """Its answer is ready; whether that is within the bound."""
        took_s = now - place.arrived
        self._answers.observe(self._rounds(place.position), took_s)
        within = took_s <= self.bound_s
        if within:
            self._aim_s = min(self.bound_s, self._aim_s + _LOOSEN * self.bound_s)
        elif not math.isinf(place.due):
            self._aim_s = max(_TIGHTEST * self.bound_s, self._aim_s * _TIGHTEN)
        return within

    def too_late(self, now: float, place: Place) -> SloUnattainable:
        """It cannot be ready in time any more: learn from it, and what to tell its caller."""
        took_s = now - place.arrived + (self._runs.at_most(1) or 0.0)
        self._answers.observe(self._rounds(place.position), took_s)
        return self._refusal(self._answers.at_most(self._rounds(place.position)))

    def _rounds(self, position: int) -> float:
        """How often all slots must have been free before it has run: what time is a line over, even unmeasured."""
        return max(1.0, position / self._slots)

    def _refusal(self, expected_s: float | None) -> SloUnattainable:
        return SloUnattainable(self.bound_s, max(_SHORTEST_RETRY_S, (expected_s or 0.0) - self._aim_s))
