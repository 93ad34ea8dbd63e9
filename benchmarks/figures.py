"""What a report is made of: rows with a target, curves, and medians with their spread."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")


_SMALL = 0.1


class Verdict(StrEnum):
    """What became of a target."""

    PASS = "pass"
    MISS = "miss"
    SHOWN = "no target"
    ERROR = "not measured"


class Bound(StrEnum):
    """On which side of its target a figure should be."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of the project for one figure."""

    bound: Bound
    value: float

    def judge(self, figure: float) -> Verdict:
        """Whether it holds."""
        holds = figure >= self.value if self.bound is Bound.AT_LEAST else figure <= self.value
        return Verdict.PASS if holds else Verdict.MISS

    def __str__(self) -> str:
        """As in the report."""
        return f"{self.bound} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of the report: the median, all rounds, its unit and target; or why there is none."""

    name: str
    values: tuple[float, ...]
    unit: str = ""
    target: Target | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """Of all rounds; there must be one."""
        return statistics.median(self.values)

    @property
    def shown(self) -> str:
        """The figures with their unit; with more digits where two would hide on which side of the target it is."""
        digits = 4 if self.target is not None and 0 < self.target.value < _SMALL else 2
        return f"{spread(self.values, digits)} {self.unit if self.values else ''}".rstrip()

    @property
    def verdict(self) -> Verdict:
        """What became of its target."""
        if not self.values:
            return Verdict.ERROR
        return Verdict.SHOWN if self.target is None else self.target.judge(self.median)


def missing(name: str, reason: str, target: Target | None = None) -> Row:
    """A row that was not measured, and why."""
    return Row(name, (), target=target, note=" ".join(reason.split()))


@dataclass(frozen=True, slots=True)
class Curve:
    """Medians over something that grows, and the rule that it keeps: `steepest` is compared with `target`."""

    name: str
    title: str
    across: str
    up: str
    points: tuple[tuple[float, float], ...]
    rule: str
    steepest: float
    target: Target

    @property
    def row(self) -> Row:
        """The curve as a row: whether it has a cliff."""
        return Row(f"no cliff: {self.title}", (self.steepest,), "", self.target, self.rule)


def falling(points: Sequence[tuple[float, float]]) -> float:
    """The smallest ratio of a point to the highest before it; 1 where it never falls.

    For throughput: 0.85 says that at some load 15 % of what was already reached is lost.
    """
    best, ratio = points[0][1], 1.0
    for _, value in points[1:]:
        ratio = min(ratio, value / best)
        best = max(best, value)
    return ratio


def outgrowing(points: Sequence[tuple[float, float]]) -> float:
    """The largest ratio between how a cost grew and how the work grew, from a point to the next.

    1 is proportional; 1.5 says that twice the work once cost three times as much.
    """
    pairs = pairwise(points)
    return max((after[1] / before[1]) / (after[0] / before[0]) for before, after in pairs)


def spread(values: Iterable[float], digits: int) -> str:
    """Median, and in brackets the lowest and the highest; `-` of nothing."""
    known = sorted(values)
    if not known:
        return "-"
    middle = f"{statistics.median(known):.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({known[0]:.{digits}f} to {known[-1]:.{digits}f})"


def medians(rounds: Sequence[R]) -> R:
    """Each figure's median over rounds, which are dataclasses of numbers and at least one."""
    return type(rounds[0])(*map(statistics.median, zip(*map(astuple, rounds), strict=True)))
