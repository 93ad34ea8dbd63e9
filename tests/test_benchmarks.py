"""The runner of the benchmarks over scripted servers: turns, medians, failures, processes, and what the report says."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.agreement import SAME, Expected
from benchmarks.asking import AnswerError, ask, bench_photo, five, pack
from benchmarks.batches import measure as measure_batches
from benchmarks.curves import CONNECTIONS, MEGAPIXELS, kept, served, turns
from benchmarks.figures import Verdict, falling, outgrowing
from benchmarks.install import install, is_installed
from benchmarks.limit import Figures, Limit, limits
from benchmarks.load import Load, LoadError, Point, drive, point_of
from benchmarks.modules import MODULES, Module, Wanted, flattened, measured, row_of
from benchmarks.race import Course, Entry, Outcome, Round, race
from benchmarks.report import Report, page, write
from benchmarks.rows import TIMES_BEST, best_peer, rows
from benchmarks.server import Place, Running, ServerError, running
from benchmarks.subjects import PEERS, Body, Subject
from benchmarks.tree import Memory, Tree

PHOTO = b"\xff\xd8 a photo, whole"
PROBABILITIES = np.array([0.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], np.float32)


def scripted(name: str, script: str = "good") -> Subject:
    """A tiny server as a subject."""
    return Subject(name, (sys.executable, "-m", "tests.scripted_server", "{port}", script), body=Body.RAW)


@dataclass(slots=True)
class Lane:
    """A limit and a load that answer what the test says, and note in which order they were called."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    limit: float = 50.0
    calls: list[str] = field(default_factory=list)
    dies: str = ""

    def measure(self, limit: Limit, seconds: float) -> Figures:
        """The limit, always the same."""
        self.calls.append(limit.name)
        return Figures(self.limit, 16.0, 20.0, 2, "scripted f32")

    def drive(self, server: Running, photos: Sequence[bytes], load: Load) -> Point:
        """One real request for each load; the next scripted rate at 16 connections that are not the warm-up."""
        name = server.subject.name
        self.calls.append(f"{name} {load}")
        if self.dies == name:
            with pytest.raises((OSError, RuntimeError)):
                ask(server.addresses[0], server.subject, b"die", 5.0)
            raise LoadError("connection refused")
        assert ask(server.addresses[0], server.subject, photos[0], 5.0)[0] == 200
        rate = 1.0
        if load.connections == 16 and load.rate is None and load.seconds == 4.0:
            rate = self.rates[name].pop(0)
        return Point(rate, 20.5, 50.0, 30.0, 0)


def course(folder: Path, rounds: int = 3) -> Course:
    """A race over the one photo."""
    return Course(rounds, 4.0, Place(folder / "model.onnx", folder, 20.0, 0.2), [Expected(PHOTO, PROBABILITIES)])


def test_turns(tmp_path: Path) -> None:
    """Servers take turns, odd rounds go the other way, and the limits are measured before each; medians count."""
    lane = Lane({"ours": [90.0, 120.0, 150.0], "peer": [60.0, 30.0, 40.0]})
    entries = [Entry(scripted("ours"), SAME, Limit.OURS), Entry(scripted("peer"), SAME)]
    outcomes = race(entries, course(tmp_path), lane.measure, lane.drive, lambda _: None)

    order = [call.split()[0] for call in lane.calls if call.endswith("16 connections")][::2]
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    ours = ["PEERS", "OURS", *["ours 16 connections"] * 2, "OURS", "ours 1 connections", "OURS", "ours 63 requests/s"]
    assert lane.calls[: len(ours)] == ours
    assert [[one.many.per_second for one in outcome.rounds] for outcome in outcomes] == [
        [90.0, 120.0, 150.0],
        [60.0, 30.0, 40.0],
    ]
    found = {row.name: row for row in rows(outcomes)}
    beside = found["ours / best peer, 16 connections"]
    assert (beside.values, beside.median, beside.verdict) == ((1.5, 4.0, 3.75), 3.75, Verdict.PASS)
    assert found["ours / its limit without a server"].median == pytest.approx(2.4)
    assert found["ours: p50 at 1 connection beyond decode + inference"].median == pytest.approx(0.5)
    assert [outcome.reason for outcome in outcomes] == ["", ""]
    behaviour = outcomes[1].behaviour
    assert behaviour is not None
    assert (behaviour.no_photo, behaviour.truncated, behaviour.good) == (400, 400, 35)


def test_one_that_fails(tmp_path: Path) -> None:
    """A server that dies, does not start, is not there or answers wrongly is named with its reason; others go on."""
    lane = Lane({"good": [10.0, 11.0]}, dies="dying")
    subjects = [scripted("dying"), scripted("mute", "broken"), scripted("wrong", "wrong"), scripted("good")]
    subjects.append(Subject("absent", ("/no/such/program",)))
    entries = [Entry(one, SAME) for one in subjects]
    outcomes = race(entries, course(tmp_path, 2), lane.measure, lane.drive, lambda _: None)

    reasons = {one.entry.subject.name: one.reason for one in outcomes}
    assert reasons.pop("good") == ""
    assert all(reason.startswith("round 1: ") for reason in reasons.values())
    assert "connection refused" in reasons["dying"]
    assert "ended with status 1 before it answered; its last words: no model here" in reasons["mute"]
    assert "place 1 is class 5 with 0.100000, expected class 1 with 0.500000" in reasons["wrong"]
    assert "/no/such/program cannot be run" in reasons["absent"]
    assert [len(one.rounds) for one in outcomes] == [0, 0, 0, 2, 0]
    text = page(Report([], [], outcomes, [], [], [], ""), "report")
    for name, reason in reasons.items():
        assert f"- {name} was not measured further: {reason}" in text


def test_no_process_survives(tmp_path: Path) -> None:
    """What ignores SIGTERM is killed, and its child in another session with it."""
    with running(scripted("stubborn", "stubborn"), course(tmp_path).place, PHOTO) as server:
        tree = server.tree
        assert len(tree.members()) == 2
        assert 0 < tree.memory().proportional <= tree.memory().resident
    assert tree.members() == []


def test_child_that_left(tmp_path: Path) -> None:
    """A process whose parent has ended is still found by the mark in its environment."""
    with running(scripted("stubborn", "stubborn"), course(tmp_path).place, PHOTO) as server:
        left = Tree(server.tree.mark, ())
        assert len(left.members()) == 2
        assert Tree("no such mark", ()).members() == []


def test_server_that_never_answers(tmp_path: Path) -> None:
    """A server that starts and never answers well is given up in time, and ended."""
    place = replace(course(tmp_path).place, start_timeout_s=1.0)
    with pytest.raises(ServerError, match="no answer with status 200 in time"):  # noqa: SIM117
        with running(scripted("good"), place, b"half a photo"):
            pass


def test_cpu_time(tmp_path: Path) -> None:
    """The CPU time of a server is what its processes have spent, to a few ticks."""
    with running(scripted("busy", "busy"), course(tmp_path).place, PHOTO) as server:
        assert 0.28 <= server.tree.cpu_s() <= 1.5


def test_copies(tmp_path: Path) -> None:
    """A subject of two copies runs twice, on two ports, and both answer."""
    subject = replace(scripted("two"), copies=2)
    with running(subject, course(tmp_path).place, PHOTO) as server:
        assert len(set(server.addresses)) == 2
        assert [ask(address, subject, PHOTO, 5.0)[0] for address in server.addresses] == [200, 200]


def test_point() -> None:
    """CPU time is divided by all requests: good, failed, and those asked before; a load of errors is none."""
    row = {
        "groups": [{"requests": 96}],
        "errors": {"status 500": 2},
        "error_examples": {},
        "requests_per_second": 40.0,
        "latency_ms": {"p50": 5.0, "p99": 9.0},
        "valid": True,
        "notes": [],
    }
    assert point_of(row, 2.0, 2) == Point(40.0, 5.0, 9.0, 20.0, 2)
    with pytest.raises(LoadError, match="status 500"):
        point_of({**row, "groups": []}, 2.0, 2)


def test_drive(tmp_path: Path) -> None:
    """The generator of this project loads a server; what is sent is what is checked before."""
    with running(scripted("good"), course(tmp_path).place, PHOTO) as server:
        point = drive(server, [PHOTO], Load(0.3, 2))
        assert point.errors == 0
        assert point.per_second > 10
        assert 0 < point.p50_ms <= point.p99_ms
        assert 0 < point.cpu_ms < 300
        with pytest.raises(LoadError, match="no request was answered well"):
            drive(server, [b"half a photo"], Load(0.3, 2))


def test_limits(exported: Path) -> None:
    """The process of the limits measures when it is told to, keeps its engine, and one that ended is told."""
    with limits("tiny", exported) as measure:
        first, second = measure(Limit.OURS, 0.2), measure(Limit.OURS, 0.2)
        assert min(first.per_second, first.cpu_ms, first.alone_ms, second.per_second) > 0
        assert first.threads == second.threads >= 1
        assert first.engine == second.engine
    with limits("no-such-model", exported) as measure, pytest.raises(RuntimeError, match="ended with status 1"):
        measure(Limit.OURS, 0.2)


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


def test_answers() -> None:
    """Five classes are read from each kind of answer, and what is none is refused."""
    listed = json.dumps([{"class": 3, "probability": 0.5}])
    nested = json.dumps([[{"class": 3, "probability": 0.5}]])
    tensor = json.dumps({"outputs": [{"data": [listed]}]})
    own = json.dumps({"predictions": [{"class_id": 3, "probability": 0.5}]})
    assert [five(text.encode()) for text in (listed, nested, tensor, own)] == [[(3, 0.5)]] * 4
    for text in ("{}", "no JSON", '["x"]'):
        with pytest.raises(AnswerError):
            five(text.encode())


def test_agreement() -> None:
    """Classes that are nearly equal may change places; a class that is worse may not take one."""
    close = Expected(PHOTO, np.array([0.30001, 0.3, 0.2, 0.1, 0.06, 0.04], np.float32))
    close.check([(1, 0.3), (0, 0.30001), (2, 0.2), (3, 0.1), (4, 0.06)], SAME)
    with pytest.raises(AnswerError, match="place 3 is class 3"):
        close.check([(0, 0.3), (1, 0.3), (3, 0.2), (2, 0.1), (4, 0.06)], SAME)
    with pytest.raises(AnswerError, match="0 classes instead of 5"):
        close.check([], SAME)


def test_bodies() -> None:
    """The photo is in every kind of body as it is, or as base64."""
    photo = bench_photo()
    assert 98_000 < len(photo) < 104_000
    for body in Body:
        packed = pack(Subject("x", body=body), photo)
        if body is Body.V2_JSON:
            assert json.loads(packed.data)["inputs"][0]["datatype"] == "BYTES"
        else:
            assert packed.data.count(photo) == 1


def test_rules() -> None:
    """The loss after a peak, and growth beyond that of the work, are found wherever they are."""
    assert falling([(1, 50.0), (16, 100.0), (64, 90.0), (256, 95.0)]) == 0.9
    assert falling([(1, 1.0), (2, 2.0)]) == 1.0
    assert outgrowing([(1.0, 10.0), (2.0, 20.0), (4.0, 80.0)]) == 2.0
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
    wanted = (Wanted("ratio", "a title", "", TIMES_BEST),)
    absent = measured(Module("no_such_module", wanted), "tiny", tmp_path)
    assert [(row.verdict, row.name, row.target) for row in absent.rows] == [(Verdict.ERROR, "a title", TIMES_BEST)]
    assert "there is no benchmarks.no_such_module" in absent.rows[0].note
    failing = measured(Module("gpu", wanted, ("--no-such-option",)), "tiny", tmp_path)
    assert failing.rows[0].verdict is Verdict.ERROR
    assert "No such option" in failing.rows[0].note
    assert len({module.name for module in MODULES}) == len(MODULES)


def scripted_round(rate: float, yardstick: float) -> Round:
    """A round with these rates."""
    limit = Figures(yardstick, 16.0, 20.0, 2, "scripted f32")
    point = Point(rate, 20.5, 50.0, 30.0, 0)
    return Round(limit, limit, 1.5, point, point, 20.0, point, Memory(300_000_000, 200_000_000))


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
    assert picture.read_text(encoding="utf-8").count("<circle") == 2
    kept_json = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
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
