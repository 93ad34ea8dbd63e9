"""The command `topfive bench`: measures how a server answers under load."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console
from rich.text import Text

from service.clock import LoopClock
from service.commands.bench_display import show, watched
from service.load import images
from service.load.figures import Point
from service.load.line import LoadError
from service.load.loops import ClosedLoop, Loop, OpenLoop, at_random, in_turn, poisson
from service.load.measure import Load, Measurement, Plan, Progress
from service.load.plot import as_html
from service.load.recorder import Recorder
from service.load.report import Report, as_csv, as_json
from service.load.requests import Api, Encoding, Form
from service.load.rpc import GrpcTarget
from service.load.target import Target, http_target
from service.load.tensors import Datatype
from service.options import Command, option

_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Job:
    """What one call of the command is about."""

    urls: tuple[str, ...]
    form: Form
    photos: tuple[images.Photo, ...]
    loads: tuple[Load, ...]
    plan: Plan
    seed: int
    shuffled: bool
    bound: int
    allow_errors: bool


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


_POSITIVE = click.FloatRange(min=0, min_open=True)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("bench")
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@_bench_option("--api", type=click.Choice([api.value for api in Api]), default=Api.TOPFIVE.value, help="How to ask")
@_bench_option("--model", default="", help="Which model answers; else the server's default")
@_bench_option("--path", default="", help="Where requests go on the server; else the path of URL or what --api says")
@_bench_option("--field", default="image", help="Name of the multipart field")
@_bench_option("--content-type", default="", help="Of the image; else what its file is")
@_bench_option(
    "--datatype",
    type=click.Choice([kind.value for kind in Datatype]),
    help="Of the tensor for v2, BYTES for the file; else what the model's metadata says",
)
@_bench_option(
    "--encoding",
    type=click.Choice([kind.value for kind in Encoding]),
    default=Encoding.AUTO.value,
    help="Of the tensor for v2",
)
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
@_bench_option("--warm-up", default=2.0, type=click.FloatRange(min=0), help="Seconds before that")
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
    and raw (to any path), torchserve (to /predictions/MODEL), v2 (Open Inference Protocol), and over gRPC with
    HOST:PORT for URL: grpc (topfive's own) and v2-grpc.

    The status is 1 where any request failed.
    """
    if plot_file is not None and plot_file.suffix != ".html":
        raise click.BadParameter(f"{plot_file} should end in .html", param_hint="--plot")
    errors = Console(stderr=True)
    try:
        job = _job(urls, paths, values)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report, interrupted = runner.run(_bench(job, errors))
        show(Console(), report.points)
        _write(report, {json_file: as_json, csv_file: lambda one: as_csv(one.points), plot_file: as_html})
    except LoadError as error:
        raise click.ClickException(str(error)) from error
    if interrupted:
        sys.exit(_INTERRUPTED)
    sys.exit(int(any(point.failed for point in report.points)))


def _job(urls: Sequence[str], paths: Sequence[Path], values: dict[str, Any]) -> Job:
    form = Form(
        Api(values["api"]),
        model=values["model"],
        path=values["path"],
        field=values["field"],
        content_type=values["content_type"],
        encoding=Encoding(values["encoding"]),
        datatype=Datatype(values["datatype"]) if values["datatype"] else None,
    )
    if form.api in (Api.TORCHSERVE, Api.V2, Api.V2_GRPC) and not form.model:
        raise click.UsageError(f"--api {form.api} needs --model NAME")
    if form.path and form.api in (Api.GRPC, Api.V2_GRPC):
        raise click.UsageError("--path is for HTTP; gRPC has none")
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
        urls=tuple(urls),
        form=form,
        photos=tuple(images.read(paths)),
        loads=rates or tuple(Load(connections=int(count)) for count in values["connections"]),
        plan=plan,
        seed=values["seed"],
        shuffled=values["shuffle"],
        bound=values["max_connections"],
        allow_errors=values["allow_errors"],
    )


async def _bench(job: Job, errors: Console) -> tuple[Report, bool]:
    """All points; whether the user stopped it."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    points = []
    async with _target(job) as target:
        try:
            for line in await target.check():
                _say(errors, line)
        except LoadError as error:
            if not job.allow_errors:
                raise
            _say(errors, f"{error}")
        with watched(errors) as watch:
            for load in job.loads:
                if not stop.is_set():
                    points.append(await _point(job, target, load, stop, watch))
    report = Report(version("topfive"), job.form.api, job.urls, job.form.model, job.photos, job.seed, tuple(points))
    return report, stop.is_set()


@asynccontextmanager
async def _target(job: Job) -> AsyncIterator[Target]:
    """The servers with all requests made. Raises LoadError."""
    if job.form.api in (Api.GRPC, Api.V2_GRPC):
        grpc_target = GrpcTarget(job.urls, job.form)
        target: Target = grpc_target
        try:
            await grpc_target.prepare(job.photos)
            yield target
        finally:
            await target.aclose()
    else:
        yield await http_target(job.urls, job.form, job.photos)


async def _point(job: Job, target: Target, load: Load, stop: asyncio.Event, watch: Callable[[Progress], None]) -> Point:
    clock, count = LoopClock(), len(job.photos)
    recorder = Recorder([len(payload) for payload in target.payloads[0]], [photo.group for photo in job.photos])
    pick = at_random(count, job.seed) if job.shuffled else in_turn(count)
    if load.rate is not None:
        gaps = poisson(load.rate, job.seed)
        loop: Loop = OpenLoop(target.line, gaps, pick, recorder, clock, job.bound)
    else:
        loop = ClosedLoop(target.line, load.connections or 1, pick, recorder, clock)
    return await Measurement(
        load, loop, recorder, job.plan, clock=clock, stop=stop, watch=watch, spent=target.spent
    ).run()


def _write(report: Report, files: dict[Path | None, Callable[[Report], str]]) -> None:
    """Write what was asked for. Raises LoadError."""
    for file, text in files.items():
        if file is not None:
            try:
                file.write_text(text(report), encoding="utf-8")
            except OSError as error:
                raise LoadError(f"{file} cannot be written: {error.strerror}") from error


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
