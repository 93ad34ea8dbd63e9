"""Runs blocking work on threads for the event loop.

`loop.run_in_executor` does the same and costs 7 us more CPU time a call; each request makes two.
"""

import asyncio
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

X = TypeVar("X")

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[object, ...]]


class ThreadPool:
    """Runs jobs on `count` threads, in the order of submission. Each thread starts only when a job needs one.

    The process does not end before the threads do: close the pool.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False
        self._unstarted = [Thread(target=_work, args=(self._jobs,), name=f"{name}_{n}") for n in range(count)]

    def run(self, work: Callable[..., X], *args: object) -> "asyncio.Future[X]":
        """A future with the result or exception of `work(*args)`, cancelled after `close`. Call on the event loop.

        If the future is cancelled before a thread takes the work, the work does not run.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[X] = loop.create_future()
        if self._closed:
            future.cancel()
        else:
            self._jobs.put((loop, future, work, args))
            if self._unstarted:  # one at a time: a hundred starts would block the event loop
                self._unstarted.pop(0).start()
        return future

    def close(self) -> None:
        """Cancel the jobs that no thread has taken. The threads end after their current job."""
        self._closed = True
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is not None:
                job[1].cancel()
        for _ in range(self._count):
            self._jobs.put(None)


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    """Run jobs on this thread until the pool is closed."""
    while (job := jobs.get()) is not None:
        loop, future, work, args = job
        if not future.cancelled():
            result: object = None
            failure: BaseException | None = None
            try:
                result = work(*args)
            except BaseException as error:  # the caller gets it
                failure = error
            try:
                loop.call_soon_threadsafe(_settle, future, result, failure)
            except RuntimeError:
                if not loop.is_closed():  # a closed loop has no caller left
                    raise
            del result, failure
        del job, loop, future, work, args  # an idle thread keeps no image alive


def _settle(future: "asyncio.Future[Any]", result: object, failure: BaseException | None) -> None:
    if future.done():  # the caller has left
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
