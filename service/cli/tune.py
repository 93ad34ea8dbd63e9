"""The command `topfive tune`."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.artifact.artifact import ArtifactError, load
from models.artifact.tuning import TuningRecord, write_tuning
from models.catalog import CATALOG
from service.cli.options import FiniteRange, option, options, settings_from
from service.cli.tables import new_table, say
from service.common.cpus import cpu_quota
from service.common.sample_photo import made_photo
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.cpu_layout import tuning_files
from service.offline.tuning.search import CandidateResult, CandidateState, explain
from service.offline.tuning.tune import StartWorker, TuneRequest, record_of, tune
from service.offline.tuning.worker import Worker

_INTERRUPTED = 130


@click.command("tune", short_help="Measure how models run best on this machine's CPU.")
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@option("--seconds", type=FiniteRange(min=1), default=30.0, help="Time to measure each model, in all")
@option("--max-latency-ms", type=FiniteRange(min=0.1), default=100.0, help="Longest time that a batch may run")
@option(
    "--photo",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Photo to decode beside the engine; without it a JPEG of 500 x 375 pixels",
)
@option("--json", "as_json", is_flag=True, help="Print a JSON array")
@options("artifacts", "cache", "runtime", "precision", "cpus")
@click.pass_obj
def tune_command(
    start_worker: StartWorker | None,
    /,
    names: Sequence[str],
    seconds: float,
    max_latency_ms: float,
    photo: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure how each MODEL runs best on this machine's CPU, and store the result for `serve`.

    Runtimes, precisions, slots, threads and batch sizes are tried while threads decode photos, as in a server. Only
    engines that pass the model's parity checks are tried. With --runtime or --precision the result applies only if
    `serve` gets the same option.
    """
    settings, errors = settings_from(values), Console(stderr=True)
    request = TuneRequest(
        settings.runtime,
        settings.precision,
        settings.cpus or cpu_quota(),
        seconds,
        max_latency_ms,
        photo.read_bytes() if photo else made_photo(),
    )
    replies, status = [], 0
    for name in dict.fromkeys(map(CATALOG.canonical, names)):
        try:
            artifact = load(settings.artifacts, name)
            with errors.status(f"tuning {name}") as line:
                watch = lambda one: line.update(f"tuning {name}: {one}")  # noqa: B023, E731 - called within this round
                results = tune(artifact, request, watch, start_worker or Worker)
        except (ArtifactError, EngineUnavailableError, OSError) as error:
            say(errors, f"{name}: {error}", "red")
            status = 1
            continue
        except KeyboardInterrupt:
            say(errors, f"stopped; nothing was stored of {name}")
            status = _INTERRUPTED
            break
        record = record_of(artifact, request, results, settings.cache_folder)
        path: Path | None = None
        try:
            path = write_tuning(tuning_files(artifact, settings.cache_folder), record)
        except OSError as error:  # the measurements are shown all the same
            say(errors, f"{name}: not kept: {error}; name a folder that can be written with --cache", "red")
            status = 1
        why = explain(results, max_latency_ms)
        replies.append(_reply(name, why, path, record, results))
        if not as_json:
            _print(name, why, path, record, results)
    if as_json:
        click.echo(json.dumps(replies, indent=2))
    sys.exit(status)


def _reply(
    name: str, why: str, path: Path | None, record: TuningRecord, results: Sequence[CandidateResult]
) -> dict[str, Any]:
    """The JSON of one model for --json."""
    return {
        "model": name,
        "why": why,
        "record": path and str(path),
        **record.model_dump(mode="json"),
        "not_measured": [
            {"candidate": str(one.candidate), "state": str(one.state), "reason": one.reason}
            for one in results
            if one.state is not CandidateState.MEASURED
        ],
    }


def _print(name: str, why: str, path: Path | None, record: TuningRecord, results: Sequence[CandidateResult]) -> None:
    console, asked = Console(), record.conditions
    console.print(Text(f"{name} on {asked.cpu}, {asked.cpus} CPUs", "bold"))
    console.print(_table(record, results))
    for line in _not_measured(results):
        console.print(line)
    console.print(Text(f"chose {why}"))
    if path is not None:
        flags = [("--runtime", asked.runtime, Runtime.AUTO), ("--precision", asked.precision, Precision.AUTO)]
        serve = " ".join(["topfive serve", *(f"{flag} {value}" for flag, value, auto in flags if value != auto)])
        console.print(Text(f"kept in {path}; `{serve}` uses it on machines like this one\n", style="dim"))


def _table(record: TuningRecord, results: Sequence[CandidateResult]) -> Table:
    """The measurements, the best first."""
    numbers = ("slots", "threads", "batch", "img/s", "run ms", "CPU ms", "n")
    table = new_table("engine", numbers=numbers)
    table.add_column("", no_wrap=True)
    measured = [one for one in results if one.state is CandidateState.MEASURED]
    for one in measured:
        best, engine, speed = one is measured[0], one.candidate, one.speed
        table.add_row(
            f"{engine.runtime} {engine.precision}",
            *map(str, (engine.slots, engine.threads, engine.max_batch)),
            *(f"{speed.images_per_s:.1f}", f"{speed.run_ms:.1f}", f"{speed.cpu_ms:.1f}", str(len(one.rounds))),
            "best" if best else "" if one.fits(record.max_latency_ms) else "slow",
            style="bold" if best else None,
        )
    return table


def _not_measured(results: Sequence[CandidateResult]) -> Iterator[Text]:
    """A line for each candidate that failed or is stuck, and for each reason why others were left out."""
    for one in results:
        if one.state in (CandidateState.FAILED, CandidateState.STUCK):
            yield Text(f"{one.candidate} is {one.state}: {one.reason}", style="yellow")
    skipped = Counter(one.reason for one in results if one.state is CandidateState.SKIPPED)
    for reason, count in skipped.items():
        yield Text(f"{count} not measured: {reason}", style="dim")
