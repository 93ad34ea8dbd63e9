"""What a report is made of: rows with a target, measurements, and medians with their spread."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_SMALL = 0.1


class Verdict(StrEnum):
    """Whether a figure meets its target."""

    PASS = "pass"
    MISS = "miss"
    ERROR = "not measured"


@dataclass(frozen=True, slots=True)
class FigureTarget:
    """What the project wants of a figure: that it is at least, or at most, some value."""

    at_least: float | None = None
    at_most: float | None = None

    def judge(self, figure: float) -> Verdict:
        missed = (self.at_least is not None and figure < self.at_least) or (
            self.at_most is not None and figure > self.at_most
        )
        return Verdict.MISS if missed else Verdict.PASS

    def __str__(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One figure in every round, with its unit and target. Without them, `note` says why it was not measured."""

    name: str
    values: tuple[float, ...]
    unit: str = ""
    target: FigureTarget | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def shown(self) -> str:
        """The spread with its unit. A figure with a small target has more digits, so that the side of it shows."""
        digits = 4 if self.target is not None and 0 < (self.target.at_most or 0.0) < _SMALL else 2
        return f"{spread(self.values, digits)} {self.unit if self.values else ''}".rstrip()

    @property
    def verdict(self) -> Verdict:
        if not self.values or self.target is None:
            return Verdict.ERROR
        return self.target.judge(self.median)


def missing(name: str, reason: str, target: FigureTarget | None = None) -> ReportRow:
    """A row that was not measured, for that reason."""
    return ReportRow(name, (), target=target, note=" ".join(reason.split()))


@dataclass(frozen=True, slots=True)
class Measurement:
    """What `python -m benchmarks.NAME` measured: all figures, the table of them, and what the report takes of them.

    The first column of the table is text.
    """

    name: str
    title: str
    heads: Sequence[str]
    table: Sequence[Sequence[str]]
    figures: Any
    rows: Sequence[ReportRow] = ()


def spread(values: Iterable[float], digits: int) -> str:
    """The median, then the lowest and the highest in brackets; `-` without values."""
    known = sorted(values)
    if not known:
        return "-"
    middle = f"{statistics.median(known):.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({known[0]:.{digits}f} to {known[-1]:.{digits}f})"
