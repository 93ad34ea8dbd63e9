"""The report: as Markdown, all figures as JSON beside it, and the rows in the terminal."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.comparison import MANY, ONE, ComparisonResult
from benchmarks.figures import Measurement, ReportRow, Verdict, spread


@dataclass(slots=True)
class BenchmarkReport:
    """What one run has measured so far. `machine`, and `versions` of the peers, are names with their values."""

    machine: Sequence[tuple[str, str]] = ()
    rows: list[ReportRow] = field(default_factory=list)
    outcomes: list[ComparisonResult] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    versions: Sequence[tuple[str, str]] = ()
    how: str = ""

    def add(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)
        self.rows += measurement.rows

    @property
    def complete(self) -> bool:
        failed = any(row.verdict is Verdict.ERROR for row in self.rows)
        return not failed and not any(one.reason for one in self.outcomes)


def write(report: BenchmarkReport, path: Path) -> None:
    """Write the page to `path`, and `results.json` into the folder of the same name."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(_figures(report), indent=1) + "\n", encoding="utf-8")
    path.write_text(page(report), encoding="utf-8")


def show(report: BenchmarkReport, console: Console) -> None:
    """Print the rows."""
    console.print(Markdown("\n".join(_targets(report))))


def _figures(report: BenchmarkReport) -> dict[str, Any]:
    """All figures; of a server only its name and settings, without the paths of this machine."""
    figures = asdict(report)
    for outcome, one in zip(figures["outcomes"], report.outcomes, strict=True):
        del outcome["server"]
        outcome["entry"] = {"name": one.name, "settings": one.server.spec.settings}
    return figures


def page(report: BenchmarkReport) -> str:
    """The Markdown."""
    lines = ["# Measured", "", "Written by the command below; nothing in it was written by hand.", ""]
    lines += [f"- {name}: {value}" for name, value in report.machine]
    lines += ["", report.how]
    if report.rows:
        lines += ["", "## Targets", "", *_targets(report)]
    if report.outcomes:
        lines += ["", "## Side by side", "", *_comparison(report.outcomes)]
    if report.measurements:
        lines += ["", "## Measurements"]
    for one in report.measurements:
        table = markdown_table(one.heads, one.table, text=(0,))
        lines += ["", f"### {one.name}", "", one.title, "", *table]
    if report.versions:
        lines += ["", "## Versions and settings", ""]
        lines += [f"- {name}: {value}" for name, value in report.versions]
    return "\n".join(lines) + "\n"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[int] = (0, -1)) -> list[str]:
    """The lines of a table. The columns at the places `text` are aligned left, all others hold figures."""
    marks = ["---:"] * len(heads)
    for place in text:
        marks[place] = "---"
    cells = [heads, marks, *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in cells]


def _targets(report: BenchmarkReport) -> list[str]:
    rows = [(row.name, row.shown, str(row.target or ""), row.verdict.value, row.note) for row in report.rows]
    return markdown_table(("", "median (lowest to highest)", "target", "", "note"), rows)


def _comparison(outcomes: Sequence[ComparisonResult]) -> Iterator[str]:
    heads = (
        "server", "16 connections, requests/s", "/ yardstick", "p50 ms", "p99 ms", "CPU ms each",
        "1 connection, p50 ms", "p99 ms", "CPU ms each",
        "errors", "PSS MB", "first answer s", "limit, images/s",
    )  # fmt: skip
    yield from markdown_table(heads, [_compared(one) for one in outcomes])
    yield ""
    yield from (f"- {one.name} was not measured further: {one.reason}" for one in outcomes if one.reason)
    yield ""
    # results that the generator itself calls invalid, because it was the bottleneck
    yield from (
        f"- {one.name}, round {number}, {load}: not to be relied on: {result.note}"
        for one in outcomes
        for number, each in enumerate(one.rounds, 1)
        for load, result in each.loads.items()
        if result.note
    )


def _compared(one: ComparisonResult) -> list[str]:
    rounds = one.rounds
    limits = spread((r.limit.per_second for r in rounds), 0)
    return [
        one.name,
        spread((r.loads[MANY].per_second for r in rounds), 1),
        spread((r.normalised for r in rounds), 2),
        spread((r.loads[MANY].p50_ms for r in rounds), 0),
        spread((r.loads[MANY].p99_ms for r in rounds), 0),
        spread((r.loads[MANY].cpu_ms for r in rounds), 1),
        spread((r.loads[ONE].p50_ms for r in rounds), 1),
        spread((r.loads[ONE].p99_ms for r in rounds), 1),
        spread((r.loads[ONE].cpu_ms for r in rounds), 1),
        str(sum(r.errors for r in rounds)) if rounds else "-",
        spread((r.memory_bytes / 1e6 for r in rounds), 0),
        spread((r.start_s for r in rounds), 1),
        f"{limits} {one.server.limit.value}" if rounds else "-",
    ]
