"""What commands for many images share: exit status after signals and errors, and progress without a terminal."""

import asyncio
import io
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from rich.console import Console

from service.cli.long_run import display_on, run_until_done, say_failed
from service.offline.images import OfflineError
from tests.offline.results import bad

pytestmark = pytest.mark.usefixtures("plain_signal_stack")


@pytest.fixture
def screen() -> Console:
    """A console that is no terminal, and keeps its text."""
    return Console(file=io.StringIO(), width=200, record=True)


async def hangs() -> None:
    """Gets Ctrl-C, and does not end by itself."""
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()


async def ends() -> None:
    """Ends at once."""


async def is_refused() -> None:
    """Ends in an error with brackets in its text."""
    raise OfflineError("no [red]file[/]")


@pytest.mark.parametrize(
    ("work", "status", "text"),
    [(hangs, 130, "stopped; the results so far are kept"), (ends, 0, ""), (is_refused, 1, "error: no [red]file[/]")],
)
def test_exit_status(work: Callable[[], Coroutine[Any, Any, None]], status: int, text: str, screen: Console) -> None:
    """The status is 130 after Ctrl-C, 1 after an error, 0 for work that is done; brackets are printed."""
    assert run_until_done(work(), screen) == status
    assert text in screen.export_text()


def test_progress_without_a_terminal(screen: Console) -> None:
    """Without a terminal, the title counts images of an earlier run, and a line follows every thousand images."""
    with display_on(screen)("tiny [v1]", 7300, 100) as advance:
        for _ in range(2500):
            advance()

    assert screen.export_text().splitlines() == [
        "tiny [v1]: 7,300 images, resuming: 100 are done",
        "1,000 of 7,300",
        "2,000 of 7,300",
    ]


def test_failed(screen: Console) -> None:
    """Images without an answer are counted, and the first ones named with their errors."""
    say_failed(screen, "not counted", [])
    say_failed(screen, "not counted", [bad(f"{number}.png") for number in range(25)])

    text = screen.export_text()
    assert text.startswith("not counted: 25\n  0.png: bad_image: ")
    assert text.endswith("  and 5 more\n")
