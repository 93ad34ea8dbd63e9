"""What `topfive bench` shows: a line that lives while it measures, and a table at the end."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loadgen.measurement import Progress
from loadgen.results import Point

_BARS = "▁▂▃▄▅▆▇█"
_REMEMBERED = 40
_EVERY_S = 5.0


@contextmanager
def watched(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A function to tell of the progress, which is shown a few times a second, or every few seconds as plain lines."""
    if not console.is_terminal:
        yield _plain(console)
        return
    rates: deque[float] = deque(maxlen=_REMEMBERED)
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(progress: Progress) -> None:
            rates.append(progress.last.requests_per_second)
            text = Text(line(progress), no_wrap=True, overflow="ellipsis")
            room = console.width - len(text.plain) - 2
            live.update(text.append(f"  {sparkline(list(rates)[-room:])}", "cyan") if room > 4 else text, refresh=True)

        yield show


def _plain(console: Console) -> Callable[[Progress], None]:
    said = 0.0

    def say(progress: Progress) -> None:
        nonlocal said
        said = min(said, progress.elapsed_s)  # of the next load
        if progress.elapsed_s - said >= _EVERY_S:
            said = progress.elapsed_s
            console.print(line(progress), highlight=False, markup=False, soft_wrap=True)

    return say


def line(progress: Progress) -> str:
    """The last second of a measurement under way; a usual one fits 80 columns."""
    latency = progress.last.latency_ms
    times = "-" if latency.p50 is None else f"p50 {latency.p50:.1f} p99 {latency.p99:.1f} ms"
    return (
        f"{progress.load}, {'warm-up ' if progress.warming_up else ''}{progress.elapsed_s:.0f} s: "
        f"{progress.last.requests_per_second:.1f}/s, {times}, {progress.failed} errors, {progress.under_way} open"
    )


def sparkline(values: Sequence[float]) -> str:
    """A bar for each value, the largest one full."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(len(_BARS) - 1, int(value / largest * len(_BARS)))] for value in values)


def show(console: Console, points: Sequence[Point]) -> None:
    """All points in a table, below it what is to be said of them."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rated = any(point.rate is not None for point in points)
    for name in ("rate" if rated else "connections", "answers/s", "mean", "p50", "p90", "p99", "max ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("errors", justify="right")
    for point in points:
        latency = point.latency_ms
        times = (latency.mean, latency.p50, latency.p90, latency.p99, latency.max)
        table.add_row(
            _load(point),
            f"{point.requests_per_second:.1f}",
            *(_milliseconds(one) for one in times),
            Text(str(point.failed), "red" if point.failed else ""),
            style="" if point.valid else "dim",
        )
    console.print(table)
    for point in points:
        for note in point.notes:
            _say(console, f"{_load(point)}: {note}", "yellow")
        for failure, count in point.errors.items():
            said = f": {point.error_examples[failure]}" if point.error_examples[failure] else ""
            _say(console, f"{_load(point)}: {count} x {failure}{said}", "red")
        if len(point.groups) > 1:
            for group in point.groups:
                p50, p99 = group.latency_ms.p50, group.latency_ms.p99
                told = "no answer" if p50 is None else f"p50 {p50:.2f} p99 {p99:.2f} ms"
                _say(console, f"{_load(point)}: images {group.name}: {group.requests} answers, {told}", "dim")


def _milliseconds(value: float | None) -> str:
    """Four digits or so, so that all columns have room."""
    if value is None:
        return "-"
    return f"{value:.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def _load(point: Point) -> str:
    return f"{point.rate:g}" if point.rate is not None else str(point.connections)


def _say(console: Console, text: str, style: str) -> None:
    console.print(Text(text, style=style), soft_wrap=True)
