"""What the commands for many images share: exit status after signals and errors, and progress without a terminal."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from rich.console import Console

from service.common.errors import BadRequest, NotReady
from service.common.settings import Settings
from service.offline.journal import Journal
from service.offline.progress import Tally, watched
from service.offline.rows import BulkError, Failure, Item, Row
from service.offline.runner import Bulk, Question, rows, window
from service.offline.session import StoppedError, opened
from service.server.app import Core
from tests.conftest import png
from tests.fakes import FakeEngine, ManualClock, Opener, opener, reached

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]


def screen() -> tuple[Console, io.StringIO]:
    """A console that is no terminal, and what is printed on it."""
    file = io.StringIO()
    return Console(file=file, width=200), file


async def stops(stop: asyncio.Event) -> None:
    """Is told to stop, and does."""
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
    raise StoppedError("stopped: 3 [of] 5")


async def hangs(stop: asyncio.Event) -> None:
    """Is told to stop, and does not until it is told again."""
    os.kill(os.getpid(), signal.SIGINT)
    await stop.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()


async def ends_in_time(stop: asyncio.Event) -> None:
    """Is told to stop when it was about to end anyway."""
    os.kill(os.getpid(), signal.SIGINT)
    await stop.wait()


async def is_refused(stop: asyncio.Event) -> None:
    """Ends in an error with brackets in its text."""
    raise BulkError("no [red]file[/]")


async def asks_badly(stop: asyncio.Event) -> None:
    """Ends in an error of the service."""
    raise BadRequest("too many")


ENDS = (
    (stops, 143, "stopped: 3 [of] 5"),
    (hangs, 130, "stopped at once"),
    (ends_in_time, 0, "stopping"),
    (is_refused, 1, "error: no [red]file[/]"),
    (asks_badly, 1, "error: too many"),
)


@pytest.mark.parametrize(("work", "status", "text"), ENDS)
def test_exit_status(work: Callable[[asyncio.Event], Awaitable[None]], status: int, text: str) -> None:
    """128 and the signal that stopped it, 1 after an error, 0 when all is done; the text is printed as it is."""
    script = (
        "import sys; from rich.console import Console; from service.offline.session import run; "
        f"from tests.offline.test_session import {work.__name__} as work; sys.exit(run(work, Console(stderr=True)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == status
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_without_a_terminal() -> None:
    """A plain line every five seconds at most, with done, failed, rate and time left; earlier images count not."""
    clock = ManualClock()
    console, file = screen()
    tally = Tally(total=7300, before=100, clock=clock)
    with watched(tally, console, clock) as watch:
        for second in range(12):
            clock.jump(1)
            watch(Row(str(second), Failure("bad_image", "") if second == 3 else None))

    assert file.getvalue().splitlines() == [
        "105/7,300, 1 failed, 1.0 images/s, 1:59:55 left",
        "110/7,300, 1 failed, 1.0 images/s, 1:59:50 left",
    ]


def test_rate_of_nothing() -> None:
    """Before any image of this run there is no rate and no time left."""
    tally = Tally(total=10, before=4, clock=ManualClock())

    assert (tally.per_second, str(tally)) == (None, "4/10, 0 failed")


def settings(artifacts: Path) -> Settings:
    """Of the model tiny on two CPUs."""
    return Settings(models=("tiny",), artifacts=artifacts, cpus=2)


async def test_stop_while_loading(artifacts: Path) -> None:
    """A stop does not wait for a model that loads, and nothing counts as run."""
    opening, stop = Opener(), asyncio.Event()
    opening.gate.clear()

    async def work() -> None:
        async with opened(settings(artifacts), "tiny", lambda own: Core(own, opener=opening), stop):
            raise AssertionError("the model is not there yet")

    task = asyncio.create_task(work())
    await reached(lambda: opening.begun == 1)
    stop.set()
    try:
        with pytest.raises(StoppedError, match="nothing was run"):
            await task
    finally:
        opening.gate.set()
    await reached(lambda: [engine.closed for engine in opening.opened] == [True])


async def test_engine_that_fails(artifacts: Path, tmp_path: Path) -> None:
    """One failed batch is its image's own row; three in a row end the run, for it is not the images."""
    engine = FakeEngine()
    engine.script = [RuntimeError("broken")] * 3
    (tmp_path / "a.png").write_bytes(png(7))
    core = Core(settings(artifacts), opener=opener(engine))
    await core.repository.start(("tiny",))
    panel = await core.data_plane.served("tiny")
    bulk = Bulk(core.data_plane, panel, limits=core.settings.limits, question=Question(1, 1), clock=core.clock)
    item = Item("a.png", tmp_path / "a.png", 7)
    try:
        for _ in range(2):
            row = await bulk.row(item)
            assert row.error is not None
            assert (row.error.code, row.truth) == ("internal", 7)
        with pytest.raises(NotReady, match="tiny fails on every image"):
            await bulk.row(item)
        row = await bulk.row(item)
        assert row.predictions[0].class_id == 7
    finally:
        bulk.close()
        await core.aclose(0)


async def test_crops_find_their_places(artifacts: Path, tmp_path: Path) -> None:
    """With ten crops an image and room for twenty-five, no image of many is turned away."""
    engine = FakeEngine(max_batch=8)
    (tmp_path / "a.png").write_bytes(png(7))
    tight = settings(artifacts).model_copy(update={"capacity": 25})
    watched_rows: list[Row] = []
    found = [Item(str(number), tmp_path / "a.png") for number in range(12)]
    own = lambda given: Core(given, opener=opener(engine))  # noqa: E731
    async with opened(tight, "tiny", own, asyncio.Event()) as session:
        with Journal(tmp_path / "j", session.settings) as journal:
            whole = await session.complete(
                journal, found, question=Question(1, 10), stop=asyncio.Event(), watch=watched_rows.append
            )

    assert whole
    assert [row.error for row in watched_rows] == [None] * 12
    assert sum(engine.batches) == 120


async def test_batches_are_full(artifacts: Path, tmp_path: Path) -> None:
    """With many images under way the engine gets full batches, through the batcher that serves."""
    engine = FakeEngine(max_batch=8)
    engine.gate.clear()
    (tmp_path / "a.png").write_bytes(png(7))
    core = Core(settings(artifacts), opener=opener(engine))
    await core.repository.start(("tiny",))
    panel = await core.data_plane.served("tiny")
    bulk = Bulk(core.data_plane, panel, limits=core.settings.limits, question=Question(1, 1), clock=core.clock)
    items = [Item(str(number), tmp_path / "a.png") for number in range(33)]
    model = panel.members[0]
    size = window(model.slots, model.batcher.max_batch, 2, core.settings.capacity, 1)
    seen: list[Row] = []

    async def consume() -> None:
        async for row in rows(items, bulk.row, size=size, stop=asyncio.Event()):
            seen.append(row)

    task = asyncio.create_task(consume())
    try:
        await reached(lambda: model.batcher.depth + model.batcher.in_flight == size)
        engine.gate.set()
        await task
    finally:
        engine.gate.set()
        bulk.close()
        await core.aclose(0)
    assert size == 18
    assert len(seen) == sum(engine.batches) == 33
    assert engine.batches[1:3] == [8, 8]
