"""Runs blocking work on threads for the event loop.

`loop.run_in_executor` does the same and costs 7 us more CPU time a call; each request makes two.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Any, TypeVar

X = TypeVar("X")

log = logging.getLogger(__name__)

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[object, ...]]


class ThreadPool:
    """Runs jobs on `count` threads, in the order of submission. Each thread starts only when a job needs one.

    A job that lasts longer than `stuck_after_s` is stuck: the log and the listener of `on_stuck` learn it. The process
    does not end before the threads do: close the pool.
    """

    def __init__(self, count: int, name: str, stuck_after_s: float = 10.0) -> None:
        self.count = count
        self._listener: Callable[[], None] = lambda: None
        self.stuck_after_s = stuck_after_s
        self._began: dict[str, float] = {}
        self._stuck: dict[str, float] = {}
        self._watchdog: asyncio.TimerHandle | None = None
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False
        self._unstarted = [
            Thread(target=_work, args=(self._jobs, self._began), name=f"{name}_{n}") for n in range(count)
        ]

    def run(self, work: Callable[..., X], *args: object) -> "asyncio.Future[X]":
        """A future of the result or exception of `work(*args)`. Call on the event loop.

        After `close` it returns a cancelled future. If the future is cancelled before a thread takes the work, the work
        does not run.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[X] = loop.create_future()
        if self._closed:
            future.cancel()
        else:
            self._jobs.put((loop, future, work, args))
            if self._unstarted:  # one at a time: a hundred starts would block the event loop
                self._unstarted.pop(0).start()
            if self._watchdog is None:
                self._watchdog = loop.call_later(self.stuck_after_s, self._look)
        return future

    def on_stuck(self, listener: Callable[[], None]) -> None:
        """Call `listener` on the event loop when a job has become stuck, or a stuck one has returned."""
        self._listener = listener

    def stuck(self) -> dict[str, float]:
        """The threads whose job lasts longer than `stuck_after_s`, with its age in seconds."""
        now = time.monotonic()
        ages = {name: now - began for name, began in self._began.copy().items()}
        return {name: age for name, age in ages.items() if age > self.stuck_after_s}

    def _look(self) -> None:
        """Report what has become stuck or has returned. Look again while jobs run."""
        before, self._stuck = self._stuck, self.stuck()
        for name in self._stuck.keys() - before.keys():
            log.error("thread %s has not returned from one job for %.0f s", name, self._stuck[name])
        for name in before.keys() - self._stuck.keys():
            log.warning("thread %s has returned", name)
        if before.keys() != self._stuck.keys():
            self._listener()
        more = self._began or self._stuck or not self._jobs.empty()
        loop = asyncio.get_running_loop()
        self._watchdog = loop.call_later(self.stuck_after_s, self._look) if more and not self._closed else None

    def close(self) -> None:
        """Cancel the jobs that no thread has taken. The threads end after their current job."""
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is not None:
                job[1].cancel()
        for _ in range(self.count):
            self._jobs.put(None)


def _work(jobs: SimpleQueue[_Job | None], began: dict[str, float]) -> None:
    """Run jobs on this thread until the pool is closed. While one runs, `began` has the time of its start."""
    name = current_thread().name
    while (job := jobs.get()) is not None:
        loop, future, work, args = job
        if not future.cancelled():
            result: object = None
            failure: BaseException | None = None
            began[name] = time.monotonic()
            try:
                result = work(*args)
            except BaseException as error:  # the caller gets it
                failure = error
            del began[name]
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
