"""The comparison over scripted servers: turns, medians, failures, and what the generator and the limits measure."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.answers import SAME, ExpectedAnswer
from benchmarks.comparison import MANY, ComparedServer, ComparisonResult, ServerComparison, best_peer, comparison_rows
from benchmarks.figures import Verdict
from benchmarks.limit import Limit, LimitFigures, LimitMeter
from benchmarks.load import LoadResult, load_result, put_load, send_requests
from benchmarks.report import BenchmarkReport, page
from benchmarks.server_under_test import ServerUnderTest, photo_probe
from loadgen.connection import OK, Connection, LoadTestError, OnResult, RequestResult
from loadgen.results import LoadLevel, SizeGroup
from models.artifact.artifact import load
from tests.benchmarks.test_report import scripted_round
from tests.loadgen.test_report import GOOD
from tests.scripted_server import PHOTO, scripted

pytestmark = pytest.mark.anyio

PROBABILITIES = np.array([0.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], np.float32)


@dataclass(slots=True)
class ScriptedLoad:
    """A limit and a load that give what the test says, and note in which order they were called."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def measure_limit(self, limit: Limit, _seconds: float) -> LimitFigures:
        """The limit, always the same."""
        self.calls.append(limit.name)
        return LimitFigures(50.0, 20.0, "scripted f32")

    def put_load(self, server: ServerUnderTest, photo: bytes, load: LoadLevel, seconds: float) -> LoadResult:
        """The next scripted rate at 16 connections that are not the warm-up; the server `dying` ends."""
        name = server.spec.name
        self.calls.append(f"{name} {load}")
        if name == "dying":
            return put_load(server, b"die", load, 0.1)
        rate = self.rates[name].pop(0) if load.connections == 16 and seconds == 4.0 else 1.0
        return LoadResult(rate, 20.5, 50.0, 30.0, 0)

    def compare(self, servers: list[ComparedServer], folder: Path, rounds: int) -> list[ComparisonResult]:
        """Compare with the one photo."""
        expected = [ExpectedAnswer(PHOTO, PROBABILITIES)]
        comparison = ServerComparison(
            rounds, 4.0, expected, folder, self.measure_limit, self.put_load, lambda _: None, stop_timeout_s=0.2
        )
        return comparison.run(servers)


def test_turns(tmp_path: Path) -> None:
    """Servers take turns, odd rounds go the other way, and the limits are measured before each; medians count."""
    load = ScriptedLoad({"ours": [90.0, 120.0, 150.0], "peer": [60.0, 30.0, 40.0]})
    servers = [ComparedServer(scripted("ours"), SAME, Limit.OURS), ComparedServer(scripted("peer"), SAME)]
    results = load.compare(servers, tmp_path, 3)

    order = [call.split()[0] for call in load.calls if call.endswith("16 connections")][::2]
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    ours = ["PEERS", "OURS", *["ours 16 connections"] * 2, "OURS", "ours 1 connection", "OURS", "ours 63 requests/s"]
    assert load.calls[: len(ours)] == ours
    rates = [[one.loads[MANY].per_second for one in result.rounds] for result in results]
    assert rates == [[90.0, 120.0, 150.0], [60.0, 30.0, 40.0]]
    found = {row.name: row for row in comparison_rows(results)}
    beside = found["ours / best peer, 16 connections"]
    assert (beside.values, beside.median, beside.verdict) == ((1.5, 4.0, 3.75), 3.75, Verdict.PASS)
    assert found["ours / its limit without a server"].median == pytest.approx(2.4)
    assert found["ours: p50 at 1 connection beyond decode + inference"].median == pytest.approx(0.5)
    assert [result.reason for result in results] == ["", ""]


def test_server_that_fails(tmp_path: Path) -> None:
    """A server that dies, does not start, or answers wrongly is named with its reason; others go on."""
    specs = [scripted("dying"), scripted("mute", "broken"), scripted("wrong", "wrong"), scripted("good")]
    results = ScriptedLoad({"good": [10.0, 11.0]}).compare([ComparedServer(one, SAME) for one in specs], tmp_path, 2)

    reasons = {one.name: one.reason for one in results}
    assert reasons.pop("good") == ""
    assert all(reason.startswith("round 1: ") for reason in reasons.values())
    assert "no request was answered well" in reasons["dying"]
    assert "ended with status 1 before it was ready; its log ends with: no model here" in reasons["mute"]
    assert "place 1 is class 5 with 0.100000, expected class 1 with 0.500000" in reasons["wrong"]
    assert [len(one.rounds) for one in results] == [0, 0, 0, 2]
    text = page(BenchmarkReport(outcomes=results))
    for name, reason in reasons.items():
        assert f"- {name} was not measured further: {reason}" in text


def test_best_peer() -> None:
    """The best peer is the best beside its yardstick: a machine that was slow while it ran does not count."""
    fast = ComparisonResult(ComparedServer(scripted("fast"), SAME), [scripted_round(60.0, 80.0)])
    better = ComparisonResult(ComparedServer(scripted("better"), SAME), [scripted_round(50.0, 50.0)])
    ours = ComparisonResult(ComparedServer(scripted("ours"), SAME, Limit.OURS), [scripted_round(9.0, 1.0)])
    assert best_peer([fast, better]) is better
    assert best_peer([ours]) is None


def test_result() -> None:
    """CPU time is divided by all requests: good, failed, and those sent before; a load of errors is none."""
    group = SizeGroup("photo", 1, 96, GOOD.latency_ms)
    errors, examples = {"status 500": 2}, {"status 500": "broken"}
    result = replace(GOOD, errors=errors, error_examples=examples, groups=(group,))
    assert load_result(result, 2.0, 2) == LoadResult(50.0, 20.0, 23.0, 20.0, 2)
    assert load_result(replace(result, valid=False, notes=("late", "busy")), 2.0, 2).note == "late; busy"
    with pytest.raises(LoadTestError, match="broken"):
        load_result(replace(result, groups=()), 2.0, 2)


def test_put_load(tmp_path: Path) -> None:
    """The generator of this project loads a server with the request that was checked before."""
    spec = scripted("good")
    with ServerUnderTest(spec, tmp_path, photo_probe(spec, PHOTO), stop_timeout_s=0.2) as server:
        result = put_load(server, PHOTO, LoadLevel(connections=2), 0.3)
        assert result.errors == 0
        assert result.per_second > 10
        assert 0 < result.p50_ms <= result.p99_ms
        with pytest.raises(LoadTestError, match="no request was answered well"):
            put_load(server, b"half a photo", LoadLevel(connections=2), 0.3)


class ScriptedConnection(Connection):
    """Notes what it sends; the payload `broken` fails."""

    def __init__(self, sent: list[bytes], on_result: OnResult) -> None:
        super().__init__([b"a", b"b", b"broken"], on_result)
        self._sent = sent

    async def aclose(self) -> None:
        self.busy = False

    def _send(self, payload: bytes) -> None:
        self._sent.append(payload)
        failure = "status 400" if payload == b"broken" else OK
        asyncio.get_running_loop().call_soon(self._finish, RequestResult(failure, payload))

    def _abort(self) -> None:
        raise AssertionError("no request of these tests times out")


@pytest.mark.parametrize("count", [0, 1, 7])
async def test_send_requests(count: int) -> None:
    """Each request is sent once, whether there are fewer than connections or more; the first that fails ends it."""
    sent: list[bytes] = []
    await send_requests(lambda _, on_result: ScriptedConnection(sent, on_result), [0, 1] * count, 3)
    assert sorted(sent) == [b"a"] * count + [b"b"] * count
    with pytest.raises(LoadTestError, match="a request failed: status 400: broken"):
        await send_requests(lambda _, on_result: ScriptedConnection(sent, on_result), [*[0] * count, 2, 1], 3)


def test_limits(exported: Path) -> None:
    """A limit has its figures, and says on which engine."""
    figures = LimitMeter(Limit.OURS_F32, load(exported, "tiny")).measure(0.2)
    assert min(figures.per_second, figures.alone_ms) > 0
    assert figures.engine == "onnxruntime f32"
