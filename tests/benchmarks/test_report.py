"""What the benchmarks make of figures: rows, and the report."""

import json
import re
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.__main__ import BenchmarkRun, main
from benchmarks.answers import SAME
from benchmarks.comparison import (
    ARRIVALS,
    MANY,
    ONE,
    ComparedServer,
    ComparisonResult,
    ComparisonRound,
    comparison_rows,
)
from benchmarks.figures import FigureTarget, Measurement, ReportRow, Verdict
from benchmarks.limit import Limit, LimitFigures
from benchmarks.load import LoadResult
from benchmarks.report import BenchmarkReport, page, write
from tests.scripted_server import scripted


def test_small_targets() -> None:
    """A figure with a small target is shown with four digits."""
    assert ReportRow("moved", (0.0155,), "of 1", FigureTarget(at_most=0.02)).shown == "0.0155 of 1"


def test_part_that_fails(tmp_path: Path) -> None:
    """A part that fails is named as not measured with the reason, and the run goes on."""
    report = BenchmarkReport()
    run = BenchmarkRun("tiny", tmp_path, tmp_path, 1, 0.5, report, lambda _: None)
    run.attempt("drift", lambda: run.measure("drift"))
    run.attempt("start", lambda: run.measure("start"))
    assert [(row.name, row.verdict) for row in report.rows] == [("drift", Verdict.ERROR), ("start", Verdict.ERROR)]
    assert "squeezenet1_1 is not exported yet" in report.rows[0].note
    assert not report.complete


def scripted_round(rate: float, yardstick: float) -> ComparisonRound:
    """A round with these rates."""
    limit = LimitFigures(yardstick, 20.0, "scripted f32")
    result = LoadResult(rate, 20.5, 50.0, 30.0, 0)
    return ComparisonRound(limit, limit, 1.5, dict.fromkeys((MANY, ONE, ARRIVALS), result), 200_000_000, 20.0)


def test_doubtful_results() -> None:
    """The report has the doubts of the generator, and the failures of any load."""
    plain = scripted_round(40.0, 50.0)
    failing = replace(plain.loads[ARRIVALS], errors=3, note="the generator fell behind")
    rounds = [replace(plain, loads={**plain.loads, ARRIVALS: failing})]
    ours = ComparisonResult(ComparedServer(scripted("ours"), SAME, Limit.OURS), rounds)
    text = page(BenchmarkReport(rows=list(comparison_rows([ours])), outcomes=[ours]))

    assert "- ours, round 1, random arrivals: not to be relied on: the generator fell behind" in text
    assert "3 requests failed and are in no percentile" in text
    assert rounds[0].errors == 3


def test_every_option_is_explained() -> None:
    """`python -m benchmarks --help` explains each option."""
    options = [one for one in main.params if isinstance(one, click.Option)]
    assert options
    assert [one.name for one in options if not one.help] == []


def test_report(tmp_path: Path) -> None:
    """The page has the machine, each row with its verdict, and each server."""
    rounds = [scripted_round(rate, 50.0) for rate in (40.0, 60.0, 50.0)]
    ours = ComparisonResult(ComparedServer(scripted("ours"), SAME, Limit.OURS), rounds)
    peer = ComparisonResult(ComparedServer(scripted("peer"), SAME), [scripted_round(25.0, 50.0)])
    absent = ComparisonResult(ComparedServer(scripted("absent"), SAME), reason="not installed: no network")
    results = [ours, peer, absent]
    found = list(comparison_rows(results))
    measurement = Measurement("start", "tiny: 5 starts", ("", ""), [("start to ready, s", "0.87")], {"start_s": 0.87})
    path = tmp_path / "report.md"
    report = BenchmarkReport([("processor", "a CPU")], found, results, [measurement])
    write(report, path)
    assert not report.complete

    text = path.read_text(encoding="utf-8")
    assert "- processor: a CPU" in text
    assert "| ours / best peer, 16 connections | 1.60 | ≥ 3 | miss | best is peer;" in text
    assert "| ours / its limit without a server | 1.00 (0.80 to 1.20) | ≥ 0.9 | pass |" in text
    assert re.search(r"\| ours \| 50\.0 \(40\.0 to 60\.0\) \| 1\.00 .*\| 200 ", text)
    assert "- absent was not measured further: not installed: no network" in text
    assert "### start\n\ntiny: 5 starts\n\n" in text
    assert "| start to ready, s | 0.87 |" in text
    figures = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert figures["outcomes"][2]["entry"] == {"name": "absent", "settings": ""}
    assert [one["loads"][MANY]["per_second"] for one in figures["outcomes"][0]["rounds"]] == [40.0, 60.0, 50.0]
