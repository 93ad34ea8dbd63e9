"""The rows of the race: this server beside the best peer, beside the limits, and its latency."""

import statistics
from collections.abc import Callable, Iterator, Sequence

from benchmarks.figures import Bound, Row, Target, missing
from benchmarks.limit import Limit
from benchmarks.race import Outcome, Round

TIMES_BEST = Target(Bound.AT_LEAST, 3.0)
TIMES_BEST_EQUAL = Target(Bound.AT_LEAST, 1.05)
OF_LIMIT = Target(Bound.AT_LEAST, 0.9)
ADDED_MS = Target(Bound.AT_MOST, 1.0)
TAIL = Target(Bound.AT_MOST, 3.0)


def normalised(one: Round) -> float:
    """Requests at 16 connections for each image of the yardstick just before: what the noise of a machine leaves."""
    return one.many.per_second / one.yardstick.per_second


def best_peer(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The peer with the highest median; None where none was measured."""
    peers = [one for one in outcomes if one.entry.limit is Limit.PEERS and one.rounds]
    return max(peers, key=lambda one: statistics.median(map(normalised, one.rounds)), default=None)


def rows(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """The rows of targets 1 and 2, for the server by default and at equal runtime and precision.

    Those beside peers are left out where none was to be measured.
    """
    best = best_peer(outcomes)
    ours = [one for one in outcomes if one.entry.limit is not Limit.PEERS]
    for one in ours:
        name = one.entry.subject.name
        target = TIMES_BEST if one.entry.limit is Limit.OURS else TIMES_BEST_EQUAL
        if len(ours) < len(outcomes):
            yield _beside(one, best, target)
        yield _row(one, f"{name} / its limit without a server", OF_LIMIT, "", _of_limit, one.entry.limit)
        if one.entry.limit is Limit.OURS:
            yield _row(one, f"{name}: p50 at 1 connection beyond decode + inference", ADDED_MS, "ms", _added)
            yield _row(one, f"{name}: p99 / p50 at 70 % of the maximum, random arrivals", TAIL, "", _tail, _failed(one))


def _beside(one: Outcome, best: Outcome | None, target: Target) -> Row:
    name = f"{one.entry.subject.name} / best peer, 16 connections"
    if best is None or not one.rounds:
        return missing(name, one.reason or "no peer could be measured", target)
    pairs = zip(one.rounds, best.rounds, strict=False)
    ratios = tuple(normalised(mine) / normalised(theirs) for mine, theirs in pairs)
    own_ms, other_ms = (statistics.median(r.many.cpu_ms for r in each.rounds) for each in (one, best))
    own, other = (statistics.median(r.many.per_second for r in each.rounds) for each in (one, best))
    note = f"best is {best.entry.subject.name}; without the yardstick {own / other:.2f}, by CPU time per request "
    return Row(name, ratios, "", target, f"{note}{other_ms / own_ms:.2f}; {_engine(one)}")


def _row(one: Outcome, name: str, target: Target, unit: str, figure: Callable[[Round], float], note: str = "") -> Row:
    if not one.rounds:
        return missing(name, one.reason, target)
    return Row(name, tuple(figure(each) for each in one.rounds), unit, target, note or _engine(one))


def _engine(one: Outcome) -> str:
    return f"the limit runs {one.rounds[0].limit.engine}"


def _failed(one: Outcome) -> str:
    """Of random arrivals: percentiles are of those that were answered."""
    failed = sum(each.open_loop.errors for each in one.rounds if each.open_loop is not None)
    return f"{_engine(one)}; {failed} requests failed and are in no percentile" if failed else ""


def _of_limit(one: Round) -> float:
    return one.many.per_second / one.limit.per_second


def _added(one: Round) -> float:
    assert one.alone_ms is not None
    return one.one.p50_ms - one.alone_ms


def _tail(one: Round) -> float:
    assert one.open_loop is not None
    return one.open_loop.p99_ms / one.open_loop.p50_ms
