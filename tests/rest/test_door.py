"""A listener that several processes share: each takes as many connections, and none waits for one that hangs."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from service.rest.listener import Counts, SharedDoor, listen
from tests.fakes import reached

pytestmark = pytest.mark.anyio


@dataclass
class Taker:
    """One of those who share, as a server would be: it keeps what it took, and tells its door how many."""

    door: SharedDoor
    taken: list[socket.socket] = field(default_factory=list)

    def take(self, connection: socket.socket) -> asyncio.Task[None]:
        """Begin, a turn later."""
        return asyncio.get_running_loop().create_task(self._begin(connection))

    async def _begin(self, connection: socket.socket) -> None:
        await asyncio.sleep(0)
        self.taken.append(connection)
        self.door.count(len(self.taken))

    def drop(self, count: int) -> None:
        """So many of its clients leave."""
        for connection in self.taken[:count]:
            connection.close()
        del self.taken[:count]
        self.door.count(len(self.taken))


@asynccontextmanager
async def doors(count: int) -> AsyncIterator[tuple[list[Taker], Counts, Callable[[int], None]]]:
    """So many doors on one listener, their table, and a function that connects so many clients."""
    listener = listen("127.0.0.1", 0)
    descriptor = Counts.make()
    table = Counts(descriptor)
    takers = [Taker(SharedDoor(listener.dup(), Counts(descriptor), number)) for number in range(count)]
    os.close(descriptor)
    clients: list[socket.socket] = []

    def connect(more: int) -> None:
        clients.extend(socket.create_connection(listener.getsockname()) for _ in range(more))

    try:
        yield takers, table, connect
    finally:
        for taker in takers:
            taker.door.shut()
            taker.door.listener.close()
        for one in (listener, *clients, *(connection for taker in takers for connection in taker.taken)):
            one.close()


def numbers(takers: list[Taker]) -> list[int]:
    """How many each has."""
    return [len(taker.taken) for taker in takers]


async def test_even(anyio_backend: str) -> None:
    """A burst of sixty is shared out among three; who has lost some of its clients gets those that come next."""
    async with doors(3) as (takers, _, connect):
        for taker in takers:
            taker.door.open(taker.take)
        connect(60)
        await reached(lambda: sum(numbers(takers)) == 60)
        assert max(numbers(takers)) - min(numbers(takers)) <= 2
        takers[1].drop(12)
        connect(12)
        await reached(lambda: sum(numbers(takers)) == 60)
        assert max(numbers(takers)) - min(numbers(takers)) <= 4


async def test_one_that_hangs(anyio_backend: str) -> None:
    """One that should go first and takes nothing does not keep a connection waiting for long."""
    async with doors(2) as (takers, table, connect):
        table.note(1, 0)
        takers[0].door.open(takers[0].take)
        connect(3)
        await reached(lambda: numbers(takers) == [3, 0])


async def test_one_that_is_gone(anyio_backend: str) -> None:
    """One that takes no more, or has never begun, is not waited for: all connections go to the other at once."""
    async with doors(2) as (takers, table, connect):
        for taker in takers:
            taker.door.open(taker.take)
        takers[1].door.shut()
        table.leave(5)
        connect(4)
        await reached(lambda: numbers(takers) == [4, 0])
        await reached(lambda: table.fewest == 4)  # nobody has fewer, so nobody is let go first
