"""Work on threads for the event loop: in its order, never more at once than there are threads, each piece answered."""

import asyncio
import subprocess
import sys
import threading
import weakref

import pytest

from service.common.thread_pool import ThreadPool
from tests.fakes import reached, settle

pytestmark = pytest.mark.anyio


class Gate:
    """Work that waits on its thread; `begun` keeps what has begun, in its order."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[int] = []

    def __call__(self, number: int) -> int:
        self.begun.append(number)
        assert self.gate.wait(30), "a test left the gate closed"
        return number


async def test_in_order() -> None:
    """Work is begun in the order in which it was given, as many pieces at once as there are threads."""
    pool, work = ThreadPool(2, "test"), Gate()
    futures = [pool.run(work, number) for number in range(6)]
    await reached(lambda: len(work.begun) == 2)
    await settle()
    first = sorted(work.begun)
    work.gate.set()
    results = await asyncio.gather(*futures)
    pool.close()

    assert first == [0, 1]
    assert results == list(range(6))
    assert sorted(work.begun) == list(range(6))


async def test_many_callers() -> None:
    """Thousands of pieces from callers at once all come back, each with its own result."""
    pool = ThreadPool(3, "test")

    async def caller(number: int) -> list[int]:
        return [await pool.run(lambda value: value * 2, number * 100 + step) for step in range(100)]

    results = await asyncio.gather(*(caller(number) for number in range(30)))
    pool.close()

    assert results == [[2 * (number * 100 + step) for step in range(100)] for number in range(30)]


async def test_errors() -> None:
    """What work raises is raised to who waits for it, and the thread goes on."""
    pool = ThreadPool(1, "test")
    failed, fine = pool.run(int, "x"), pool.run(int, "7")
    with pytest.raises(ValueError, match="invalid literal"):
        await failed
    assert await fine == 7
    pool.close()


async def test_cancelled() -> None:
    """Work that nobody waits for any more is not begun; what has begun ends without harm."""
    pool, work = ThreadPool(1, "test"), Gate()
    running, waiting, last = (pool.run(work, number) for number in range(3))
    await reached(lambda: work.begun == [0])
    running.cancel()
    waiting.cancel()
    work.gate.set()

    assert await last == 2
    assert work.begun == [0, 2]
    pool.close()


async def test_close() -> None:
    """At the end what waits is cancelled at once, what runs is still told, and the threads go."""
    pool, work = ThreadPool(1, "test-close"), Gate()
    running, waiting = pool.run(work, 0), pool.run(work, 1)
    await reached(lambda: work.begun == [0])
    pool.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    work.gate.set()

    assert await running == 0
    await reached(lambda: not [one for one in threading.enumerate() if one.name.startswith("test-close")])
    assert work.begun == [0]


async def test_no_thread_without_work() -> None:
    """What is only asked about leaves no threads behind; each piece of work brings one, until all are there."""

    def names() -> list[str]:
        return sorted(one.name for one in threading.enumerate() if one.name.startswith("test-none"))

    pool = ThreadPool(2, "test-none")
    found = [names()]
    for _ in range(3):
        await pool.run(int)
        found.append(names())

    assert found == [[], ["test-none_0"], *[["test-none_0", "test-none_1"]] * 2]
    pool.close()


async def test_after_close() -> None:
    """Work that comes after the end is cancelled, not left to wait for threads that are gone."""
    pool, work = ThreadPool(1, "test"), Gate()
    pool.close()
    late = pool.run(work, 0)

    assert late.cancelled()
    assert work.begun == []


async def test_results_are_let_go() -> None:
    """An idle thread keeps neither the work nor its result: they are photos."""
    pool = ThreadPool(1, "test")

    class Photo:
        pass

    photo = Photo()
    given = weakref.ref(photo)
    made = weakref.ref(await pool.run(lambda _photo: Photo(), photo))
    del photo
    await reached(lambda: given() is None and made() is None)
    pool.close()


def test_after_the_loop() -> None:
    """Work that ends after its loop has is no error of its thread, which then ends."""
    work = Gate()

    async def begin() -> ThreadPool:
        pool = ThreadPool(1, "test-late")
        pool.run(work, 0)
        await reached(lambda: work.begun == [0])
        return pool

    with asyncio.Runner() as runner:
        pool = runner.run(begin())
    [thread] = [one for one in threading.enumerate() if one.name == "test-late_0"]
    pool.close()
    work.gate.set()
    thread.join(10)

    assert not thread.is_alive()


AT_THE_END = """
import asyncio, threading
from service.common.thread_pool import ThreadPool

begun = threading.Event()

def work():
    begun.set()
    threading.main_thread().join()
    sum(range(20_000_000))
    print("done", flush=True)

async def begin():
    pool = ThreadPool(1, "test")
    pool.run(work)
    begun.wait()
    pool.close()

asyncio.run(begin())
"""


def test_at_the_end_of_the_process() -> None:
    """It waits for the piece of work that a thread is in: it may be in an engine."""
    ended = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
