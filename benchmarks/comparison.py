"""Compares servers in turns: each is started, checked, loaded and stopped in each round, beside the limits then."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.answers import (
    AnswerError,
    BrokenFileAnswers,
    ExpectedAnswer,
    check_answers,
    send_broken_files,
)
from benchmarks.figures import FigureTarget, ReportRow, missing
from benchmarks.limit import Limit, LimitFigures, MeasureLimit
from benchmarks.load import LoadResult, PutLoad
from benchmarks.server_under_test import MemoryUse, ServerError, ServerUnderTest, photo_probe
from benchmarks.servers import ServerSpec
from loadgen.connection import LoadTestError
from loadgen.results import LoadLevel

TIMES_BEST = FigureTarget(at_least=3.0)
TIMES_BEST_EQUAL = FigureTarget(at_least=1.05)
OF_LIMIT = FigureTarget(at_least=0.9)
ADDED_MS = FigureTarget(at_most=1.0)
TAIL = FigureTarget(at_most=3.0)

_MANY = LoadLevel(connections=16)
_ONE = LoadLevel(connections=1)
_SHARE = 0.7  # of the most requests per second, for random arrivals


@dataclass(frozen=True, slots=True)
class ComparedServer:
    """A server, the tolerance for its answers (see `ExpectedAnswer`), and the limit that it is compared with."""

    spec: ServerSpec
    tolerance: float
    limit: Limit = Limit.PEERS


@dataclass(frozen=True, slots=True)
class ComparisonRound:
    """One server in one round: two limits just before it ran, then its figures.

    `yardstick` is the limit of the peers' recipe, which every server is compared with. `many` and `one` are the
    results at 16 connections and at one. `alone_ms` is the time of one photo without a server, the mean of just before
    and just after `one`. It and `open_loop` are measured for this server with default settings only.
    """

    yardstick: LimitFigures
    limit: LimitFigures
    start_s: float
    many: LoadResult
    one: LoadResult
    alone_ms: float | None
    open_loop: LoadResult | None
    memory: MemoryUse

    @property
    def loads(self) -> dict[str, LoadResult]:
        found = {"16 connections": self.many, "1 connection": self.one}
        return found if self.open_loop is None else {**found, "random arrivals": self.open_loop}

    @property
    def errors(self) -> int:
        return sum(result.errors for result in self.loads.values())

    @property
    def normalised(self) -> float:
        """Requests at 16 connections per image of the yardstick. On a shared machine this varies less than a rate."""
        return self.many.per_second / self.yardstick.per_second

    @property
    def of_limit(self) -> float:
        return self.many.per_second / self.limit.per_second

    @property
    def added_ms(self) -> float:
        """How much longer one photo takes with the server than without it."""
        assert self.alone_ms is not None
        return self.one.p50_ms - self.alone_ms

    @property
    def tail(self) -> float:
        """The 99th percentile of random arrivals over their median."""
        assert self.open_loop is not None
        return self.open_loop.p99_ms / self.open_loop.p50_ms


@dataclass(slots=True)
class ComparisonResult:
    """The rounds of one server so far; `reason` says why it has no more."""

    server: ComparedServer
    rounds: list[ComparisonRound] = field(default_factory=list)
    broken_files: BrokenFileAnswers | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        return self.server.spec.name


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
    limit_s: float = 1.6
    warm_up_s: float = 1.5
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
                    figures = f"{done.many.per_second:.1f}/s, {done.many.cpu_ms:.1f} ms CPU each"
                    self.tell(f"round {number + 1}: {result.name}: {figures}")
        return results

    def _round(self, result: ComparisonResult) -> ComparisonRound:
        compared, photo = result.server, self.expected[0].photo
        yardstick = self.measure_limit(Limit.PEERS, self.limit_s)
        limit = yardstick if compared.limit is Limit.PEERS else self.measure_limit(compared.limit, self.limit_s)
        probe = photo_probe(compared.spec, photo)
        with ServerUnderTest(compared.spec, self.folder, probe, stop_timeout_s=self.stop_timeout_s) as server:
            server.settle()
            check_answers(server, self.expected, compared.tolerance)
            self.put_load(server, photo, _MANY, self.warm_up_s)
            many = self.put_load(server, photo, _MANY, self.seconds)
            memory = server.tree.memory()
            one, alone_ms = self._one(server, compared)
            open_loop = None
            if compared.limit is Limit.OURS:
                rate = LoadLevel(rate=_SHARE * many.per_second)
                open_loop = self.put_load(server, photo, rate, 2 * self.seconds)
            if result.broken_files is None:
                result.broken_files = send_broken_files(server, photo)
            return ComparisonRound(yardstick, limit, server.start_s, many, one, alone_ms, open_loop, memory)

    def _one(self, server: ServerUnderTest, compared: ComparedServer) -> tuple[LoadResult, float | None]:
        photo, seconds = self.expected[0].photo, self.seconds / 2
        if compared.limit is not Limit.OURS:
            return self.put_load(server, photo, _ONE, seconds), None
        before = self.measure_limit(compared.limit, self.limit_s).alone_ms
        result = self.put_load(server, photo, _ONE, seconds)
        return result, (before + self.measure_limit(compared.limit, self.limit_s).alone_ms) / 2


def best_peer(results: Sequence[ComparisonResult]) -> ComparisonResult | None:
    """The peer with the highest median beside its yardstick; None where no peer was measured."""
    peers = [one for one in results if one.server.limit is Limit.PEERS and one.rounds]
    return max(peers, key=lambda one: statistics.median(each.normalised for each in one.rounds), default=None)


def comparison_rows(results: Sequence[ComparisonResult]) -> Iterator[ReportRow]:
    """The rows of this server with default settings, and with the runtime and precision of the peers.

    Rows beside the best peer are left out where no peer was to be measured.
    """
    best = best_peer(results)
    ours = [one for one in results if one.server.limit is not Limit.PEERS]
    for one in ours:
        by_default = one.server.limit is Limit.OURS
        if len(ours) < len(results):
            yield _beside(one, best, TIMES_BEST if by_default else TIMES_BEST_EQUAL)
        values = [each.of_limit for each in one.rounds]
        yield _row(one, f"{one.name} / its limit without a server", values, OF_LIMIT, note=one.server.limit)
        if by_default:
            values = [each.added_ms for each in one.rounds]
            yield _row(one, f"{one.name}: p50 at 1 connection beyond decode + inference", values, ADDED_MS, unit="ms")
            values = [each.tail for each in one.rounds]
            name = f"{one.name}: p99 / p50 at 70 % of the maximum, random arrivals"
            failed = sum(each.open_loop.errors for each in one.rounds if each.open_loop is not None)
            note = f"{_engine(one)}; {failed} requests failed and are in no percentile" if failed else ""
            yield _row(one, name, values, TAIL, note=note)


def _beside(one: ComparisonResult, best: ComparisonResult | None, target: FigureTarget) -> ReportRow:
    name = f"{one.name} / best peer, 16 connections"
    if best is None or not one.rounds:
        return missing(name, one.reason or "no peer could be measured", target)
    ratios = [ours.normalised / theirs.normalised for ours, theirs in zip(one.rounds, best.rounds, strict=False)]
    per_second, best_per_second = (statistics.median(r.many.per_second for r in each.rounds) for each in (one, best))
    cpu_ms, best_cpu_ms = (statistics.median(r.many.cpu_ms for r in each.rounds) for each in (one, best))
    note = (
        f"best is {best.name}; without the yardstick {per_second / best_per_second:.2f}, "
        f"by CPU time per request {best_cpu_ms / cpu_ms:.2f}; {_engine(one)}"
    )
    return ReportRow(name, tuple(ratios), "", target, note)


def _row(
    one: ComparisonResult, name: str, values: Sequence[float], target: FigureTarget, *, unit: str = "", note: str = ""
) -> ReportRow:
    if not values:
        return missing(name, one.reason, target)
    return ReportRow(name, tuple(values), unit, target, note or _engine(one))


def _engine(one: ComparisonResult) -> str:
    return f"the limit runs {one.rounds[0].limit.engine}"
