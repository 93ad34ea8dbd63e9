"""The comparison over scripted servers: turns, medians, failures, and what the generator measures."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from benchmarks.answers import ExpectedAnswer
from benchmarks.comparison import ComparedServer, ServerComparison, ServerRound, comparison_rows, comparison_table
from benchmarks.load import ServerLoad, put_load, send_requests
from benchmarks.report import NOT_MEASURED
from benchmarks.server_under_test import ServerUnderTest
from benchmarks.servers import EXPERT, NAIVE, ServerSpec
from loadgen.connection import LoadTestError, Response
from loadgen.measurement import LoadLevel, LoadResult
from tests.scripted_server import PHOTO, scripted

pytestmark = pytest.mark.anyio


def server_load(rate: float, errors: int = 0, notes: Sequence[str] = ()) -> ServerLoad:
    """What was measured at that rate."""
    latency_ms = {"p50": 20.0, "p99": 50.0}
    result = LoadResult(16, None, rate, 100, latency_ms, {"timeout": errors}, {}, 0.0, 0.1, list(notes))
    return ServerLoad(result, 30.0)


@dataclass(slots=True)
class ScriptedLoad:
    """A load that gives what the test says, and notes in which order it was called."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def put_load(self, server: ServerUnderTest, photo: bytes, load: LoadLevel, seconds: float) -> ServerLoad:
        """The next scripted rate at 16 connections that are not the warm-up; the server `dying` ends."""
        name = server.spec.name
        self.calls.append(f"{name} {load}")
        if name == "dying":
            return put_load(server, b"die", load, 0.1)
        rate = self.rates[name].pop(0) if load.connections == 16 and seconds == 4.0 else 1.0
        return server_load(rate)

    def compare(self, specs: list[ServerSpec], folder: Path, rounds: int) -> list[ComparedServer]:
        """Compare with the one photo."""
        expected = [ExpectedAnswer(PHOTO, (1, 0.5))]
        comparison = ServerComparison(rounds, 4.0, expected, folder, lambda _: None, self.put_load, stop_timeout_s=0.2)
        return comparison.run(specs)


def test_turns(tmp_path: Path) -> None:
    """Servers take turns, and odd rounds go the other way; ratios are those of the same round."""
    load = ScriptedLoad({"ours": [90.0, 120.0, 150.0], "peer": [60.0, 30.0, 40.0]})
    ours, peer = load.compare([scripted("ours"), scripted("peer")], tmp_path, 3)

    order = [call.split()[0] for call in load.calls if call.endswith("16 connections")][::2]
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert load.calls[:4] == [*["ours 16 connections"] * 2, "ours 1 connection", "ours 63 requests/s"]
    found = {row.name: row for row in comparison_rows(ours, ours, [peer])}
    beside = found["ours / best peer in f32, 16 connections"]
    assert list(beside.values) == [1.5, 4.0, 3.75]
    assert list(found["ours: p99 / p50 at 70 % of the maximum, random arrivals"].values) == [2.5] * 3
    assert all(0 < seconds < 20 for seconds in found["ours: start to first answer"].values)
    assert found["ours: memory after 16 connections"].verdict == "pass"
    assert (ours.reason, peer.reason) == ("", "")


def test_expert(tmp_path: Path) -> None:
    """The peer with the same runtime and precision has a row of its own, and is not the best peer in f32."""
    load = ScriptedLoad({"ours": [90.0], "peer": [30.0], EXPERT: [100.0]})
    ours, *peers = load.compare([scripted("ours"), scripted("peer"), scripted(EXPERT)], tmp_path, 1)

    found = {row.name: (list(row.values), row.verdict) for row in comparison_rows(ours, ours, peers)}
    assert found[f"ours / {EXPERT}, 16 connections"] == ([0.9], "miss")
    assert found["ours / best peer in f32, 16 connections"] == ([3.0], "pass")


def test_int8(tmp_path: Path) -> None:
    """int8 is compared with the expert's and with the naive server; it is checked against answers of its own."""
    load = ScriptedLoad({"ours": [90.0], NAIVE: [30.0], EXPERT: [100.0], "wrong": [150.0]})
    specs = [scripted("ours"), scripted(NAIVE), scripted(EXPERT), scripted("wrong", "wrong")]
    own = {"wrong": [ExpectedAnswer(PHOTO, (5, 0.1))]}
    comparison = ServerComparison(
        1, 4.0, [ExpectedAnswer(PHOTO, (1, 0.5))], tmp_path, lambda _: None, load.put_load, 0.2, own
    )
    ours, naive, expert, int8 = comparison.run(specs)

    rows = comparison_rows(ours, ours, [naive, expert], int8, 4.0)
    found = {row.name: (list(row.values), row.target, row.verdict) for row in rows}
    assert found[f"wrong / {EXPERT}, 16 connections"] == ([1.5], "≥ 1.4", "pass")
    assert found[f"wrong / {NAIVE}, 16 connections"] == ([5.0], "≥ 4", "pass")


def test_server_that_fails(tmp_path: Path) -> None:
    """A server that dies, does not start, or answers wrongly is named with its reason; others go on."""
    specs = [scripted("good"), scripted("dying"), scripted("mute", "broken"), scripted("wrong", "wrong")]
    good, *others = ScriptedLoad({"good": [10.0, 11.0]}).compare(specs, tmp_path, 2)

    reasons = {one.spec.name: one.reason for one in others}
    assert all(reason.startswith("round 1: ") for reason in reasons.values())
    assert "no request was answered well" in reasons["dying"]
    assert "ended with status 1 before it was ready; its log ends with: no model here" in reasons["mute"]
    assert "the best class is 5 with 0.100000, expected 1 with 0.500000" in reasons["wrong"]
    assert [len(one.rounds) for one in (good, *others)] == [2, 0, 0, 0]
    rows = list(comparison_rows(good, good, others))
    assert {row.name: row.note for row in rows if row.verdict == NOT_MEASURED and row.name in reasons} == reasons
    beside = next(row for row in rows if "best peer in f32" in row.name)
    assert (beside.verdict, beside.note) == (NOT_MEASURED, "no peer could be measured")


def test_table() -> None:
    """A server has a line with its medians, the errors of every load, and the doubts of the generator."""
    plain, doubtful = server_load(40), server_load(40, 3, ["the generator fell behind"])
    rounds = [ServerRound(1.5, 200_000_000, server_load(rate), plain, doubtful) for rate in (40, 60, 50)]
    server = ComparedServer(replace(scripted("ours"), settings="as it is"), rounds)
    found = comparison_table([server, ComparedServer(scripted("absent"), reason="not there")], [])

    (line,) = found.table
    assert len(line) == len(found.heads)
    assert line[:2] == ["ours", "50.0 (40.0 to 60.0)"]
    assert line[-3:] == ["9", "200 (200 to 200)", "1.5 (1.5 to 1.5)"]
    assert found.notes == ["ours: as it is", "ours: not to be relied on: the generator fell behind"]


def test_put_load(tmp_path: Path) -> None:
    """The generator of this project loads a server with the request that was checked before."""
    spec = scripted("good")
    with ServerUnderTest(spec, tmp_path, PHOTO, stop_timeout_s=0.2) as server:
        result = put_load(server, PHOTO, LoadLevel(connections=2), 0.3)
        assert result.result.failed == 0
        assert result.result.per_second > 10
        assert 0 < result.cpu_ms < 300
        with pytest.raises(LoadTestError, match="no request was answered well"):
            put_load(server, b"half a photo", LoadLevel(connections=2), 0.3)


@dataclass(slots=True)
class ScriptedConnection:
    """Counts what it sends, and whether it was closed; the fifth request of all fails."""

    sent: list[int]

    async def send(self, image: int, timeout_s: float) -> Response:
        """Send it."""
        self.sent.append(image)
        await asyncio.sleep(0)
        return Response("status 400" if len(self.sent) > 4 else "", b"broken")

    async def aclose(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("count", [0, 1, 4])
async def test_send_requests(count: int) -> None:
    """So many requests are sent, whether there are fewer than connections or more; the first that fails ends it."""
    sent: list[int] = []
    await send_requests(lambda _: ScriptedConnection(sent), count, 3)
    assert len(sent) == count
    with pytest.raises(LoadTestError, match="a request failed: status 400: broken"):
        await send_requests(lambda _: ScriptedConnection(sent), 9, 3)
