"""The two kinds of load: a closed loop sends when a response comes, an open loop sends at given times."""

import itertools
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator

from loadgen.connection import TIMEOUT, Connection, OpenConnection, RequestResult
from loadgen.recorder import Recorder
from service.common.clock import Clock, Timer

_EARLY_S = 0.0005  # timers of event loops are exact to a millisecond; to wait for the rest would cost CPU time
_MAX_BURST = 64  # above the rate that can be sent, responses and Ctrl-C still get their turn

NextImage = Callable[[], int]
"""The index of the image to send next."""


class LoadLoop(ABC):
    """Sends requests on its connections from `start` to `stop`, and records how each request ends.

    `delayed` counts requests that were due while all of `max_connections` were busy.
    """

    def __init__(
        self,
        open_connection: OpenConnection,
        next_image: NextImage,
        recorder: Recorder,
        clock: Clock,
        max_connections: int,
    ) -> None:
        self.delayed = 0
        self._open_connection = open_connection
        self._next_image = next_image
        self._recorder = recorder
        self._clock = clock
        self._max_connections = max_connections
        self._connections: list[Connection] = []

    @abstractmethod
    def start(self) -> None:
        """Begin to send."""

    @abstractmethod
    def stop(self) -> None:
        """Send no further request; those in flight go on."""

    def expire(self, started_before: float) -> None:
        """End every request that started before then as a timeout."""
        for connection in list(self._connections):
            if connection.busy and connection.started < started_before:
                connection.time_out()

    @property
    def in_flight(self) -> int:
        """Requests that started and have not ended."""
        return sum(connection.busy for connection in self._connections)

    @property
    def reconnects(self) -> int:
        return sum(max(0, connection.connects - 1) for connection in self._connections)

    async def aclose(self) -> None:
        for connection in self._connections:
            await connection.aclose()

    def _connect(self) -> Connection:
        connection = self._open_connection(len(self._connections), self._on_result)
        self._connections.append(connection)
        return connection

    @abstractmethod
    def _on_result(self, connection: Connection, result: RequestResult) -> None: ...


class ClosedLoop(LoadLoop):
    """Each of `max_connections` sends its next request as soon as it has a response."""

    _running = False

    def start(self) -> None:
        self._running = True
        for _ in range(self._max_connections):
            self._connect().send(self._next_image(), self._clock.now())

    def stop(self) -> None:
        self._running = False

    def _on_result(self, connection: Connection, result: RequestResult) -> None:
        now = self._clock.now()
        self._recorder.record(connection.index, connection.started, now, result)
        if self._running:
            connection.send(self._next_image(), now)


class OpenLoop(LoadLoop):
    """Sends a request after each of `gaps`, in seconds, on as many connections as that takes.

    A request starts when it is due (or when it is sent, if its timer came a moment before), not when it could be
    sent: a server that stalls shows in the latency of all requests that fell due meanwhile. To leave these out is known
    as coordinated omission. With `max_connections` busy a due request waits for one. The delay of the generator itself
    is recorded for each request. With Poisson arrivals that is what a random moment sees (PASTA, R. W. Wolff 1982), so
    it also estimates how late responses are read.
    """

    def __init__(
        self,
        open_connection: OpenConnection,
        next_image: NextImage,
        recorder: Recorder,
        clock: Clock,
        max_connections: int,
        gaps: Iterator[float],
    ) -> None:
        super().__init__(open_connection, next_image, recorder, clock, max_connections)
        self._gaps = gaps
        self._idle: list[Connection] = []
        self._queue: deque[float] = deque()
        self._due = 0.0
        self._timer: Timer | None = None

    def start(self) -> None:
        self._due = self._clock.now() + next(self._gaps)
        self._timer = self._clock.call_at(self._due, self.send_due)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def expire(self, started_before: float) -> None:
        while self._queue and self._queue[0] < started_before:
            due = self._queue.popleft()
            self._recorder.record(self._next_image(), due, self._clock.now(), RequestResult(TIMEOUT))
        super().expire(started_before)

    @property
    def in_flight(self) -> int:
        return len(self._queue) + super().in_flight

    def send_due(self) -> None:
        """Send what is due, and set the timer for the next request."""
        for _ in range(_MAX_BURST):
            if (now := self._clock.now()) < self._due - _EARLY_S:
                break
            due = min(now, self._due)
            self._recorder.record_delay(due, now - due)
            self._queue.append(due)
            self._due += next(self._gaps)
            self._send_queued()
            self.delayed += bool(self._queue)
        self._timer = self._clock.call_at(self._due, self.send_due)

    def _send_queued(self) -> None:
        while self._queue:
            if self._idle:
                connection = self._idle.pop()
            elif len(self._connections) < self._max_connections:
                connection = self._connect()
            else:
                return
            connection.send(self._next_image(), self._queue.popleft())

    def _on_result(self, connection: Connection, result: RequestResult) -> None:
        self._recorder.record(connection.index, connection.started, self._clock.now(), result)
        self._idle.append(connection)
        self._send_queued()


def poisson_gaps(rate: float, seed: int) -> Iterator[float]:
    """Seconds between the arrivals of a Poisson process with `rate` arrivals per second."""
    generator = random.Random(seed)
    while True:
        yield generator.expovariate(rate)


def in_turn(count: int) -> NextImage:
    """0, 1, ... `count` - 1, and from the start again."""
    indices = itertools.cycle(range(count))
    return lambda: next(indices)


def at_random(count: int, seed: int) -> NextImage:
    """Random indices below `count`."""
    generator = random.Random(seed)
    return lambda: generator.randrange(count)
