"""Runs work on threads for the event loop: while they are busy, what waits for them costs an entry of a list."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, TypeVar

X = TypeVar("X")

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class Threads:
    """At most `count` threads, which take work in its order. Their executor is not asked while all of them are busy."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._jobs: deque[_Job] = deque()
        self._busy = 0
        self._lock = Lock()

    def run(self, work: Callable[..., X], *args: object) -> "asyncio.Future[X]":
        """What `work(*args)` gives or raises. Called on the event loop; not after `close`.

        Work whose future is cancelled before a thread has come to it is not done.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[X] = loop.create_future()
        with self._lock:
            self._jobs.append((loop, future, partial(work, *args)))
            idle = self._busy < self._count
            self._busy += idle
        if idle:
            self._executor.submit(self._work)
        return future

    def close(self) -> None:
        """Take no more work, cancel what no thread has come to, and let the threads end when they are done."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            waiting = list(self._jobs)
            self._jobs.clear()
        for _, future, _ in waiting:
            future.cancel()

    def _work(self) -> None:
        """On a thread, until nothing waits."""
        while True:
            with self._lock:
                if not self._jobs:
                    self._busy -= 1
                    return
                loop, future, work = self._jobs.popleft()
            if not future.cancelled():
                try:
                    result = work()
                except BaseException as error:  # it is the caller's
                    loop.call_soon_threadsafe(_fail, future, error)
                else:
                    loop.call_soon_threadsafe(_settle, future, result)
                    del result
            del loop, future, work  # or the last photo would stay while its thread is idle


def _settle(future: "asyncio.Future[X]", result: X) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
