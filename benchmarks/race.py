"""Servers measured in turns: each is started, checked, loaded and ended in each round, beside the limits then."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.agreement import Expected
from benchmarks.asking import AnswerError, ask, five
from benchmarks.behaviour import Behaviour, behaviour
from benchmarks.limit import Figures, Limit, Measure
from benchmarks.load import Drive, Load, LoadError, Point
from benchmarks.server import Place, Running, ServerError, running
from benchmarks.subjects import Subject
from benchmarks.tree import Memory

_MANY = 16
_SHARE = 0.7  # of the most requests per second, for the open loop
_ASK_S = 30.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A server in the race: how far its answers may be off, and the limit that it is compared with."""

    subject: Subject
    tolerance: float
    limit: Limit = Limit.PEERS


@dataclass(frozen=True, slots=True)
class Round:
    """One server in one round: the limits just before it ran, then its figures.

    `alone_ms` is one photo decoded and run without a server, the mean of just before and just after `one`. It and the
    open loop are measured of this server by default settings alone.
    """

    yardstick: Figures
    limit: Figures
    start_s: float
    many: Point
    one: Point
    alone_ms: float | None
    open_loop: Point | None
    memory: Memory

    @property
    def loads(self) -> dict[str, Point]:
        """What it was loaded with, by name."""
        found = {"16 connections": self.many, "1 connection": self.one}
        return found if self.open_loop is None else {**found, "random arrivals": self.open_loop}

    @property
    def errors(self) -> int:
        """Failed requests of all loads."""
        return sum(point.errors for point in self.loads.values())


@dataclass(slots=True)
class Outcome:
    """All rounds of one server; `reason` says why there are no more."""

    entry: Entry
    rounds: list[Round] = field(default_factory=list)
    behaviour: Behaviour | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Course:
    """How often and how long is measured, where servers run, and what they are asked."""

    rounds: int
    seconds: float
    place: Place
    expected: Sequence[Expected]
    limit_seconds: float = 1.6
    warm_up_s: float = 1.5


def race(
    entries: Sequence[Entry], course: Course, measure: Measure, drive: Drive, tell: Callable[[str], None]
) -> list[Outcome]:
    """Every entry in every round, in the opposite order in odd rounds; one that fails is not tried again."""
    outcomes = [Outcome(entry) for entry in entries]
    for number in range(course.rounds):
        for outcome in outcomes if number % 2 == 0 else reversed(outcomes):
            if outcome.reason:
                continue
            name = outcome.entry.subject.name
            try:
                done = _round(outcome, course, measure, drive)
            except (ServerError, LoadError, AnswerError, OSError) as error:
                outcome.reason = f"round {number + 1}: {error}"
                tell(f"round {number + 1}: {name} failed: {error}")
            else:
                outcome.rounds.append(done)
                tell(f"round {number + 1}: {name}: {done.many.per_second:.1f}/s, {done.many.cpu_ms:.1f} ms CPU each")
    return outcomes


def _round(outcome: Outcome, course: Course, measure: Measure, drive: Drive) -> Round:
    entry, photo = outcome.entry, course.expected[0].photo
    yardstick = measure(Limit.PEERS, course.limit_seconds)
    limit = yardstick if entry.limit is Limit.PEERS else measure(entry.limit, course.limit_seconds)
    with running(entry.subject, course.place, photo) as server:
        for known in course.expected:
            _check(server, known, entry.tolerance)
        drive(server, [photo], Load(course.warm_up_s, _MANY))
        many = drive(server, [photo], Load(course.seconds, _MANY))
        memory = server.tree.memory()
        one, alone_ms = _one(server, entry, course, measure, drive)
        open_loop = None
        if entry.limit is Limit.OURS:
            open_loop = drive(server, [photo], Load(2 * course.seconds, rate=_SHARE * many.per_second))
        if outcome.behaviour is None:
            outcome.behaviour = behaviour(server, photo)
        return Round(yardstick, limit, server.start_s, many, one, alone_ms, open_loop, memory)


def _one(server: Running, entry: Entry, course: Course, measure: Measure, drive: Drive) -> tuple[Point, float | None]:
    """One connection; for this server by default the same photo without it, just before and just after."""
    load = Load(course.seconds / 2, 1)
    photos = [course.expected[0].photo]
    if entry.limit is not Limit.OURS:
        return drive(server, photos, load), None
    before = measure(entry.limit, course.limit_seconds).alone_ms
    point = drive(server, photos, load)
    return point, (before + measure(entry.limit, course.limit_seconds).alone_ms) / 2


def _check(server: Running, one: Expected, tolerance: float) -> None:
    """Each process of it answers as expected. Raises AnswerError."""
    for address in server.addresses:
        status, body = ask(address, server.subject, one.photo, _ASK_S)
        if status != 200:
            raise AnswerError(f"a good photo is answered with status {status}: {body[:200]!r}")
        one.check(five(body), tolerance)
