"""Runs work on threads for the event loop, through a queue written in C: each request comes this way twice."""

import asyncio
import atexit
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from threading import enumerate as enumerate_threads
from typing import Any, TypeVar

X = TypeVar("X")
Y = TypeVar("Y")

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[object, ...]]


class _Worker(Thread):
    """A thread that says whether it is in a piece of work. As a daemon: a process may end without having closed all."""

    def __init__(self, name: str, work: Callable[["_Worker"], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self.working = Lock()
        """Held while it is in a piece of work."""

    def run(self) -> None:
        """Until there is no more."""
        self._work(self)


def at_work() -> list[Thread]:
    """The threads that are in a piece of work now, of whichever `Threads`."""
    return [thread for thread in _workers() if thread.working.locked()]


def _workers() -> list[_Worker]:
    return [thread for thread in enumerate_threads() if isinstance(thread, _Worker)]


@atexit.register
def _wait() -> None:
    """Until none is in a piece of work, nor can begin one: a daemon in an engine aborts the process at its end."""
    for worker in _workers():
        worker.working.acquire()


class Threads:
    """`count` threads, named after `name` and their number, which take work in its order; none before the first."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False
        self._to_start = [_Worker(f"{name}_{number}", self._work) for number in range(count)]

    def run(self, work: Callable[..., X], *args: object) -> "asyncio.Future[X]":
        """What `work(*args)` gives or raises; cancelled after `close`. Called on the event loop.

        Work whose future is cancelled before a thread has come to it is not done.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[X] = loop.create_future()
        if self._closed:
            future.cancel()  # no thread would come to it, and who waits would do so for ever
        else:
            self._jobs.put((loop, future, work, args))
            if self._to_start:  # one at a time: a hundred of them would keep the event loop
                self._to_start.pop(0).start()
        return future

    def close(self) -> None:
        """Cancel what no thread has come to, and let the threads end when they are done."""
        self._closed = True
        while (job := self._next()) is not None:
            job[1].cancel()
        for _ in range(self._count):
            self._jobs.put(None)

    def _next(self) -> _Job | None:
        try:
            return self._jobs.get_nowait()
        except Empty:
            return None

    def _work(self, thread: _Worker) -> None:
        """On that thread, until `close`."""
        while (job := self._jobs.get()) is not None:
            loop, future, work, args = job
            if not future.cancelled():
                with thread.working:
                    try:
                        result = work(*args)
                    except BaseException as error:  # it is the caller's
                        _tell(loop, _fail, future, error)
                    else:
                        _tell(loop, _settle, future, result)
                        del result
            del job, loop, future, work, args  # or the last photo would stay while its thread is idle


def _tell(
    loop: asyncio.AbstractEventLoop, how: Callable[["asyncio.Future[X]", Y], None], future: "asyncio.Future[X]", what: Y
) -> None:
    """On a thread."""
    try:
        loop.call_soon_threadsafe(how, future, what)
    except RuntimeError:
        if not loop.is_closed():
            raise  # else nobody waits any more


def _settle(future: "asyncio.Future[X]", result: X) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
