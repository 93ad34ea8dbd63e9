"""The progress of a long run: a bar in a terminal, a plain line now and then elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from service.common.clock import Clock
from service.offline.rows import Row

_EVERY_S = 5.0


class Tally:
    """Counts of one run: `done` of `total`, `before` of them by an earlier run, and how many of its own `failed`."""

    def __init__(self, total: int, before: int, clock: Clock) -> None:
        self.total = total
        self.before = before
        self.done = before
        self.failed = 0
        self._clock = clock
        self._began = clock.now()

    def note(self, row: Row) -> None:
        """Count one more image."""
        self.done += 1
        self.failed += row.error is not None

    @property
    def per_second(self) -> float | None:
        """Images per second of this run, or None before any."""
        seconds = self._clock.now() - self._began
        return (self.done - self.before) / seconds if self.done > self.before and seconds > 0 else None

    def __str__(self) -> str:
        """Done and total, failed, rate, time left."""
        rate = self.per_second
        shown = f"{self.done:,}/{self.total:,}, {self.failed:,} failed"
        if rate is None:
            return shown
        left_s = round((self.total - self.done) / rate)
        left = f"{left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"
        return f"{shown}, {rate:.1f} images/s, {left} left"


@contextmanager
def watched(tally: Tally, console: Console, clock: Clock) -> Iterator[Callable[[Row], None]]:
    """A function to call with each new row; what it counts is shown on `console`."""
    if console.is_terminal:
        columns = (BarColumn(bar_width=None), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=console, expand=True) as progress:
            task = progress.add_task(str(tally), total=tally.total, completed=tally.done)

            def advance(row: Row) -> None:
                tally.note(row)
                progress.update(task, completed=tally.done, description=str(tally))

            yield advance
        return
    said = clock.now()

    def say(row: Row) -> None:
        nonlocal said
        tally.note(row)
        if clock.now() - said >= _EVERY_S:
            said = clock.now()
            console.print(str(tally), highlight=False, markup=False, soft_wrap=True)

    yield say
