"""The command `topfive bench`: measures how a server answers under load."""

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import uvloop
from click.core import ParameterSource
from rich.console import Console
from rich.text import Text

from loadgen import images
from loadgen.connection import LoadError
from loadgen.display import show, watched
from loadgen.grpc_connection import GrpcTarget
from loadgen.measurement import Load, Plan
from loadgen.plot import as_html
from loadgen.report import Report, as_csv, as_json
from loadgen.requests import Api, Form
from loadgen.results import Point
from loadgen.run import Job, run
from loadgen.target import HttpTarget, Target
from service.cli.options import Command, FiniteRange, option

# Of each option that not every API has a use for, those that do
_MEANT_FOR = {
    "model": set(Api) - {Api.RAW},
    "path": set(Api) - {Api.GRPC},
    "field": {Api.MULTIPART},
    "content_type": set(Api) - {Api.GRPC},
}
# Options of which only one can hold
_EXCLUDE = (("rate", "connections"), ("windows", "seconds"))
# Options that mean something only with another
_NEED = (("max_connections", "rate"), ("max_windows", "windows"))


def _numbers(kind: Callable[[str], float]) -> Callable[[click.Context, click.Parameter, str | None], tuple[float, ...]]:
    """A click callback for a list with commas, each above 0."""

    def parse(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[float, ...]:
        try:
            values = tuple(kind(part) for part in text.split(",")) if text else ()
        except ValueError:
            raise click.BadParameter(f"{text!r} is no number and no list such as 1,4,16") from None
        if not all(0 < value < float("inf") for value in values):
            raise click.BadParameter("each must be above 0")
        return values

    return parse


def _bench_option(flag: str, *names: str, **attributes: Any) -> Callable[[Command], Command]:
    variable = f"TOPFIVE_BENCH_{flag.removeprefix('--').replace('-', '_').upper()}"
    return option(flag, *names, variable=variable, **attributes)


class _Output(click.Path):
    """A file to write in a folder that is there: to find that out after the measurement would be late."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(str(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"{path.parent} is no folder; make it first", param, ctx)
        return path


_POSITIVE = FiniteRange(min=0, min_open=True)
_FILE = _Output(path_type=Path, dir_okay=False, writable=True)


@click.command("bench")
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@_bench_option("--api", type=click.Choice([api.value for api in Api]), default=Api.TOPFIVE.value, help="How to ask")
@_bench_option("--model", default="", help="Which model answers; else the server's default")
@_bench_option("--path", default="", help="Where requests go on the server; else the path of URL or what --api says")
@_bench_option("--field", default="image", help="Name of the multipart field")
@_bench_option("--content-type", default="", help="Of the image; else what its file is")
@_bench_option(
    "--image",
    "paths",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="File or folder, again for more; else a made JPEG of 500x375 and 100 kB",
)
@_bench_option("--shuffle", is_flag=True, help="Images at random instead of in turn")
@_bench_option(
    "--connections", default="16", callback=_numbers(int), help="Connections that never pause; 1,4,16 is a sweep"
)
@_bench_option("--rate", callback=_numbers(float), help="Instead: random arrivals per second; 50,100,200 is a sweep")
@_bench_option("--max-connections", default=1024, type=click.IntRange(min=1), help="The most that --rate opens")
@_bench_option("--seconds", default=10.0, type=_POSITIVE, help="How long each load is measured")
@_bench_option("--warm-up", default=2.0, type=FiniteRange(min=0), help="Seconds before that")
@_bench_option("--windows", type=_POSITIVE, help="Instead of --seconds: windows so long, until three agree")
@_bench_option("--max-windows", default=10, type=click.IntRange(min=3), help="The most windows")
@_bench_option("--stability", default=10.0, type=_POSITIVE, help="By how many percent windows that agree may differ")
@_bench_option("--timeout", default=30.0, type=_POSITIVE, help="Seconds until a request is given up")
@_bench_option("--seed", default=0, help="Of the arrivals and of --shuffle")
@_bench_option("--allow-errors", is_flag=True, help="Measure also where the first request fails")
@_bench_option("--json", "json_file", type=_FILE, help="Write all figures")
@_bench_option("--csv", "csv_file", type=_FILE, help="Write them under the columns of perf_analyzer")
@_bench_option("--plot", "plot_file", type=_FILE, help="Draw latency over throughput: an .html file")
def bench_command(
    urls: Sequence[str],
    paths: Sequence[Path],
    json_file: Path | None,
    csv_file: Path | None,
    plot_file: Path | None,
    **values: Any,
) -> None:
    """Measure throughput and latency of the server at URL.

    With several URLs connections are spread evenly over them. APIs: topfive (the raw image to /predict), multipart
    and raw (to any path), and grpc (topfive's own, with HOST:PORT for URL).

    The status is 1 where any request failed, or none was answered.
    """
    if plot_file is not None and plot_file.suffix != ".html":
        raise click.BadParameter(f"{plot_file} should end in .html", param_hint="--plot")
    errors = Console(stderr=True)
    try:
        job = _job(urls, paths, values)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            points, stopped_by = runner.run(_measured(job, errors))
        report = Report(version("topfive"), values["api"], tuple(urls), values["model"], job.photos, job.seed, points)
        show(Console(), report.points)
        _write(report, {json_file: as_json, csv_file: lambda one: as_csv(one.points), plot_file: as_html})
    except LoadError as error:
        raise click.ClickException(str(error)) from error
    if stopped_by:
        sys.exit(128 + stopped_by)
    sys.exit(int(any(point.failed or not point.requests for point in points)))


def _check(api: Api, given: set[str]) -> None:
    """That each option which was given has a use. Raises click.UsageError."""
    for name, apis in _MEANT_FOR.items():
        if name in given and api not in apis:
            raise click.UsageError(f"{_flag(name)} has no use with --api {api}; it is for {', '.join(sorted(apis))}")
    for one, other in _EXCLUDE:
        if {one, other} <= given:
            raise click.UsageError(f"give {_flag(one)} or {_flag(other)}, not both")
    for name, needed in _NEED:
        if name in given and needed not in given:
            raise click.UsageError(f"{_flag(name)} has no use without {_flag(needed)}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _job(urls: Sequence[str], paths: Sequence[Path], values: dict[str, Any]) -> Job:
    """What was asked for. Raises click.UsageError, and LoadError of images that cannot be read."""
    context = click.get_current_context()
    given = {name for name in values if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    _check(Api(values["api"]), given)
    form = Form(
        Api(values["api"]),
        model=values["model"],
        path=values["path"],
        field=values["field"],
        content_type=values["content_type"],
    )
    photos = tuple(images.read(paths))
    grpc = form.api is Api.GRPC
    target: Target = GrpcTarget(urls, form.model, photos) if grpc else HttpTarget.of(urls, form, photos)
    rates = tuple(Load(rate=rate) for rate in values["rate"])
    plan = Plan(
        warm_up_s=values["warm_up"],
        seconds=values["seconds"],
        window_s=values["windows"],
        max_windows=values["max_windows"],
        tolerance=values["stability"] / 100,
        timeout_s=values["timeout"],
    )
    return Job(
        target=target,
        photos=photos,
        loads=rates or tuple(Load(connections=int(count)) for count in values["connections"]),
        plan=plan,
        seed=values["seed"],
        shuffled=values["shuffle"],
        bound=values["max_connections"],
        allow_errors=values["allow_errors"],
    )


async def _measured(job: Job, errors: Console) -> tuple[tuple[Point, ...], int]:
    """All points, and the number of the signal that stopped it, 0 where none did. Raises LoadError."""
    stop, received = asyncio.Event(), [0]

    def on_signal(number: int) -> None:
        received[0] = number
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    with watched(errors) as watch:
        points = await run(job, stop, watch, lambda text: errors.print(Text(text), soft_wrap=True))
    return points, received[0]


def _write(report: Report, files: dict[Path | None, Callable[[Report], str]]) -> None:
    """Write what was asked for. Raises LoadError."""
    for file, text in files.items():
        if file is not None:
            try:
                file.write_text(text(report), encoding="utf-8")
            except OSError as error:
                raise LoadError(f"{file} cannot be written: {error.strerror}") from error
