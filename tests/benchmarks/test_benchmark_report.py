"""What the benchmarks make of figures: rows, rules, curves, other measurements, and the report."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.__main__ import main
from benchmarks.agreement import SAME
from benchmarks.batches import measure as measure_batches
from benchmarks.curves import CONNECTIONS, MEGAPIXELS, kept, served, together, turns
from benchmarks.figures import Bound, Row, Target, Verdict, falling, outgrowing
from benchmarks.install import install, is_installed
from benchmarks.limit import Figures, Limit
from benchmarks.load import Load, Point, Steps
from benchmarks.modules import MODULES, Module, Wanted, flattened, measured, row_of
from benchmarks.race import Entry, Outcome, Round
from benchmarks.report import Report, page, write
from benchmarks.rows import TIMES_BEST, best_peer, rows
from benchmarks.server import Running
from benchmarks.subjects import PEERS
from benchmarks.tree import Memory
from tests.benchmarks.test_benchmarks import course, scripted


def test_batches(exported: Path) -> None:
    """Every batch size that the engine takes has a rate."""
    assert all(rate > 0 for rate in measure_batches("tiny", exported, (1, 4), 1, 0.05).values())
    assert set(measure_batches("tiny", exported, (1, 4), 1, 0.05)) == {1, 4}


def test_served_curves(tmp_path: Path) -> None:
    """Connections and image sizes are measured up and down, on one server; a loss at many connections is seen."""
    seen: list[int] = []

    def drive_scripted(server: Running, photos: Sequence[bytes], load: Load) -> Point:
        seen.append(load.connections)
        rate = 100.0 if load.connections < 256 else 50.0
        return Point(rate, 5.0, 9.0, len(photos[0]) / 1e5, 0)

    place = course(tmp_path).place
    any_photo = replace(scripted("any", "any"))
    connections, sizes = served(any_photo, place, drive_scripted, 2, 0.1, lambda _: None)
    assert seen[1:19] == [*CONNECTIONS, *reversed(CONNECTIONS)]
    assert (connections.steepest, connections.row.verdict) == (0.5, Verdict.MISS)
    assert [work for work, _ in sizes.points] == list(MEGAPIXELS)
    assert sizes.row.verdict is Verdict.PASS


def test_rules() -> None:
    """The loss after a peak, and growth beyond that of the work, are found wherever they are."""
    assert falling([(1, 50.0), (16, 100.0), (64, 90.0), (256, 95.0)]) == 0.9
    assert falling([(1, 1.0), (2, 2.0)]) == 1.0
    assert outgrowing([(1.0, 10.0), (2.0, 20.0), (4.0, 80.0)]) == 2.0
    models = together({"models=1.ratio": 1.0, "models=10.ratio": 0.8, "models=2.ratio": 0.95, "models=2.threads": 9.0})
    assert [one.points for one in models] == [((1.0, 1.0), (2.0, 0.95), (10.0, 0.8))]
    assert [one.row.verdict for one in models] == [Verdict.MISS]
    assert together({}) == []
    seen: list[float] = []
    turns((1.0, 2.0), 2, lambda place: seen.append(place) or place)  # type: ignore[func-returns-value]
    assert seen == [1.0, 2.0, 2.0, 1.0]


def test_modules(tmp_path: Path) -> None:
    """Figures are found by their path; a module that is missing, fails or lacks one is named as not measured."""
    value = {"a": {"x": 1, "on": True}, "rows": [{"models": 10, "way": "auto", "ratio": 0.9}]}
    paths = {"a.x": 1.0, "rows.models=10 way=auto.models": 10.0, "rows.models=10 way=auto.ratio": 0.9}
    assert dict(flattened(value)) == paths
    row = row_of(Wanted("rows.models=10 *.ratio", "ten", "", TIMES_BEST), paths, "models")
    assert (row.values, row.verdict) == ((0.9,), Verdict.MISS)
    assert row_of(Wanted("rows.models=5 *.ratio", "five", "", TIMES_BEST), paths, "models").verdict is Verdict.ERROR
    beside = row_of(Wanted("ours", "cost", "ms", TIMES_BEST, "library"), {"ours": 0.5, "library": 0.333}, "overhead")
    assert beside.note == "benchmarks.overhead: ours; library: 0.33"
    wanted = (Wanted("ratio", "a title", "", TIMES_BEST),)
    absent = measured(Module("no_such_module", wanted), "tiny", tmp_path)
    assert [(row.verdict, row.name, row.target) for row in absent.rows] == [(Verdict.ERROR, "a title", TIMES_BEST)]
    assert "there is no benchmarks.no_such_module" in absent.rows[0].note
    small = Row("moved", (0.0155,), "of 1", Target(Bound.AT_MOST, 0.02))
    assert (small.shown, beside.shown, absent.rows[0].shown) == ("0.0155 of 1", "0.50 ms", "-")
    failing = measured(Module("gpu", wanted, ("--no-such-option",)), "tiny", tmp_path)
    assert failing.rows[0].verdict is Verdict.ERROR
    assert "No such option" in failing.rows[0].note
    assert len({module.name for module in MODULES}) == len(MODULES)


def test_module_that_is_given_up(exported: Path, tmp_path: Path) -> None:
    """A measurement that takes too long is named, and the server that it had started is gone with it."""
    folder = tmp_path / "its own path"
    folder.symlink_to(exported)
    found = measured(Module("start", (), ("--model", "tiny", "--artifacts", str(folder))), "tiny", folder, 3.0)
    assert [row.verdict for row in found.rows] == [Verdict.ERROR]
    assert "timed out after 3.0 seconds" in found.rows[0].note
    commands: list[bytes] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            commands.append(path.read_bytes())
    assert commands
    assert [command for command in commands if str(folder).encode() in command] == []


def scripted_round(rate: float, yardstick: float) -> Round:
    """A round with these rates."""
    limit = Figures(yardstick, 16.0, 20.0, 2, "scripted f32")
    point = Point(rate, 20.5, 50.0, 30.0, 0)
    return Round(limit, limit, 1.5, point, point, 20.0, point, Memory(300_000_000, 200_000_000))


def test_where_the_time_goes() -> None:
    """The report has each load's steps, CPU time beside that without a server, doubts, and failures of any load."""
    steps = Steps(client=40.0, server=30.0, decode=5.0, queue=7.0, inference=17.0)
    plain = scripted_round(40.0, 50.0)
    failing = replace(plain.many, errors=3, note="the generator fell behind", steps=None)
    rounds = [replace(plain, many=replace(plain.many, steps=steps), open_loop=failing)]
    ours = Outcome(Entry(scripted("ours"), SAME, Limit.OURS), rounds)
    text = page(Report([], list(rows([ours])), [ours], [], [], [], ""), "report")

    assert "| ours | 40.0 | 30.0 | 5.0 | 7.0 | 17.0 | 30.0 | 16.0 | 16 connections |" in text
    assert "| 1 connection |" not in text  # nothing was said of its steps
    assert "- ours, round 1, random arrivals: not to be relied on: the generator fell behind" in text
    assert "3 requests failed and are in no percentile" in text
    assert rounds[0].errors == 3


def test_every_option_says_what_it_is() -> None:
    """`python -m benchmarks --help` explains each option."""
    options = [one for one in main.params if isinstance(one, click.Option)]
    assert options
    assert [one.name for one in options if not one.help] == []


def test_best_peer() -> None:
    """The best peer is the best beside its yardstick: a machine that was slow while it ran does not count."""
    fast = Outcome(Entry(scripted("fast"), SAME), [scripted_round(60.0, 80.0)])
    better = Outcome(Entry(scripted("better"), SAME), [scripted_round(50.0, 50.0)])
    assert best_peer([fast, better]) is better
    assert best_peer([Outcome(Entry(scripted("ours"), SAME, Limit.OURS), [scripted_round(9.0, 1.0)])]) is None


def test_report(tmp_path: Path) -> None:
    """The page has the machine, each row with its verdict, each server, each curve with its picture and its rule."""
    ours = Outcome(
        Entry(scripted("ours"), SAME, Limit.OURS), [scripted_round(rate, 50.0) for rate in (40.0, 60.0, 50.0)]
    )
    peer = Outcome(Entry(scripted("peer"), SAME), [scripted_round(25.0, 50.0)])
    absent = Outcome(Entry(scripted("absent"), SAME), reason="not installed: no network")
    curve = kept("connections", "requests over connections", "connections", "requests/s", ((1.0, 30.0), (16.0, 20.0)))
    found = [*rows([ours, peer, absent]), curve.row]
    module = measured(Module("no_such_module"), "tiny", tmp_path)
    report = Report([("processor", "a CPU")], found, [ours, peer, absent], [curve], [module], [("peer", "1.0")], "How.")
    path = tmp_path / "report.md"
    write(report, path)

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
    kept_json = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert kept_json["outcomes"][2]["entry"] == {"name": "absent", "settings": ""}
    assert [one["many"]["per_second"] for one in kept_json["outcomes"][0]["rounds"]] == [40.0, 60.0, 50.0]


def test_install(tmp_path: Path) -> None:
    """A peer that cannot be installed has its reason, and the next is tried; every peer is pinned by exact versions."""
    broken = [replace(peer, python="/no/such/python") for peer in PEERS[:2]]
    told: list[str] = []
    failed = install(broken, tmp_path, told.append)
    assert set(failed) == {peer.name for peer in broken}
    assert all("/no/such/python" in reason for reason in failed.values())
    assert not any(is_installed(peer, tmp_path) for peer in PEERS)
    for peer in PEERS:
        for file in (peer.requirements, peer.lock):
            assert all(re.fullmatch(r"[\w.\[\]-]+==\S+", line) for line in file.read_text().split()), file


def test_peer_paths(tmp_path: Path) -> None:
    """A peer runs by a program of its own environment, and a name stands for one peer."""
    subjects = [peer.of(tmp_path) for peer in PEERS]
    assert all(one.program[0].startswith(str(tmp_path)) for one in subjects)
    assert len({peer.name for peer in PEERS}) == len({one.name for one in subjects}) == len(PEERS)
