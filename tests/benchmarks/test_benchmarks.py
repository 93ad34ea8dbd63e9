"""The runner of the benchmarks over scripted servers: turns, medians, failures, processes, and what the report says."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.agreement import SAME, Expected
from benchmarks.asking import AnswerError, ask, bench_photo, five, pack
from benchmarks.figures import Verdict
from benchmarks.limit import Figures, Limit, LimitError, limits
from benchmarks.load import Load, LoadError, Point, Steps, drive, point_of
from benchmarks.race import Course, Entry, race
from benchmarks.report import Report, page
from benchmarks.rows import rows
from benchmarks.server import Place, Running, ServerError, running
from benchmarks.subjects import Body, Subject
from benchmarks.tree import Tree

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
        "latency_ms": {"mean": 6.0, "p50": 5.0, "p99": 9.0},
        "server_ms": {"queue": 1.0, "input": 2.0, "inference": 1.5, "output": 0.0, "total": 4.8},
        "valid": True,
        "notes": [],
    }
    assert point_of(row, 2.0, 2) == Point(40.0, 5.0, 9.0, 20.0, 2, steps=Steps(6.0, 4.8, 2.0, 1.0, 1.5))
    assert point_of({**row, "server_ms": None}, 2.0, 2).steps is None
    with pytest.raises(LoadError, match="status 500"):
        point_of({**row, "groups": []}, 2.0, 2)


def test_drive(tmp_path: Path) -> None:
    """The generator of this project loads a server; what is sent is what is checked before."""
    with running(scripted("good"), course(tmp_path).place, PHOTO) as server:
        point = drive(server, [PHOTO], Load(0.3, 2))
        assert point.errors == 0
        assert point.per_second > 10
        assert 0 < point.p50_ms <= point.p99_ms
        with pytest.raises(LoadError, match="no request was answered well"):
            drive(server, [b"half a photo"], Load(0.3, 2))


def test_limits(exported: Path) -> None:
    """The process of the limits measures when it is told to, keeps its engine, and one that ended is told."""
    with limits("tiny", exported) as measure:
        first, second = measure(Limit.OURS, 0.2), measure(Limit.OURS, 0.2)
        assert min(first.per_second, first.cpu_ms, first.alone_ms, second.per_second) > 0
        assert first.threads == second.threads >= 1
        assert first.engine == second.engine
    with limits("no-such-model", exported) as measure, pytest.raises(LimitError, match="ended with status 1"):
        measure(Limit.OURS, 0.2)


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
