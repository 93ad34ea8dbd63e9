"""The command `topfive bench`: measures throughput and latency of a server."""

import asyncio
import math
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

from loadgen.connection import LoadTestError
from loadgen.display import print_results, progress_display
from loadgen.grpc_connection import GrpcTarget
from loadgen.images import read_images
from loadgen.measurement import MeasurementPlan
from loadgen.plot import ChartError, check_charts
from loadgen.report import LoadReport, as_csv, as_html, as_json
from loadgen.results import LevelResult, LoadLevel
from loadgen.run import LoadTest, run_load_test
from loadgen.target import HttpTarget, LoadTarget, RequestFormat, ServerApi

# Options that only some APIs use, and these APIs
_APIS = {
    "model": set(ServerApi) - {ServerApi.RAW},
    "path": set(ServerApi) - {ServerApi.GRPC},
    "field": {ServerApi.MULTIPART},
    "content_type": set(ServerApi) - {ServerApi.GRPC},
}
_EXCLUSIVE = (("rate", "connections"), ("windows", "seconds"))
_REQUIRED = (("max_connections", "rate"), ("max_windows", "windows"))  # the first has no use without the second

Command = Callable[..., Any]


def _numbers(kind: Callable[[str], float]) -> Callable[[click.Context, click.Parameter, str | None], tuple[float, ...]]:
    """A click callback that reads a list with commas of numbers above 0."""

    def parse(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[float, ...]:
        try:
            values = tuple(kind(part) for part in text.split(",")) if text else ()
        except ValueError:
            raise click.BadParameter(f"{text!r} is no number and no list such as 1,4,16") from None
        if not all(0 < value < math.inf for value in values):
            raise click.BadParameter("each must be above 0")
        return values

    return parse


def _finite(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """A click callback that refuses `nan` and `inf`, which click.FloatRange lets through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number")
    return value


def _option(flag: str, *names: str, **attributes: Any) -> Callable[[Command], Command]:
    """A click option; the help shows its default and its environment variable."""
    variable = f"TOPFIVE_BENCH_{flag.removeprefix('--').replace('-', '_').upper()}"
    default = "off" if attributes.get("is_flag") else True
    return click.option(flag, *names, envvar=variable, show_envvar=True, show_default=default, **attributes)


def _float_option(flag: str, text: str, default: float | None = None, **limits: Any) -> Callable[[Command], Command]:
    return _option(flag, default=default, type=click.FloatRange(min=0, **limits), callback=_finite, help=text)


class _OutputFile(click.Path):
    """A file in a folder that exists: a measurement whose results cannot be written would be lost."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(str(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"{path.parent} is no folder; make it first", param, ctx)
        return path


_FILE = _OutputFile(path_type=Path, dir_okay=False, writable=True)


@click.command("bench")
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@_option(
    "--api",
    type=click.Choice([api.value for api in ServerApi]),
    default=ServerApi.TOPFIVE.value,
    help="API of the server",
)
@_option("--model", default="", help="Model that answers; by default the server's")
@_option("--path", default="", help="Path of the requests; by default the path of URL or of the API")
@_option("--field", default="image", help="Name of the multipart field")
@_option("--content-type", default="", help="Content type of the image; by default its file's")
@_option(
    "--image",
    "paths",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="File or folder, may be repeated; by default a generated JPEG of 500x375 and 100 kB",
)
@_option("--shuffle", is_flag=True, help="Send images in random order")
@_option("--connections", default="16", callback=_numbers(int), help="Connections that never pause; 1,4,16 is a sweep")
@_option("--rate", callback=_numbers(float), help="Random arrivals per second instead; 50,100,200 is a sweep")
@_option("--max-connections", default=1024, type=click.IntRange(min=1), help="Most connections that --rate opens")
@_float_option("--seconds", "Duration of each measurement", 10.0, min_open=True)
@_float_option("--warm-up", "Seconds before each measurement", 2.0)
@_float_option("--windows", "Instead of --seconds: windows of this many seconds until three agree", min_open=True)
@_option("--max-windows", default=10, type=click.IntRange(min=3), help="Most windows")
@_float_option("--stability", "Percent by which windows that agree may differ", 10.0, min_open=True)
@_float_option("--timeout", "Seconds until a request fails", 30.0, min_open=True)
@_option("--seed", default=0, help="Seed of the arrivals and of --shuffle")
@_option("--allow-errors", is_flag=True, help="Measure also where the first request fails")
@_option("--json", "json_file", type=_FILE, help="Write all results as JSON")
@_option("--csv", "csv_file", type=_FILE, help="Write results with the columns of perf_analyzer")
@_option("--plot", "plot_file", type=_FILE, help="Draw latency over throughput into an .html file")
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

    The status is 1 if any request failed, or none was answered.
    """
    if plot_file is not None and plot_file.suffix != ".html":
        raise click.BadParameter(f"{plot_file} should end in .html", param_hint="--plot")
    errors = Console(stderr=True)
    try:
        if plot_file is not None:
            check_charts()
        test = _load_test(urls, paths, values)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results, stopped_by = runner.run(_run(test, errors))
        print_results(Console(), results)
        report = LoadReport(
            version("topfive"), values["api"], tuple(urls), values["model"], test.images, test.seed, results
        )
        _write(report, {json_file: as_json, csv_file: as_csv, plot_file: as_html})
    except (LoadTestError, ChartError) as error:
        raise click.ClickException(str(error)) from error
    if stopped_by:
        sys.exit(128 + stopped_by)
    sys.exit(int(any(result.failed or not result.requests for result in results)))


def _check_options(api: ServerApi, given: set[str]) -> None:
    """Raises click.UsageError for an option that was given and has no effect."""
    for name, apis in _APIS.items():
        if name in given and api not in apis:
            raise click.UsageError(f"{_flag(name)} has no use with --api {api}; it is for {', '.join(sorted(apis))}")
    for one, other in _EXCLUSIVE:
        if {one, other} <= given:
            raise click.UsageError(f"give {_flag(one)} or {_flag(other)}, not both")
    for name, required in _REQUIRED:
        if name in given and required not in given:
            raise click.UsageError(f"{_flag(name)} has no use without {_flag(required)}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _load_test(urls: Sequence[str], paths: Sequence[Path], values: dict[str, Any]) -> LoadTest:
    """Raises click.UsageError, and LoadTestError for URLs and images that cannot be read."""
    context = click.get_current_context()
    given = {name for name in values if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    api = ServerApi(values["api"])
    _check_options(api, given)
    images = tuple(read_images(paths))
    form = RequestFormat(api, **{name: values[name] for name in ("model", "path", "field", "content_type")})
    if api is ServerApi.GRPC:
        target: LoadTarget = GrpcTarget(urls, form.model, images)
    else:
        target = HttpTarget.of(urls, form, images)
    rates = tuple(LoadLevel(rate=rate) for rate in values["rate"])
    return LoadTest(
        target=target,
        images=images,
        levels=rates or tuple(LoadLevel(connections=int(count)) for count in values["connections"]),
        plan=MeasurementPlan(
            warm_up_s=values["warm_up"],
            seconds=values["seconds"],
            window_s=values["windows"],
            max_windows=values["max_windows"],
            tolerance=values["stability"] / 100,
            timeout_s=values["timeout"],
        ),
        seed=values["seed"],
        shuffle=values["shuffle"],
        max_connections=values["max_connections"],
        allow_errors=values["allow_errors"],
    )


async def _run(test: LoadTest, errors: Console) -> tuple[tuple[LevelResult, ...], int]:
    """Returns the results, and the number of the signal that stopped the test or 0. Raises LoadTestError."""
    stop, received = asyncio.Event(), [0]

    def on_signal(number: int) -> None:
        received[0] = number
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    with progress_display(errors) as on_progress:
        results = await run_load_test(test, stop, on_progress, lambda text: errors.print(Text(text), soft_wrap=True))
    return results, received[0]


def _write(report: LoadReport, files: dict[Path | None, Callable[[LoadReport], str]]) -> None:
    """Raises LoadTestError if a file cannot be written."""
    for file, text in files.items():
        if file is not None:
            try:
                file.write_text(text(report), encoding="utf-8")
            except OSError as error:
                raise LoadTestError(f"{file} cannot be written: {error.strerror}") from error
