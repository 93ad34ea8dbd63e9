"""What the commands for many images share: exit status after signals and errors, and progress without a terminal."""

import asyncio
import io
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from rich.console import Console

from service.cli.long_run import display_on, run_until_done
from service.common.errors import BadRequest
from service.offline.images import OfflineError
from service.offline.runner import RunProgress, Stopped
from tests.fakes import ManualClock
from tests.offline.results import bad, good

pytestmark = pytest.mark.usefixtures("plain_signal_stack")


@pytest.fixture
def screen() -> Console:
    """A console that is no terminal; `file` has what is printed on it."""
    return Console(file=io.StringIO(), width=200)


def printed(screen: Console) -> str:
    """What is printed on it."""
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


async def stops(stop: asyncio.Event) -> None:
    """Is told to stop, and does."""
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
    raise Stopped("stopped: 3 [of] 5")


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


async def is_refused(_stop: asyncio.Event) -> None:
    """Ends in an error with brackets in its text."""
    raise OfflineError("no [red]file[/]")


async def asks_badly(_stop: asyncio.Event) -> None:
    """Ends in an error of the service."""
    raise BadRequest("too many")


@pytest.mark.parametrize(
    ("work", "status", "text"),
    [
        (stops, 143, "stopped: 3 [of] 5"),
        (hangs, 130, "stopped at once"),
        (ends_in_time, 0, "stopping"),
        (is_refused, 1, "error: no [red]file[/]"),
        (asks_badly, 1, "error: too many"),
    ],
)
def test_exit_status(
    work: Callable[[asyncio.Event], Coroutine[Any, Any, None]], status: int, text: str, screen: Console
) -> None:
    """128 and the signal that stopped it, 1 after an error, 0 when all is done; the text is printed as it is."""
    assert run_until_done(work, screen) == status
    assert text in printed(screen)


def test_progress_without_a_terminal(screen: Console) -> None:
    """The title with what an earlier run has done, then a plain line every five seconds at most."""
    clock = ManualClock()
    progress = RunProgress(total=7300, resumed=100, clock=clock)
    assert (progress.images_per_s, str(progress)) == (None, "100/7,300, 0 failed")
    with display_on(screen, clock.now)("tiny [v1]", progress) as advance:
        for second in range(12):
            clock.jump(1)
            progress.count(bad("3") if second == 3 else good(str(second)))
            advance()

    assert printed(screen).splitlines() == [
        "tiny [v1]: 7,300 images, resuming: 100 are done",
        "105/7,300, 1 failed, 1.0 images/s, 1:59:55 left",
        "110/7,300, 1 failed, 1.0 images/s, 1:59:50 left",
    ]
