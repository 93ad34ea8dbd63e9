"""The two ways of asking: as fast as the answers come, or when it is due, whatever the answers do."""

import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from loadgen.connection import TIMEOUT, Line, MakeLine, Outcome
from loadgen.recorder import Recorder
from service.common.clock import Clock, Timer

_EARLY_S = 0.0005  # timers of event loops keep to the millisecond: to wait for the rest would burn the processor

_AT_ONCE = 64  # at a rate beyond what can be sent, answers and Ctrl-C must get their turn

Pick = Callable[[], int]
"""The index of the next request."""


class Loop(Protocol):
    """Keeps asking from `start` to `stop`."""

    def start(self) -> None:
        """Begin to ask."""

    def stop(self) -> None:
        """Begin no further request; those under way go on."""

    def expire(self, began_before: float) -> None:
        """Give up every request that began before then."""

    @property
    def under_way(self) -> int:
        """Requests that have begun and not ended."""

    @property
    def connects(self) -> tuple[int, int]:
        """How many connections were made, and on how many lines."""

    @property
    def waited(self) -> int:
        """Requests that were due when no line was free, nor one more allowed."""

    async def aclose(self) -> None:
        """End all connections."""


class ClosedLoop:
    """`connections` lines, each sends its next request as soon as it has an answer."""

    def __init__(self, make_line: MakeLine, connections: int, pick: Pick, recorder: Recorder, clock: Clock) -> None:
        self._lines = [make_line(number, self._done) for number in range(connections)]
        self._pick = pick
        self._recorder = recorder
        self._clock = clock
        self._asking = False

    def start(self) -> None:
        """Begin to ask."""
        self._asking = True
        for line in self._lines:
            line.send(self._pick(), self._clock.now())

    def stop(self) -> None:
        """Begin no further request."""
        self._asking = False

    def expire(self, began_before: float) -> None:
        """Give up every request that began before then."""
        for line in self._lines:
            if line.busy and line.began < began_before:
                line.give_up()

    @property
    def under_way(self) -> int:
        """Requests that have begun and not ended."""
        return sum(line.busy for line in self._lines)

    @property
    def connects(self) -> tuple[int, int]:
        """How many connections were made, and on how many lines."""
        return _connects(self._lines)

    @property
    def waited(self) -> int:
        """None: each is sent by the line whose turn it is."""
        return 0

    async def aclose(self) -> None:
        """End all connections."""
        for line in self._lines:
            await line.aclose()

    def _done(self, line: Line, outcome: Outcome) -> None:
        now = self._clock.now()
        self._recorder.note(line.index, line.began, now, outcome)
        if self._asking:
            line.send(self._pick(), now)


class OpenLoop:
    """Asks when `gaps` says, in seconds from one request to the next, on as many lines as that takes.

    A request begins when it is due (or when it is sent, where its timer came a moment before), not when it could be
    sent: a server that stalls shows in the latency of all that fell due meanwhile; what is left out otherwise is called
    coordinated omission. With `bound` lines busy what is due waits for one. How late the generator itself was is noted
    for each request: with Poisson arrivals that is what a random moment sees (PASTA, R. W. Wolff 1982), so it stands
    for how late answers were read as well.
    """

    def __init__(
        self, make_line: MakeLine, gaps: Iterator[float], pick: Pick, recorder: Recorder, clock: Clock, bound: int
    ) -> None:
        self._make_line = make_line
        self._gaps = gaps
        self._pick = pick
        self._recorder = recorder
        self._clock = clock
        self._bound = bound
        self._lines: list[Line] = []
        self._idle: list[Line] = []
        self._waiting: deque[float] = deque()
        self._due = 0.0
        self._waited = 0
        self._timer: Timer | None = None

    def start(self) -> None:
        """Begin to ask; the first request is due after the first gap."""
        self._due = self._clock.now() + next(self._gaps)
        self._timer = self._clock.call_at(self._due, self.arrive)

    def stop(self) -> None:
        """Begin no further request; those that wait for a line still get one."""
        if self._timer is not None:
            self._timer.cancel()

    def expire(self, began_before: float) -> None:
        """Give up every request that was due before then."""
        while self._waiting and self._waiting[0] < began_before:
            due = self._waiting.popleft()
            self._recorder.note(self._pick(), due, self._clock.now(), Outcome(TIMEOUT))
        for line in list(self._lines):
            if line.busy and line.began < began_before:
                line.give_up()

    @property
    def under_way(self) -> int:
        """Requests that were due and have not ended."""
        return len(self._waiting) + sum(line.busy for line in self._lines)

    @property
    def connects(self) -> tuple[int, int]:
        """How many connections were made, and on how many lines."""
        return _connects(self._lines)

    @property
    def waited(self) -> int:
        """Requests that were due when no line was free, nor one more allowed."""
        return self._waited

    async def aclose(self) -> None:
        """End all connections."""
        for line in self._lines:
            await line.aclose()

    def arrive(self) -> None:
        """Send all that is due, and come again for the next; called by a timer."""
        for _ in range(_AT_ONCE):
            if (now := self._clock.now()) < self._due - _EARLY_S:
                break
            due = min(now, self._due)
            self._recorder.note_late(due, now - due)
            self._waiting.append(due)
            self._due += next(self._gaps)
            self._serve()
            self._waited += bool(self._waiting)
        self._timer = self._clock.call_at(self._due, self.arrive)

    def _serve(self) -> None:
        while self._waiting:
            if not self._idle and len(self._lines) < self._bound:
                line = self._make_line(len(self._lines), self._done)
                self._lines.append(line)
                self._idle.append(line)
            if not self._idle:
                return
            self._idle.pop().send(self._pick(), self._waiting.popleft())

    def _done(self, line: Line, outcome: Outcome) -> None:
        self._recorder.note(line.index, line.began, self._clock.now(), outcome)
        self._idle.append(line)
        self._serve()


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Gaps in seconds between arrivals that know nothing of each other, `rate` a second; the same for the same seed."""
    dice = random.Random(seed)
    while True:
        yield dice.expovariate(rate)


def in_turn(count: int) -> Pick:
    """0, 1, ... `count` - 1 and again."""
    state = iter(_circle(count))
    return lambda: next(state)


def at_random(count: int, seed: int) -> Pick:
    """Any below `count`, the same for the same seed."""
    dice = random.Random(seed)
    return lambda: dice.randrange(count)


def _circle(count: int) -> Iterator[int]:
    while True:
        yield from range(count)


def _connects(lines: list[Line]) -> tuple[int, int]:
    return sum(line.connects for line in lines), sum(line.connects > 0 for line in lines)
