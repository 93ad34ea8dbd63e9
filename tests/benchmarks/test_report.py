"""What the benchmarks make of figures: rows, rules, curves, and the report."""

import json
import re
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.__main__ import BenchmarkRun, main
from benchmarks.answers import SAME
from benchmarks.batches import measure_batches
from benchmarks.comparison import (
    ARRIVALS,
    MANY,
    ONE,
    ComparedServer,
    ComparisonResult,
    ComparisonRound,
    comparison_rows,
)
from benchmarks.curves import CONNECTIONS, MEGAPIXELS, kept, measured_points, served_curves
from benchmarks.figures import FigureTarget, Measurement, ReportRow, Verdict, falling, outgrowing
from benchmarks.limit import Limit, LimitFigures
from benchmarks.load import LoadResult
from benchmarks.report import BenchmarkReport, page, write
from benchmarks.server_under_test import ServerUnderTest
from loadgen.results import LoadLevel
from tests.scripted_server import scripted


def test_batches(exported: Path) -> None:
    """Every batch size that the engine takes has a rate."""
    rates = measure_batches("tiny", exported, (1, 4), 1, 0.05)
    assert set(rates) == {1, 4}
    assert all(rate > 0 for rate in rates.values())


def test_served_curves(tmp_path: Path) -> None:
    """Connections and image sizes are measured up and down, on one server; a loss at many connections is seen."""
    seen: list[int | None] = []

    def put_scripted_load(_server: ServerUnderTest, photo: bytes, load: LoadLevel, _seconds: float) -> LoadResult:
        seen.append(load.connections)
        rate = 100.0 if load.connections != 256 else 50.0
        return LoadResult(rate, 5.0, 9.0, len(photo) / 1e5, 0)

    connections, sizes = served_curves(scripted("any", "any"), tmp_path, put_scripted_load, 2, 0.1, lambda _: None)
    assert seen[1:19] == [*CONNECTIONS, *reversed(CONNECTIONS)]
    assert (connections.steepest, connections.row.verdict) == (0.5, Verdict.MISS)
    assert [work for work, _ in sizes.points] == list(MEGAPIXELS)
    assert sizes.row.verdict is Verdict.PASS


def test_rules() -> None:
    """The loss after a peak, and growth beyond that of the work, are found wherever they are."""
    assert falling([(1, 50.0), (16, 100.0), (64, 90.0), (256, 95.0)]) == 0.9
    assert falling([(1, 1.0), (2, 2.0)]) == 1.0
    assert outgrowing([(1.0, 10.0), (2.0, 20.0), (4.0, 80.0)]) == 2.0
    figures_of = {1.0: iter([5.0, 7.0]), 2.0: iter([6.0, 8.0])}
    assert measured_points((1.0, 2.0), 2, lambda place: next(figures_of[place])) == ((1.0, 6.0), (2.0, 7.0))


def test_small_targets() -> None:
    """A figure with a small target is shown with four digits."""
    assert ReportRow("moved", (0.0155,), "of 1", FigureTarget(at_most=0.02)).shown == "0.0155 of 1"


def test_part_that_fails(tmp_path: Path) -> None:
    """A part that fails is named as not measured with the reason, and the run goes on."""
    report = BenchmarkReport()
    run = BenchmarkRun("tiny", tmp_path, tmp_path, 1, 0.5, report, lambda _: None)
    run.attempt("drift", lambda: run.measure("drift"))
    run.attempt("engine alone over batch size", run.draw_batches)
    assert [(row.name, row.verdict) for row in report.rows] == [
        ("drift", Verdict.ERROR),
        ("engine alone over batch size", Verdict.ERROR),
    ]
    assert "squeezenet1_1 is not exported yet" in report.rows[0].note
    assert not report.complete


def scripted_round(rate: float, yardstick: float) -> ComparisonRound:
    """A round with these rates."""
    limit = LimitFigures(yardstick, 16.0, 20.0, 2, "scripted f32")
    result = LoadResult(rate, 20.5, 50.0, 30.0, 0)
    return ComparisonRound(limit, limit, 1.5, dict.fromkeys((MANY, ONE, ARRIVALS), result), 200_000_000, 20.0)


def test_doubtful_results() -> None:
    """The report has the doubts of the generator, and the failures of any load."""
    plain = scripted_round(40.0, 50.0)
    failing = replace(plain.loads[ARRIVALS], errors=3, note="the generator fell behind")
    rounds = [replace(plain, loads={**plain.loads, ARRIVALS: failing})]
    ours = ComparisonResult(ComparedServer(scripted("ours"), SAME, Limit.OURS), rounds)
    text = page(BenchmarkReport(rows=list(comparison_rows([ours])), outcomes=[ours]), "report")

    assert "- ours, round 1, random arrivals: not to be relied on: the generator fell behind" in text
    assert "3 requests failed and are in no percentile" in text
    assert rounds[0].errors == 3


def test_every_option_is_explained() -> None:
    """`python -m benchmarks --help` explains each option."""
    options = [one for one in main.params if isinstance(one, click.Option)]
    assert options
    assert [one.name for one in options if not one.help] == []


def test_report(tmp_path: Path) -> None:
    """The page has the machine, each row with its verdict, each server, each curve with its picture and its rule."""
    rounds = [scripted_round(rate, 50.0) for rate in (40.0, 60.0, 50.0)]
    ours = ComparisonResult(ComparedServer(scripted("ours"), SAME, Limit.OURS), rounds)
    peer = ComparisonResult(ComparedServer(scripted("peer"), SAME), [scripted_round(25.0, 50.0)])
    absent = ComparisonResult(ComparedServer(scripted("absent"), SAME), reason="not installed: no network")
    results = [ours, peer, absent]
    curve = kept("connections", "requests over connections", "connections", "requests/s", ((1.0, 30.0), (16.0, 20.0)))
    found = [*comparison_rows(results), curve.row]
    measurement = Measurement("start", "tiny: 5 starts", ("", ""), [("start to ready, s", "0.87")], {"start_s": 0.87})
    path = tmp_path / "report.md"
    report = BenchmarkReport([("processor", "a CPU")], found, results, [curve], [measurement])
    write(report, path)
    assert not report.complete

    text = path.read_text(encoding="utf-8")
    assert "- processor: a CPU" in text
    assert "| ours / best peer, 16 connections | 1.60 | ≥ 3 | miss | best is peer;" in text
    assert "| ours / its limit without a server | 1.00 (0.80 to 1.20) | ≥ 0.9 | pass |" in text
    assert "| no cliff: requests over connections | 0.67 | ≥ 0.85 | miss |" in text
    assert re.search(r"\| ours \| 50\.0 \(40\.0 to 60\.0\) \| 1\.00 .*\| 200 ", text)
    assert "- absent was not measured further: not installed: no network" in text
    assert "### python -m benchmarks.start\n\ntiny: 5 starts\n\n" in text
    assert "| start to ready, s | 0.87 |" in text
    picture = tmp_path / "report" / "connections.svg"
    assert f"]({picture.relative_to(tmp_path)})" in text
    assert {"1", "16", "connections", "requests/s"} <= set(re.findall(">([^<]+)</text>", picture.read_text("utf-8")))
    figures = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert figures["outcomes"][2]["entry"] == {"name": "absent", "settings": ""}
    assert [one["loads"][MANY]["per_second"] for one in figures["outcomes"][0]["rounds"]] == [40.0, 60.0, 50.0]
