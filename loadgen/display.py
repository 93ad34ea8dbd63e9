"""Prints the progress of `topfive bench`, and a table of its results."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loadgen.measurement import LoadProgress, OnProgress
from loadgen.results import LevelResult

_BARS = "▁▂▃▄▅▆▇█"
_MAX_BARS = 40
_PLAIN_EVERY_S = 5.0


@contextmanager
def progress_display(console: Console) -> Iterator[OnProgress]:
    """Shows progress in one line that changes; if the output is no terminal, as a line every few seconds."""
    if not console.is_terminal:
        yield _plain_progress(console)
        return
    rates: deque[float] = deque(maxlen=_MAX_BARS)
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(progress: LoadProgress) -> None:
            rates.append(progress.last.requests_per_second)
            text = Text(_progress_line(progress), no_wrap=True, overflow="ellipsis")
            room = console.width - len(text.plain) - 2
            live.update(text.append(f"  {sparkline(list(rates)[-room:])}", "cyan") if room > 4 else text, refresh=True)

        yield show


def _plain_progress(console: Console) -> Callable[[LoadProgress], None]:
    printed_s = 0.0

    def show(progress: LoadProgress) -> None:
        nonlocal printed_s
        printed_s = min(printed_s, progress.elapsed_s)  # time begins again with the next load level
        if progress.elapsed_s - printed_s >= _PLAIN_EVERY_S:
            printed_s = progress.elapsed_s
            console.print(_progress_line(progress), highlight=False, markup=False, soft_wrap=True)

    return show


def _progress_line(progress: LoadProgress) -> str:
    latency = progress.last.latency_ms
    times = "-" if latency.p50 is None else f"p50 {latency.p50:.1f} p99 {latency.p99:.1f} ms"
    return (
        f"{progress.level}, {'warm-up ' if progress.warming_up else ''}{progress.elapsed_s:.0f} s: "
        f"{progress.last.requests_per_second:.1f}/s, {times}, {progress.failed} errors, {progress.in_flight} open"
    )


def sparkline(values: Sequence[float]) -> str:
    """A bar for each value; the largest value has a full bar."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(len(_BARS) - 1, int(value / largest * len(_BARS)))] for value in values)


def print_results(console: Console, results: Sequence[LevelResult]) -> None:
    """Print a row for each load level; below the table its notes, its errors, and its images by size."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rated = any(result.rate is not None for result in results)
    for name in ("rate" if rated else "connections", "answers/s", "mean", "p50", "p90", "p99", "max ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("errors", justify="right")
    for result in results:
        latency = result.latency_ms
        times = (latency.mean, latency.p50, latency.p90, latency.p99, latency.max)
        table.add_row(
            result.load,
            f"{result.requests_per_second:.1f}",
            *(_milliseconds(one) for one in times),
            Text(str(result.failed), "red" if result.failed else ""),
            style="" if result.valid else "dim",
        )
    console.print(table)
    for result in results:
        for text, style in _remarks(result):
            console.print(Text(f"{result.load}: {text}", style=style), soft_wrap=True)


def _remarks(result: LevelResult) -> Iterator[tuple[str, str]]:
    for note in result.notes:
        yield note, "yellow"
    for failure, count in result.errors.items():
        example = result.error_examples[failure]
        yield f"{count} x {failure}{': ' if example else ''}{example}", "red"
    if len(result.groups) > 1:
        for group in result.groups:
            p50, p99 = group.latency_ms.p50, group.latency_ms.p99
            latency = "no answer" if p50 is None else f"p50 {p50:.2f} p99 {p99:.2f} ms"
            yield f"images {group.name}: {group.requests} answers, {latency}", "dim"


def _milliseconds(value: float | None) -> str:
    """About four digits, so that all columns fit."""
    if value is None:
        return "-"
    return f"{value:.{2 if value < 100 else 1 if value < 1000 else 0}f}"
