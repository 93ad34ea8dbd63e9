"""Work on threads for the event loop: its order, its results and errors, and the end of the threads."""

import asyncio
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from service.common.thread_pool import ThreadPool
from tests.fakes import reached, settle

pytestmark = pytest.mark.anyio


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """A pool of one thread, closed after the test."""
    pool = ThreadPool(1, "test")
    yield pool
    pool.close()


class Gate:
    """Work that waits on its thread for `gate`. `begun` has the numbers of what has begun, in its order."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[int] = []

    def __call__(self, number: int) -> int:
        self.begun.append(number)
        assert self.gate.wait(30), "a test left the gate closed"
        return number


async def test_in_order() -> None:
    """Work begins in the order in which it was given, as many pieces at once as there are threads."""
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


async def test_errors(pool: ThreadPool) -> None:
    """An error of the work reaches its caller, and the thread goes on."""
    failed, fine = pool.run(int, "x"), pool.run(int, "7")
    with pytest.raises(ValueError, match="invalid literal"):
        await failed
    assert await fine == 7


async def test_cancelled(pool: ThreadPool) -> None:
    """Work whose caller has left does not begin; what has begun ends without harm."""
    work = Gate()
    running, waiting, last = (pool.run(work, number) for number in range(3))
    await reached(lambda: work.begun == [0])
    running.cancel()
    waiting.cancel()
    work.gate.set()

    assert await last == 2
    assert work.begun == [0, 2]


async def test_close() -> None:
    """At the end work that waits or comes later is cancelled, work that runs has its result, and the threads end."""
    pool, work = ThreadPool(1, "test-close"), Gate()
    running, waiting = pool.run(work, 0), pool.run(work, 1)
    await reached(lambda: work.begun == [0])
    pool.close()
    late = pool.run(work, 2)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    work.gate.set()

    assert late.cancelled()
    assert await running == 0
    await reached(lambda: not [one for one in threading.enumerate() if one.name.startswith("test-close")])
    assert work.begun == [0]


async def test_results_are_let_go(pool: ThreadPool) -> None:
    """An idle thread keeps neither the arguments of its work nor the result: they are photos."""

    class Photo:
        pass

    photo = Photo()
    given = weakref.ref(photo)
    made = weakref.ref(await pool.run(lambda _photo: Photo(), photo))
    del photo
    await reached(lambda: given() is None and made() is None)


async def test_stuck(caplog: pytest.LogCaptureFixture) -> None:
    """A job that lasts is reported once with its thread and age, and once more when it has returned."""
    pool, work = ThreadPool(2, "test", stuck_after_s=0.02), Gate()
    reports: list[int] = []
    pool.on_stuck(lambda: reports.append(len(pool.stuck())))
    lasting = pool.run(work, 0)
    await reached(lambda: reports == [1])
    stuck = pool.stuck()
    assert await pool.run(int, "7") == 7
    work.gate.set()
    await lasting
    await reached(lambda: reports == [1, 0])
    pool.close()

    assert list(stuck) == ["test_0"]
    assert stuck["test_0"] > 0.02
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "thread test_0 has not returned" in caplog.text


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
    """The process waits for the piece of work that a thread is in, which may outlive the event loop."""
    ended = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
