"""What the benchmarks make of figures: rows, rules, curves, other measurements, and the report."""

import json
import re
from dataclasses import replace
from pathlib import Path

import click
import psutil
import pytest

from benchmarks.__main__ import main
from benchmarks.answers import SAME
from benchmarks.batches import measure_batches
from benchmarks.comparison import TIMES_BEST, ComparedServer, ComparisonResult, ComparisonRound, comparison_rows
from benchmarks.curves import CONNECTIONS, MEGAPIXELS, kept, measured_points, models_curve, served_curves
from benchmarks.figures import FigureTarget, ReportRow, Verdict, falling, outgrowing
from benchmarks.limit import Limit, LimitFigures
from benchmarks.load import LoadResult, StepTimes
from benchmarks.modules import MODULES, Module, WantedFigure, flattened, measured, row_of
from benchmarks.report import BenchmarkReport, page, write
from benchmarks.server_under_test import MemoryUse, ServerUnderTest
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
    figures = {"models=1.ratio": 1.0, "models=10.ratio": 0.8, "models=2.ratio": 0.95, "models=2.threads": 9.0}
    [models] = models_curve(figures)
    assert (models.points, models.row.verdict) == (((1.0, 1.0), (2.0, 0.95), (10.0, 0.8)), Verdict.MISS)
    assert models_curve({}) == []
    figures_of = {1.0: iter([5.0, 7.0]), 2.0: iter([6.0, 8.0])}
    assert measured_points((1.0, 2.0), 2, lambda place: next(figures_of[place])) == ((1.0, 6.0), (2.0, 7.0))


def test_figures_of_modules() -> None:
    """Figures are found by their paths; one that a module lacks is named as not measured."""
    value = {"a": {"x": 1, "on": True}, "rows": [{"models": 10, "way": "auto", "ratio": 0.9}]}
    paths = {"a.x": 1.0, "rows.models=10 way=auto.models": 10.0, "rows.models=10 way=auto.ratio": 0.9}
    assert dict(flattened(value)) == paths
    row = row_of(WantedFigure("rows.models=10 *.ratio", "ten", "", TIMES_BEST), paths, "models")
    assert (row.values, row.verdict) == ((0.9,), Verdict.MISS)
    absent = row_of(WantedFigure("rows.models=5 *.ratio", "five", "", TIMES_BEST), paths, "models")
    assert (absent.verdict, absent.shown) == (Verdict.ERROR, "-")
    figures = {"ours": 0.5, "library": 0.333}
    beside = row_of(WantedFigure("ours", "cost", "ms", TIMES_BEST, "library"), figures, "overhead")
    assert (beside.note, beside.shown) == ("benchmarks.overhead: ours; library: 0.33", "0.50 ms")
    assert ReportRow("moved", (0.0155,), "of 1", FigureTarget(at_most=0.02)).shown == "0.0155 of 1"
    assert len({module.name for module in MODULES}) == len(MODULES)


@pytest.mark.parametrize(
    ("module", "reason"),
    [("no_such_module", "there is no benchmarks.no_such_module"), ("gpu", "No such option")],
)
def test_module_that_fails(tmp_path: Path, module: str, reason: str) -> None:
    """A module that is missing, or fails, is named as not measured, with the reason."""
    wanted = (WantedFigure("ratio", "a title", "", TIMES_BEST),)
    [row] = measured(Module(module, wanted, ("--no-such-option",)), "tiny", tmp_path).rows
    assert (row.verdict, row.name, row.target) == (Verdict.ERROR, "a title", TIMES_BEST)
    assert reason in row.note


def test_module_that_is_given_up(artifacts: Path) -> None:
    """A measurement that takes too long is named, and the server that it had started is gone with it."""
    arguments = ("--model", "tiny", "--artifacts", "{artifacts}", "--starts", "1000")
    [row] = measured(Module("start", arguments=arguments), "tiny", artifacts, 4.0).rows
    assert row.verdict is Verdict.ERROR
    assert "timed out after 4.0 seconds" in row.note
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert any(commands)
    assert [command for command in commands if str(artifacts) in command] == []


def scripted_round(rate: float, yardstick: float) -> ComparisonRound:
    """A round with these rates."""
    limit = LimitFigures(yardstick, 16.0, 20.0, 2, "scripted f32")
    result = LoadResult(rate, 20.5, 50.0, 30.0, 0)
    return ComparisonRound(limit, limit, 1.5, result, result, 20.0, result, MemoryUse(300_000_000, 200_000_000))


def test_where_the_time_goes() -> None:
    """The report has each load's steps, CPU time beside that without a server, doubts, and failures of any load."""
    steps = StepTimes(client=40.0, server=30.0, decode=5.0, queue=7.0, inference=17.0)
    plain = scripted_round(40.0, 50.0)
    failing = replace(plain.many, errors=3, note="the generator fell behind", steps=None)
    rounds = [replace(plain, many=replace(plain.many, steps=steps), open_loop=failing)]
    ours = ComparisonResult(ComparedServer(scripted("ours"), SAME, Limit.OURS), rounds)
    text = page(BenchmarkReport(rows=list(comparison_rows([ours])), outcomes=[ours]), "report")

    assert "| ours | 40.0 | 30.0 | 5.0 | 7.0 | 17.0 | 30.0 | 16.0 | 16 connections |" in text
    assert "| 1 connection |" not in text  # its answers did not report their steps
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
    module = measured(Module("no_such_module"), "tiny", tmp_path)
    path = tmp_path / "report.md"
    report = BenchmarkReport([("processor", "a CPU")], found, results, [curve], [module])
    write(report, path)
    assert not report.complete

    text = path.read_text(encoding="utf-8")
    assert "- processor: a CPU" in text
    assert "| ours / best peer, 16 connections | 1.60 | ≥ 3 | miss | best is peer;" in text
    assert "| ours / its limit without a server | 1.00 (0.80 to 1.20) | ≥ 0.9 | pass |" in text
    assert "| no cliff: requests over connections | 0.67 | ≥ 0.85 | miss |" in text
    assert re.search(r"\| ours \| 50\.0 \(40\.0 to 60\.0\) \| 1\.00 .*\| 300 ", text)
    assert "- absent was not measured further: not installed: no network" in text
    assert "there is no benchmarks.no_such_module" in text
    picture = tmp_path / "report" / "connections.svg"
    assert f"]({picture.relative_to(tmp_path)})" in text
    assert {"1", "16", "connections", "requests/s"} <= set(re.findall(">([^<]+)</text>", picture.read_text("utf-8")))
    figures = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert figures["outcomes"][2]["entry"] == {"name": "absent", "settings": ""}
    assert [one["many"]["per_second"] for one in figures["outcomes"][0]["rounds"]] == [40.0, 60.0, 50.0]
