"""Compares servers in turns: each is started, checked, loaded and stopped in each round, beside the limits then."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.answers import AnswerError, ExpectedAnswer, check_answers
from benchmarks.figures import FigureTarget, ReportRow, missing
from benchmarks.limit import Limit, LimitFigures, MeasureLimit
from benchmarks.load import LoadResult, PutLoad
from benchmarks.server_under_test import ServerError, ServerUnderTest, photo_probe
from benchmarks.servers import ServerSpec
from loadgen.connection import LoadTestError
from loadgen.results import LoadLevel

MANY, ONE, ARRIVALS = "16 connections", "1 connection", "random arrivals"
"""The loads, by their names in the report."""

_SHARE = 0.7  # of the most requests per second, for random arrivals
_LIMIT_S = 1.6
_WARM_UP_S = 1.5


@dataclass(frozen=True, slots=True)
class ComparedServer:
    """A server, the tolerance for its answers (see `ExpectedAnswer`), and the limit that it is compared with."""

    spec: ServerSpec
    tolerance: float
    limit: Limit = Limit.PEERS


@dataclass(frozen=True, slots=True)
class ComparisonRound:
    """One server in one round: two limits just before it ran, then its figures.

    `yardstick` is the limit of the peers' recipe, which every server is compared with. `alone_ms` is the time of one
    photo without a server, the mean of just before and just after the load of one connection. It and random arrivals
    are measured for this server with default settings only.
    """

    yardstick: LimitFigures
    limit: LimitFigures
    start_s: float
    loads: Mapping[str, LoadResult]
    memory_bytes: int
    alone_ms: float = math.nan

    @property
    def errors(self) -> int:
        return sum(result.errors for result in self.loads.values())

    @property
    def normalised(self) -> float:
        """Requests at 16 connections per image of the yardstick. On a shared machine this varies less than a rate."""
        return self.loads[MANY].per_second / self.yardstick.per_second


@dataclass(slots=True)
class ComparisonResult:
    """The rounds of one server so far; `reason` says why it has no more."""

    server: ComparedServer
    rounds: list[ComparisonRound] = field(default_factory=list)
    reason: str = ""

    @property
    def name(self) -> str:
        return self.server.spec.name

    def median(self, figure: Callable[[ComparisonRound], float]) -> float:
        return statistics.median(map(figure, self.rounds))


@dataclass(frozen=True, slots=True)
class ServerComparison:
    """How servers are compared: with which photos, how often and how long, and where they write their logs."""

    rounds: int
    seconds: float
    expected: Sequence[ExpectedAnswer]
    folder: Path
    measure_limit: MeasureLimit
    put_load: PutLoad
    tell: Callable[[str], None]
    stop_timeout_s: float = 3.0

    def run(self, servers: Sequence[ComparedServer]) -> list[ComparisonResult]:
        """Measure every server in every round, in the opposite order every second round. Drop a server that fails."""
        results = [ComparisonResult(server) for server in servers]
        for number in range(self.rounds):
            for result in results if number % 2 == 0 else reversed(results):
                if result.reason:
                    continue
                try:
                    done = self._round(result)
                except (ServerError, LoadTestError, AnswerError, OSError) as error:
                    result.reason = f"round {number + 1}: {error}"
                    self.tell(f"round {number + 1}: {result.name} failed: {error}")
                else:
                    result.rounds.append(done)
                    figures = f"{done.loads[MANY].per_second:.1f}/s, {done.loads[MANY].cpu_ms:.1f} ms CPU each"
                    self.tell(f"round {number + 1}: {result.name}: {figures}")
        return results

    def _round(self, result: ComparisonResult) -> ComparisonRound:
        compared, photo, loads, alone_ms = result.server, self.expected[0].photo, {}, math.nan
        by_default = compared.limit is Limit.OURS
        yardstick = limit = self.measure_limit(Limit.PEERS, _LIMIT_S)
        if compared.limit is not Limit.PEERS:
            limit = self.measure_limit(compared.limit, _LIMIT_S)
        probe = photo_probe(compared.spec, photo)
        with ServerUnderTest(compared.spec, self.folder, probe, stop_timeout_s=self.stop_timeout_s) as server:
            server.settle()
            check_answers(server, self.expected, compared.tolerance)
            self.put_load(server, photo, LoadLevel(connections=16), _WARM_UP_S)
            loads[MANY] = self.put_load(server, photo, LoadLevel(connections=16), self.seconds)
            memory_bytes = server.tree.memory_bytes()
            before = self.measure_limit(Limit.OURS, _LIMIT_S) if by_default else None
            loads[ONE] = self.put_load(server, photo, LoadLevel(connections=1), self.seconds / 2)
            if before:
                alone_ms = (before.alone_ms + self.measure_limit(Limit.OURS, _LIMIT_S).alone_ms) / 2
                level = LoadLevel(rate=_SHARE * loads[MANY].per_second)
                loads[ARRIVALS] = self.put_load(server, photo, level, 2 * self.seconds)
            return ComparisonRound(yardstick, limit, server.start_s, loads, memory_bytes, alone_ms)


def best_peer(results: Sequence[ComparisonResult]) -> ComparisonResult | None:
    """The peer with the highest median beside its yardstick; None where no peer was measured."""
    peers = [one for one in results if one.server.limit is Limit.PEERS and one.rounds]
    return max(peers, key=lambda one: one.median(lambda each: each.normalised), default=None)


def comparison_rows(results: Sequence[ComparisonResult]) -> Iterator[ReportRow]:
    """The rows of this server with default settings, and with the runtime and precision of the peers.

    Rows beside the best peer are left out where no peer was to be measured.
    """
    best = best_peer(results)
    ours = [one for one in results if one.server.limit is not Limit.PEERS]
    for one in ours:
        by_default = one.server.limit is Limit.OURS
        if len(ours) < len(results):
            yield _beside(one, best, FigureTarget(at_least=3.0 if by_default else 1.05))
        values = [each.loads[MANY].per_second / each.limit.per_second for each in one.rounds]
        target = FigureTarget(at_least=0.9)
        yield _row(one, f"{one.name} / its limit without a server", values, target, note=one.server.limit)
        if by_default:
            values = [each.loads[ONE].p50_ms - each.alone_ms for each in one.rounds]
            name = f"{one.name}: p50 at 1 connection beyond decode + inference"
            yield _row(one, name, values, FigureTarget(at_most=1.0), unit="ms")
            arrivals = [each.loads[ARRIVALS] for each in one.rounds]
            failed = sum(result.errors for result in arrivals)
            note = f"{failed} requests failed and are in no percentile" if failed else ""
            values = [result.p99_ms / result.p50_ms for result in arrivals]
            name = f"{one.name}: p99 / p50 at 70 % of the maximum, random arrivals"
            yield _row(one, name, values, FigureTarget(at_most=3.0), note=note)


def _beside(one: ComparisonResult, best: ComparisonResult | None, target: FigureTarget) -> ReportRow:
    name = f"{one.name} / best peer, 16 connections"
    if best is None or not one.rounds:
        return missing(name, one.reason or "no peer could be measured", target)
    ratios = [ours.normalised / theirs.normalised for ours, theirs in zip(one.rounds, best.rounds, strict=False)]
    per_second, best_per_second = (each.median(lambda r: r.loads[MANY].per_second) for each in (one, best))
    cpu_ms, best_cpu_ms = (each.median(lambda r: r.loads[MANY].cpu_ms) for each in (one, best))
    note = (
        f"best is {best.name}; without the yardstick {per_second / best_per_second:.2f}, "
        f"by CPU time per request {best_cpu_ms / cpu_ms:.2f}"
    )
    return _row(one, name, ratios, target, note=note)


def _row(
    one: ComparisonResult, name: str, values: Sequence[float], target: FigureTarget, *, unit: str = "", note: str = ""
) -> ReportRow:
    if not values:
        return missing(name, one.reason, target)
    engine = f"the limit runs {one.rounds[0].limit.engine}"
    return ReportRow(name, tuple(values), unit, target, f"{note}; {engine}" if note else engine)
