"""Measures how long the event loop is kept from everything else: the CPU time of each callback that it runs."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LONGEST_S = 0.002


@dataclass(slots=True)
class Turns:
    """The callbacks that took longest, in seconds of CPU time: a busy machine does not make them longer."""

    longest_s: float = 0.0
    what: str = ""
    count: int = 0

    def note(self, took_s: float, handle: asyncio.Handle) -> None:
        """One callback has ended."""
        self.count += 1
        if took_s > self.longest_s:
            self.longest_s, self.what = took_s, repr(handle)


@contextmanager
def watched() -> Iterator[Turns]:
    """The turns of the event loop of this thread until the end of the block. Not for uvloop, whose are not Python's."""
    turns = Turns()
    plain = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        plain(handle)
        turns.note(time.thread_time() - began, handle)

    asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]
    try:
        yield turns
    finally:
        asyncio.Handle._run = plain  # type: ignore[method-assign]


async def longest(work: Callable[[], Awaitable[object]], tries: int = 5) -> Turns:
    """The longest turn of `work`: of the try where it was shortest, because noise only makes turns longer."""
    best = Turns(longest_s=float("inf"))
    for _ in range(tries):
        with watched() as turns:
            await asyncio.ensure_future(work())  # in turns of its own
        best = min(best, turns, key=lambda one: one.longest_s)
        if best.longest_s < LONGEST_S:
            break
    return best
