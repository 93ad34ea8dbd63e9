"""The comparison over scripted servers: turns, medians, failures, and what the generator measures."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from benchmarks.answers import ExpectedAnswer
from benchmarks.comparison import ComparedServer, ServerComparison, ServerRound, comparison_rows, comparison_table
from benchmarks.load import LoadResult, load_result, put_load, send_requests
from benchmarks.report import NOT_MEASURED
from benchmarks.server_under_test import ServerUnderTest
from benchmarks.servers import ServerSpec
from loadgen.connection import OK, Connection, LoadTestError, OnResult, RequestResult
from loadgen.results import LoadLevel, SizeGroup
from tests.loadgen.test_report import GOOD
from tests.scripted_server import PHOTO, scripted

pytestmark = pytest.mark.anyio


@dataclass(slots=True)
class ScriptedLoad:
    """A load that gives what the test says, and notes in which order it was called."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def put_load(self, server: ServerUnderTest, photo: bytes, load: LoadLevel, seconds: float) -> LoadResult:
        """The next scripted rate at 16 connections that are not the warm-up; the server `dying` ends."""
        name = server.spec.name
        self.calls.append(f"{name} {load}")
        if name == "dying":
            return put_load(server, b"die", load, 0.1)
        rate = self.rates[name].pop(0) if load.connections == 16 and seconds == 4.0 else 1.0
        return LoadResult(rate, 20.0, 50.0, 30.0, 0)

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
    beside = found["ours / best peer, 16 connections"]
    assert list(beside.values) == [1.5, 4.0, 3.75]
    assert list(found["ours: p99 / p50 at 70 % of the maximum, random arrivals"].values) == [2.5] * 3
    assert all(0 < seconds < 20 for seconds in found["ours: start to first answer"].values)
    assert found["ours: memory after 16 connections"].verdict == "pass"
    assert (ours.reason, peer.reason) == ("", "")


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
    beside = next(row for row in rows if "best peer" in row.name)
    assert (beside.verdict, beside.note) == (NOT_MEASURED, "no peer could be measured")


def test_table() -> None:
    """A server has a line with its medians, the errors of every load, and the doubts of the generator."""
    plain = LoadResult(40.0, 20.0, 50.0, 30.0, 0)
    doubtful = replace(plain, errors=3, note="the generator fell behind")
    rounds = [ServerRound(1.5, 200_000_000, replace(plain, per_second=rate), plain, doubtful) for rate in (40, 60, 50)]
    server = ComparedServer(replace(scripted("ours"), settings="as it is"), rounds)
    found = comparison_table([server, ComparedServer(scripted("absent"), reason="not there")], [])

    (line,) = found.table
    assert len(line) == len(found.heads)
    assert line[:2] == ["ours", "50.0 (40.0 to 60.0)"]
    assert line[-3:] == ["9", "200 (200 to 200)", "1.5 (1.5 to 1.5)"]
    assert found.notes == ["ours: as it is", "ours: not to be relied on: the generator fell behind"]


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
    with ServerUnderTest(spec, tmp_path, PHOTO, stop_timeout_s=0.2) as server:
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
