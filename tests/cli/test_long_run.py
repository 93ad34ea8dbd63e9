"""What commands for many images share: exit status after signals and errors, and progress without a terminal."""

import asyncio
import io
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from rich.console import Console

from service.cli.long_run import display_on, run_until_done
from service.offline.images import OfflineError
from service.offline.runner import RunProgress
from tests.fakes import ManualClock
from tests.offline.results import bad, good

pytestmark = pytest.mark.usefixtures("plain_signal_stack")


@pytest.fixture
def screen() -> Console:
    """A console that is no terminal, and keeps its text."""
    return Console(file=io.StringIO(), width=200, record=True)


async def hangs(stop: asyncio.Event) -> None:
    """Gets Ctrl-C twice, and does not end after the first."""
    os.kill(os.getpid(), signal.SIGINT)
    await stop.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()


async def ends_in_time(stop: asyncio.Event) -> None:
    """Gets Ctrl-C, and ends with its work done."""
    os.kill(os.getpid(), signal.SIGINT)
    await stop.wait()


async def is_refused(_stop: asyncio.Event) -> None:
    """Ends in an error with brackets in its text."""
    raise OfflineError("no [red]file[/]")


@pytest.mark.parametrize(
    ("work", "status", "text"),
    [
        (hangs, 130, "stopped at once"),
        (ends_in_time, 0, "stopping"),
        (is_refused, 1, "error: no [red]file[/]"),
    ],
)
def test_exit_status(
    work: Callable[[asyncio.Event], Coroutine[Any, Any, None]], status: int, text: str, screen: Console
) -> None:
    """The status is 130 after a second Ctrl-C, 1 after an error, 0 for work that is done; brackets are printed."""
    assert run_until_done(work, screen) == status
    assert text in screen.export_text()


def test_progress_without_a_terminal(screen: Console) -> None:
    """Without a terminal, the title counts images of an earlier run, and a line follows every five seconds."""
    clock = ManualClock()
    progress = RunProgress(total=7300, resumed=100, clock=clock)
    assert (progress.images_per_s, str(progress)) == (None, "100/7,300, 0 failed")
    with display_on(screen, clock.now)("tiny [v1]", progress) as advance:
        for second in range(12):
            clock.jump(1)
            progress.count(bad("3") if second == 3 else good(str(second)))
            advance()

    assert screen.export_text().splitlines() == [
        "tiny [v1]: 7,300 images, resuming: 100 are done",
        "105/7,300, 1 failed, 1.0 images/s, 1:59:55 left",
        "110/7,300, 1 failed, 1.0 images/s, 1:59:50 left",
    ]
