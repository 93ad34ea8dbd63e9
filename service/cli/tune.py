"""The command `topfive tune`: how models are best laid out on this machine, measured and kept for `serve`."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.status import Status
from rich.table import Table
from rich.text import Text

from models.artifact.artifact import ArtifactError, load
from models.artifact.tuning import TuningRecord, write_tuning
from models.catalog import CATALOG
from service.cli.options import FiniteRange, option, options, settings_from
from service.common.cpus import cpu_quota
from service.common.sample_photo import made_photo
from service.common.settings import Settings
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.cpu_layout import place_of
from service.offline.tuning.run import Measuring, Request, record_of, tune
from service.offline.tuning.search import Row, State, explain
from service.offline.tuning.worker import Worker

_INTERRUPTED = 130


@click.command("tune")
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@option("--seconds", type=FiniteRange(min=1), default=30.0, help="How long each model is measured, in all")
@option("--max-latency-ms", type=FiniteRange(min=0.1), default=100.0, help="How long a batch may run")
@option(
    "--photo",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What is decoded beside the engine; else a JPEG of 500 x 375 pixels is made",
)
@option("--json", "as_json", is_flag=True, help="Print a JSON array")
@options("artifacts", "cache", "runtime", "precision", "cpus")
@click.pass_obj
def tune_command(
    measuring: Measuring | None,
    /,
    names: Sequence[str],
    seconds: float,
    max_latency_ms: float,
    photo: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure how each MODEL is best run on this machine's CPU, and keep it for `serve`.

    Slots, threads, batch sizes, precisions and runtimes are tried, with threads that decode photos beside them as in a
    server. Only what answers rightly by the model's parity reports is tried. With --runtime or --precision the
    result counts where `serve` is asked for the same, and for nothing else.
    """
    settings = settings_from(values)
    request = Request(
        settings.runtime,
        settings.precision,
        settings.cpus or cpu_quota(),
        seconds,
        max_latency_ms,
        photo.read_bytes() if photo else made_photo(),
    )
    errors, replies, status = Console(stderr=True), [], 0
    for name in dict.fromkeys(map(CATALOG.canonical, names)):
        try:
            done = _tuned(name, settings, request, measuring or Worker, errors)
        except (ArtifactError, EngineUnavailableError, OSError) as error:
            errors.print(f"[red]{escape(name)}[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
            status = 1
            continue
        except KeyboardInterrupt:
            errors.print(f"stopped; nothing was stored of {escape(name)}", highlight=False, soft_wrap=True)
            status = _INTERRUPTED
            break
        replies.append(done.reply)
        status = status if done.kept else 1
        if not as_json:
            Console().print(done.shown)
    if as_json:
        click.echo(json.dumps(replies, indent=2))
    sys.exit(status)


@dataclass(frozen=True, slots=True)
class _Done:
    """A tuned model: what is printed of it as JSON, and as a table; whether its record could be written."""

    reply: dict[str, Any]
    shown: RenderableType
    kept: bool


def _tuned(name: str, settings: Settings, request: Request, measuring: Measuring, errors: Console) -> _Done:
    """One model tuned, and its record written where that is allowed."""
    artifact = load(settings.artifacts, name)
    with Status(f"tuning {name}", console=errors) as status:
        rows = tune(artifact, request, lambda one: status.update(f"tuning {name}: {one}"), measuring)
    record = record_of(artifact, request, rows, settings.cache_folder)
    path: Path | None = None
    try:
        path = write_tuning(place_of(artifact, settings.cache_folder), record)
        kept = Text(f"kept in {path}; `{_serve(request)}` uses it on machines like this one\n", style="dim")
    except OSError as error:  # what was measured is shown all the same
        kept = Text()
        told = f"{escape(name)}: not kept: {escape(str(error))}; name a folder that can be written with --cache"
        errors.print(told, style="red", highlight=False, soft_wrap=True)
    why = explain(rows, request.max_latency_ms)
    reply = {
        "model": name,
        "why": why,
        "record": path and str(path),
        **record.model_dump(mode="json"),
        "not_measured": [
            {"candidate": str(row.candidate), "state": str(row.state), "reason": row.reason}
            for row in rows
            if row.state is not State.MEASURED
        ],
    }
    table = _table(name, record, rows, request.max_latency_ms)
    return _Done(reply, Group(table, *_not_measured(rows), Text(f"chose {why}"), kept), path is not None)


def _serve(request: Request) -> str:
    """The command for which the record counts."""
    asked = (("--runtime", request.runtime, Runtime.AUTO), ("--precision", request.precision, Precision.AUTO))
    return " ".join(["topfive serve", *(f"{flag} {value}" for flag, value, whole in asked if value is not whole)])


def _table(name: str, record: TuningRecord, rows: Sequence[Row], max_latency_ms: float) -> Table:
    """What was measured, the best first."""
    here = record.conditions
    title = Text(f"{name} on {here.cpu}, {here.cpus} CPUs")
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("engine", no_wrap=True)
    for column in ("slots", "threads", "batch", "img/s", "run ms", "CPU ms", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for place, row in enumerate(row for row in rows if row.state is State.MEASURED):
        setup, figures = row.candidate.setup, row.figures
        note = "best" if not place else "" if row.fits(max_latency_ms) else "slow"
        table.add_row(
            f"{setup.runtime} {setup.precision}",
            *map(str, (setup.slots, setup.threads, row.candidate.max_batch)),
            *(f"{figures.images_per_s:.1f}", f"{figures.run_ms:.1f}", f"{figures.cpu_ms:.1f}", str(len(row.rounds))),
            note,
            style=None if place else "bold",
        )
    return table


def _not_measured(rows: Sequence[Row]) -> Iterator[Text]:
    """A line for each that failed or hangs, and one for each reason why others were left out."""
    skipped = Counter(row.reason for row in rows if row.state is State.SKIPPED)
    for row in rows:
        if row.state in (State.FAILED, State.HANGING):
            yield Text(f"{row.candidate} is {row.state}: {row.reason}", style="yellow")
    for reason, count in skipped.items():
        yield Text(f"{count} not measured: {reason}", style="dim")
