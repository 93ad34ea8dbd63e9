"""What the benchmarks write: figures with a target, and tables, as Markdown."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One figure in every round, beside the value that it should have at least or at most.

    Without values, `note` says why it was not measured.
    """

    name: str
    values: Sequence[float] = ()
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if not self.values:
            return NOT_MEASURED
        figure = statistics.median(self.values)
        missed = (self.at_least is not None and figure < self.at_least) or (
            self.at_most is not None and figure > self.at_most
        )
        return "miss" if missed else "pass"

    @property
    def target(self) -> str:
        return f"≤ {self.at_most:g}" if self.at_least is None and self.at_most else f"≥ {self.at_least or 0:g}"

    @property
    def cells(self) -> list[str]:
        if not self.values:
            return [self.name, "-", "", NOT_MEASURED, self.note]
        return [self.name, f"{spread(self.values, 2)} {self.unit}".rstrip(), self.target, self.verdict, self.note]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A table, whose first column is text, the rows that have a target or were not measured, and notes on the table."""

    title: str
    heads: Sequence[str]
    table: Sequence[Sequence[str]]
    rows: Sequence[ReportRow] = ()
    notes: Sequence[str] = ()


@dataclass(slots=True)
class BenchmarkReport:
    """What one run has measured so far. `facts` are names with values: the machine, the versions."""

    facts: Sequence[tuple[str, str]]
    how: str
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def rows(self) -> list[ReportRow]:
        return [row for one in self.measurements for row in one.rows]

    @property
    def complete(self) -> bool:
        return all(row.values for row in self.rows)


def page(report: BenchmarkReport) -> str:
    """The report as Markdown."""
    lines = ["# Measured", "", *(f"- {name}: {value}" for name, value in report.facts), "", report.how]
    if report.rows:
        lines += ["", "## Targets", "", *targets(report)]
    for one in report.measurements:
        if one.table:
            lines += ["", f"## {one.title}", "", *_table(one.heads, one.table)]
            lines += ["", *(f"- {note}" for note in one.notes)] if one.notes else []
    return "\n".join(lines) + "\n"


def targets(report: BenchmarkReport) -> list[str]:
    """The lines of the table of all rows."""
    heads = ("", "median (lowest to highest)", "target", "", "note")
    return _table(heads, [row.cells for row in report.rows])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (heads, marks, *rows)]


def spread(values: Iterable[float], digits: int) -> str:
    """The median, then the lowest and the highest in brackets; `-` without values."""
    known = sorted(values)
    if not known:
        return "-"
    middle = f"{statistics.median(known):.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({known[0]:.{digits}f} to {known[-1]:.{digits}f})"
