"""The report as Markdown with its pictures, and all figures of the run as JSON beside them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.behaviour import GOOD, TRIES
from benchmarks.figures import Curve, Row, spread
from benchmarks.modules import Measured
from benchmarks.race import Outcome
from benchmarks.rows import normalised
from loadgen.plot import line_chart


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run has measured; `versions` are those of the peers by name."""

    machine: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    outcomes: Sequence[Outcome]
    curves: Sequence[Curve]
    modules: Sequence[Measured]
    versions: Sequence[tuple[str, str]]
    how: str


def write(report: Report, path: Path) -> None:
    """The page at `path`, and pictures and `results.json` in the folder of the same name; each replaced at once."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for curve in report.curves:
        (folder / f"{curve.name}.svg").write_text(_svg(curve), encoding="utf-8")
    _replace(folder / "results.json", json.dumps(_kept(report), indent=1) + "\n")
    _replace(path, page(report, folder.name))


def _svg(curve: Curve) -> str:
    return line_chart(
        {curve.name: curve.points}, title=curve.title, x_label=curve.across, y_label=curve.up, x_scale="log"
    )


def _kept(report: Report) -> dict[str, Any]:
    """All figures; of a server its name and settings, without the paths of this machine."""
    kept = asdict(report)
    for outcome, one in zip(kept["outcomes"], report.outcomes, strict=True):
        outcome["entry"] = {"name": one.entry.subject.name, "settings": one.entry.subject.settings}
    return kept


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def page(report: Report, folder: str) -> str:
    """The Markdown; pictures are in `folder` beside it."""
    lines = ["# Measured", "", "Written by the command below; nothing in it was written by hand.", ""]
    lines += [f"- {name}: {value}" for name, value in report.machine]
    lines += ["", report.how, "", "## Targets", "", *_targets(report.rows)]
    if report.outcomes:
        lines += ["", "## Side by side", "", *_race(report.outcomes)]
    if report.curves:
        lines += ["", "## Curves", "", *_curves(report.curves, folder)]
    if report.modules:
        lines += ["", "## Other measurements", "", *_modules(report.modules)]
    if report.versions:
        lines += ["", "## Versions and settings", ""]
        lines += [f"- {name}: {value}" for name, value in report.versions]
    return "\n".join(lines) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; all columns but the first and the last hold figures."""
    marks = ["---", *["---:"] * (len(heads) - 2), "---"]
    return [_line(heads), _line(marks), *(_line(row) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _targets(rows: Sequence[Row]) -> list[str]:
    cells = [
        (
            row.name,
            row.shown,
            str(row.target or ""),
            row.verdict.value,
            row.note,
        )
        for row in rows
    ]
    return table(("", "median (lowest to highest)", "target", "", "note"), cells)


def _race(outcomes: Sequence[Outcome]) -> Iterator[str]:
    heads = (
        "server", "16 connections, requests/s", "/ yardstick", "p50 ms", "p99 ms", "CPU ms each",
        "1 connection, p50 ms", "p99 ms", "CPU ms each",
        "errors", "RSS MB", "PSS MB", "first answer s", "limit, images/s",
    )  # fmt: skip
    yield from table(heads, [_raced(one) for one in outcomes])
    yield ""
    yield from (f"- {one.entry.subject.name} was not measured further: {one.reason}" for one in outcomes if one.reason)
    yield ""
    kinds = ("server", "no photo", "half a photo", f"good ones beside a broken one, of {GOOD * TRIES}")
    rows = [
        (one.entry.subject.name, str(found.no_photo or "none"), str(found.truncated or "none"), str(found.good))
        for one in outcomes
        if (found := one.behaviour)
    ]
    yield from table(kinds, rows)
    yield ""
    yield from _profile(outcomes)
    yield from _doubts(outcomes)
    yield "Every round, requests/s at 16 connections (in brackets the yardstick just before, images/s):"
    yield ""
    for one in outcomes:
        each = (f"{r.many.per_second:.1f} ({r.yardstick.per_second:.1f})" for r in one.rounds)
        yield f"- {one.entry.subject.name}: {', '.join(each) or 'none'}"


def _profile(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Where the time of a request goes, of servers that say it: what a missed target is made of."""
    rows = [row for one in outcomes for row in _steps(one)]
    if not rows:
        return
    yield "Where the time goes: mean ms of a request, the steps by the server's own word, and ms of CPU beside those of"
    yield "decoder and engine alone. What is neither a step nor the server's is connections and the generator."
    yield ""
    heads = ("server", "client", "in the server", "decode", "queue", "inference", "CPU", "CPU without a server", "load")
    yield from table(heads, rows)
    yield ""


def _steps(one: Outcome) -> Iterator[list[str]]:
    for load in one.rounds[0].loads if one.rounds else ():
        points = [r.loads[load] for r in one.rounds]
        steps = [point.steps for point in points if point.steps]
        if not steps:
            continue
        means = [[step.client, step.server, step.decode, step.queue, step.inference] for step in steps]
        times = [spread(column, 1) for column in zip(*means, strict=True)]
        cpu = spread((point.cpu_ms for point in points), 1), spread((r.limit.cpu_ms for r in one.rounds), 1)
        yield [one.entry.subject.name, *times, *cpu, load]


def _doubts(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Points of which the generator says that they are rather its own figures."""
    doubts = [
        f"- {one.entry.subject.name}, round {number}, {load}: not to be relied on: {point.note}"
        for one in outcomes
        for number, each in enumerate(one.rounds, 1)
        for load, point in each.loads.items()
        if point.note
    ]
    yield from (*doubts, *([""] if doubts else []))


def _raced(one: Outcome) -> list[str]:
    rounds = one.rounds
    limits = spread((r.limit.per_second for r in rounds), 0)
    return [
        one.entry.subject.name,
        spread((r.many.per_second for r in rounds), 1),
        spread((normalised(r) for r in rounds), 2),
        spread((r.many.p50_ms for r in rounds), 0),
        spread((r.many.p99_ms for r in rounds), 0),
        spread((r.many.cpu_ms for r in rounds), 1),
        spread((r.one.p50_ms for r in rounds), 1),
        spread((r.one.p99_ms for r in rounds), 1),
        spread((r.one.cpu_ms for r in rounds), 1),
        str(sum(r.errors for r in rounds)) if rounds else "-",
        spread((r.memory.resident / 1e6 for r in rounds), 0),
        spread((r.memory.proportional / 1e6 for r in rounds), 0),
        spread((r.start_s for r in rounds), 1),
        f"{limits} {one.entry.limit.value}" if rounds else "-",
    ]


def _curves(curves: Sequence[Curve], folder: str) -> Iterator[str]:
    for curve in curves:
        yield f"### {curve.title}"
        yield ""
        yield f"![{curve.title}]({folder}/{curve.name}.svg)"
        yield ""
        heads = (curve.across, *(f"{work:g}" for work, _ in curve.points))
        yield from table(heads, [(curve.up, *(f"{value:.4g}" for _, value in curve.points))])
        yield ""
        yield f"{curve.row.verdict.value}: {curve.steepest:.2f}, {curve.target} ({curve.rule})"
        yield ""


def _modules(modules: Sequence[Measured]) -> Iterator[str]:
    for one in modules:
        yield f"### python -m benchmarks.{one.name}"
        yield ""
        if one.figures:
            yield from ("<details><summary>all figures</summary>", "")
            yield from table(("figure", "value"), [(name, f"{value:.4g}") for name, value in one.figures.items()])
            yield from ("", "</details>")
        else:
            yield from (f"- {row.name}: {row.verdict.value}: {row.note}" for row in one.rows)
        yield ""
