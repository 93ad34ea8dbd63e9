"""Shared by the commands for many images: a stop that keeps all results, and progress on standard error."""

import asyncio
import itertools
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from service.cli.tables import say
from service.common.cpus import cpu_quota
from service.common.errors import TopfiveError
from service.common.settings import Settings
from service.engines.selection.opening import OpenEngine
from service.offline.images import OfflineError
from service.offline.journal import ImageResult
from service.offline.runner import Display, RunOptions

_LISTED = 20  # images without an answer that are named on the screen; the files have all
_PERIOD = 1000  # images between two lines where there is no terminal


def run_options(settings: Settings, crops: int, open_engine: OpenEngine | None, errors: Console) -> RunOptions:
    """The options of a run that follow from the settings. Its progress is shown on `errors`."""
    from service.server.data_plane import build_data_plane

    return RunOptions(
        crops=crops,
        decode=settings.decode,
        limits=settings.limits,
        decoding_threads=settings.cpus or cpu_quota(),
        capacity=settings.capacity,
        open_data_plane=partial(build_data_plane, settings, open_engine=open_engine),
        display=display_on(errors),
    )


def run_until_done(work: Coroutine[Any, Any, None], errors: Console) -> int:
    """Run `work` and return the exit status: 0, 1 after an error, which is printed, or 128 plus the signal number.

    Ctrl-C or SIGTERM cancels it.
    """
    received: list[int] = []

    async def guarded() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

        def on_signal(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        try:
            await task
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    try:
        asyncio.run(guarded())
    except asyncio.CancelledError:
        say(errors, "stopped; the results so far are kept, and the same command without --overwrite resumes")
        return 128 + received[0]
    except (TopfiveError, OfflineError, OSError) as error:
        say(errors, f"error: {error.detail if isinstance(error, TopfiveError) else error}", "red")
        return 1
    return 0


def display_on(console: Console) -> Display:
    """Shows the title of a run, then a bar in a terminal, or else a line for every thousand images."""

    @contextmanager
    def display(title: str, total: int, resumed: int) -> Iterator[Callable[[], None]]:
        earlier = f", resuming: {resumed:,} are done" if resumed else ""
        if resumed == total:
            earlier = ", all done by an earlier run; --overwrite runs them again"
        say(console, f"{title}: {total:,} images{earlier}")
        done = itertools.count(resumed + 1)
        columns = BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, expand=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=total, completed=resumed)

            def advance() -> None:
                bar.advance(task)
                if (number := next(done)) % _PERIOD == 0 and not console.is_terminal:
                    say(console, f"{number:,} of {total:,}")

            yield advance

    return display


def say_failed(console: Console, what: str, failed: Sequence[ImageResult]) -> None:
    """Print how many images have no answer, and name the first of them."""
    if failed:
        say(console, f"{what}: {len(failed):,}", "yellow")
    for one in failed[:_LISTED]:
        say(console, f"  {one.path}: {one.error}", "yellow")
    if len(failed) > _LISTED:
        say(console, f"  and {len(failed) - _LISTED:,} more", "yellow")
