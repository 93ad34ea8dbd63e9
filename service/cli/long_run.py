"""Shared by the commands for many images: a stop that loses no results, and progress on standard error."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from service.cli.tables import say
from service.common.cpus import cpu_quota
from service.common.errors import TopfiveError
from service.common.settings import Settings
from service.offline.images import OfflineError
from service.offline.runner import Display, RunOptions, RunProgress, Stopped

_PERIOD_S = 5.0


def run_options(settings: Settings, crops: int) -> RunOptions:
    """The options of a run that follow from the settings."""
    return RunOptions(crops, settings.decode, settings.limits, settings.cpus or cpu_quota(), settings.capacity)


def run_until_done(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]], errors: Console) -> int:
    """Run `work` and return the exit status: 0, 1 after an error, which is printed, or 128 plus the signal number.

    The first Ctrl-C or SIGTERM sets the event: `work` finishes the images in flight and raises Stopped. The second one
    cancels it.
    """
    received: list[int] = []

    async def guarded() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        task = loop.create_task(work(stop))

        def on_signal(number: int) -> None:
            received.append(number)
            if stop.is_set():
                task.cancel()
            else:
                say(errors, "stopping: images in flight are finished; press Ctrl-C again to stop at once")
                stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        try:
            await task
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    try:
        asyncio.run(guarded())
    except Stopped as error:
        say(errors, str(error))
    except asyncio.CancelledError:
        say(errors, "stopped at once; finished images are kept")
    except (TopfiveError, OfflineError) as error:
        say(errors, f"error: {error.detail if isinstance(error, TopfiveError) else error}", "red")
        return 1
    else:
        return 0
    return 128 + received[0]


def display_on(console: Console, now: Callable[[], float] = monotonic) -> Display:
    """Shows the title of a run, then a bar in a terminal, or else a line every five seconds."""

    @contextmanager
    def display(title: str, progress: RunProgress) -> Iterator[Callable[[], None]]:
        resumed = f", resuming: {progress.resumed:,} are done" if progress.resumed else ""
        if progress.resumed == progress.total:
            resumed = ", all done by an earlier run; --overwrite runs them again"
        say(console, f"{title}: {progress.total:,} images{resumed}")
        if console.is_terminal and progress.resumed < progress.total:
            columns = BarColumn(bar_width=None), TextColumn("{task.description}", markup=False)
            with Progress(*columns, console=console, expand=True) as bar:
                task = bar.add_task(str(progress), total=progress.total, completed=progress.done)
                yield lambda: bar.update(task, completed=progress.done, description=str(progress))
            return
        printed_s = now()

        def advance() -> None:
            nonlocal printed_s
            if now() - printed_s >= _PERIOD_S:
                printed_s = now()
                say(console, str(progress))

        yield advance

    return display
