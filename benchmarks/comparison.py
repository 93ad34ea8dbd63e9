"""Compares servers in turns: in each round each is started, checked, loaded and stopped."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.answers import AnswerError, ExpectedAnswer, check_answers
from benchmarks.load import PutLoad, ServerLoad, put_load
from benchmarks.report import Measurement, ReportRow, spread
from benchmarks.server_under_test import ServerError, ServerUnderTest
from benchmarks.servers import EXPERT, NAIVE, ServerSpec
from loadgen.connection import LoadTestError
from loadgen.measurement import LoadLevel

_SHARE = 0.7  # of the most requests per second, for random arrivals
_WARM_UP_S = 3.0  # further workers may still start when the first one answers


@dataclass(frozen=True, slots=True)
class ServerRound:
    """One server in one round: under 16 connections, under one, and under random arrivals."""

    start_s: float
    memory_bytes: int
    many: ServerLoad
    one: ServerLoad
    arrivals: ServerLoad


@dataclass(slots=True)
class ComparedServer:
    """A server and its rounds so far; `reason` says why it has no more."""

    spec: ServerSpec
    rounds: list[ServerRound] = field(default_factory=list)
    reason: str = ""

    @property
    def loads(self) -> list[ServerLoad]:
        return [load for each in self.rounds for load in (each.many, each.one, each.arrivals)]

    def values(self, figure: Callable[[ServerRound], float]) -> list[float]:
        return [figure(each) for each in self.rounds]

    def median(self, figure: Callable[[ServerRound], float]) -> float:
        return statistics.median(self.values(figure))


@dataclass(frozen=True, slots=True)
class ServerComparison:
    """How servers are compared: with which photos, how often and how long, and where they write their logs.

    `expected_of` has the answers of servers, by name, that do not give the `expected` ones.
    """

    rounds: int
    seconds: float
    expected: Sequence[ExpectedAnswer]
    folder: Path
    tell: Callable[[str], None]
    put_load: PutLoad = put_load
    stop_timeout_s: float = 3.0
    expected_of: Mapping[str, Sequence[ExpectedAnswer]] = field(default_factory=dict)

    def run(self, specs: Sequence[ServerSpec]) -> list[ComparedServer]:
        """Measure every server in every round, in the opposite order every second round. Drop a server that fails."""
        servers = [ComparedServer(spec) for spec in specs]
        for number in range(self.rounds):
            for one in servers if number % 2 == 0 else reversed(servers):
                if one.reason:
                    continue
                try:
                    done = self._round(one.spec)
                except (ServerError, LoadTestError, AnswerError, OSError) as error:
                    one.reason = f"round {number + 1}: {' '.join(str(error).split())}"
                    self.tell(f"{one.spec.name} failed: {one.reason}")
                else:
                    one.rounds.append(done)
                    figures = f"{done.many.result.per_second:.1f}/s, {done.many.cpu_ms:.1f} ms CPU each"
                    self.tell(f"round {number + 1}: {one.spec.name}: {figures}")
        return servers

    def _round(self, spec: ServerSpec) -> ServerRound:
        photo = self.expected[0].photo
        with ServerUnderTest(spec, self.folder, photo, stop_timeout_s=self.stop_timeout_s) as server:
            check_answers(server, self.expected_of.get(spec.name, self.expected))
            self.put_load(server, photo, LoadLevel(connections=16), _WARM_UP_S)
            many = self.put_load(server, photo, LoadLevel(connections=16), self.seconds)
            memory_bytes = server.memory_bytes()
            one = self.put_load(server, photo, LoadLevel(connections=1), self.seconds)
            arrivals = self.put_load(server, photo, LoadLevel(rate=_SHARE * many.result.per_second), self.seconds)
            return ServerRound(server.start_s, memory_bytes, many, one, arrivals)


def _rate(each: ServerRound) -> float:
    return each.many.result.per_second


def ratio_row(
    one: ComparedServer,
    other: ComparedServer | None,
    name: str,
    figure: Callable[[ServerRound], float],
    at_least: float,
) -> ReportRow:
    """A figure of one server divided by that of another in the same round."""
    values = []
    if other is not None:
        values = [figure(a) / figure(b) for a, b in zip(one.rounds, other.rounds, strict=False)]
    if not values:
        return ReportRow(name, note=one.reason or "no peer could be measured")
    assert other is not None
    cpu = other.median(lambda each: each.many.cpu_ms) / one.median(lambda each: each.many.cpu_ms)
    return ReportRow(name, values, at_least=at_least, note=f"{other.spec.name}; by CPU time per request {cpu:.2f}")


def comparison_rows(
    default: ComparedServer,
    equal: ComparedServer,
    peers: Sequence[ComparedServer],
    int8: ComparedServer | None = None,
    int8_target: float = 2.5,
) -> Iterator[ReportRow]:
    """The targets of this server, with default settings, as the peers run and in int8, and each server that failed.

    `int8_target` is how many times the requests of the naive server int8 should answer.
    """
    name = default.spec.name
    if peers:
        expert = next((one for one in peers if one.rounds and one.spec.name == EXPERT), None)
        yield ratio_row(default, expert, f"{name} / {EXPERT}, 16 connections", _rate, 1.0)
        f32 = [one for one in peers if one.rounds and one is not expert]
        best = max(f32, key=lambda one: one.median(_rate), default=None)
        for one, at_least in ((default, 3.0), (equal, 1.05)):
            yield ratio_row(one, best, f"{one.spec.name} / best peer in f32, 16 connections", _rate, at_least)
        if int8 is not None:
            naive = next((one for one in f32 if one.spec.name == NAIVE), None)
            yield ratio_row(int8, expert, f"{int8.spec.name} / {EXPERT}, 16 connections", _rate, 1.4)
            yield ratio_row(int8, naive, f"{int8.spec.name} / {NAIVE}, 16 connections", _rate, int8_target)
    if default.rounds:
        tail = default.values(
            lambda each: each.arrivals.result.latency_ms["p99"] / each.arrivals.result.latency_ms["p50"]
        )
        yield ReportRow(f"{name}: p99 / p50 at 70 % of the maximum, random arrivals", tail, at_most=3.0)
        yield ReportRow(f"{name}: start to first answer", default.values(lambda each: each.start_s), "s", at_most=2.0)
        memory = default.values(lambda each: each.memory_bytes / 1e6)
        yield ReportRow(f"{name}: memory after 16 connections", memory, "MB", at_most=350.0)
    for one in (default, equal, *peers, *([int8] if int8 else [])):
        if one.reason:
            yield ReportRow(one.spec.name, note=one.reason)


def comparison_table(servers: Sequence[ComparedServer], rows: Sequence[ReportRow]) -> Measurement:
    """A line for each server that was measured, and these rows."""
    heads = (
        "server", "16 connections, requests/s", "p50 ms", "p99 ms", "CPU ms each",
        "1 connection, p50 ms", "p99 ms", "CPU ms each",
        "70 % by random arrivals, p50 ms", "p99 ms",
        "errors", "PSS MB", "first answer s",
    )  # fmt: skip
    measured = [one for one in servers if one.rounds]
    notes = [f"{one.spec.name}: {one.spec.settings}" for one in measured]
    for one in measured:
        for text in sorted({note for load in one.loads for note in load.result.notes}):
            notes.append(f"{one.spec.name}: not to be relied on: {text}")
    return Measurement("Side by side", heads, [_cells(one) for one in measured], rows, notes)


def _cells(one: ComparedServer) -> list[str]:
    return [
        one.spec.name,
        spread(one.values(lambda each: each.many.result.per_second), 1),
        spread(one.values(lambda each: each.many.result.latency_ms["p50"]), 0),
        spread(one.values(lambda each: each.many.result.latency_ms["p99"]), 0),
        spread(one.values(lambda each: each.many.cpu_ms), 1),
        spread(one.values(lambda each: each.one.result.latency_ms["p50"]), 1),
        spread(one.values(lambda each: each.one.result.latency_ms["p99"]), 1),
        spread(one.values(lambda each: each.one.cpu_ms), 1),
        spread(one.values(lambda each: each.arrivals.result.latency_ms["p50"]), 1),
        spread(one.values(lambda each: each.arrivals.result.latency_ms["p99"]), 1),
        str(sum(load.result.failed for load in one.loads)),
        spread(one.values(lambda each: each.memory_bytes / 1e6), 0),
        spread(one.values(lambda each: each.start_s), 1),
    ]
