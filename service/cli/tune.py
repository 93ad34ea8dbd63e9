"""The command `topfive tune`."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.artifact.artifact import ArtifactError, exported_names, load
from models.artifact.tuning import write_tuning
from models.catalog import CATALOG, UnknownModelError
from service.cli.options import FiniteRange, option, options, settings_from
from service.cli.tables import new_table, say
from service.common.cpus import cpu_model, cpu_quota
from service.common.types import Precision
from service.engines.base import EngineUnavailableError
from service.offline.tune import Candidate, OpenCandidate, Speed, Tuning, open_candidate

_SHOWN = 12


@click.command("tune")
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@option("--seconds", type=FiniteRange(min=1), default=30.0, help="Time to measure each model, beside opening engines")
@option("--max-latency-ms", type=FiniteRange(min=0.1), default=100.0, help="Longest time that a batch may run")
@options("artifacts", "cpus")
@click.pass_obj
def tune_command(
    open_engine: OpenCandidate | None,
    /,
    names: Sequence[str],
    seconds: float,
    max_latency_ms: float,
    **values: Any,
) -> None:
    """Measure how each MODEL runs best on this machine's CPU, and store the result for `serve`.

    Runtimes, precisions, slots, threads and batch sizes are tried while threads decode photos, as in a server. Only
    engines that pass the model's parity checks are tried.
    """
    settings, console, errors = settings_from(values), Console(), Console(stderr=True)
    cpus, status = settings.cpus or cpu_quota(), 0
    for name in dict.fromkeys(map(CATALOG.canonical, names)):
        try:
            if name not in CATALOG and name not in (exported := exported_names(settings.artifacts)):
                raise click.UsageError(str(UnknownModelError(name, {*CATALOG.names(), *exported})))
            artifact = load(settings.artifacts, name)
            with errors.status(f"tuning {name}") as line:
                watch = lambda one: line.update(f"tuning {name}: {one}")  # noqa: B023, E731 - called within this round
                tuning = Tuning(artifact, cpus, seconds, max_latency_ms, watch, open_engine or open_candidate)
                speeds, failures = tuning.run()
            console.print(Text(f"{name} on {cpu_model()}, {cpus} CPUs", "bold"))
            console.print(_table(speeds, tuning))
            for failure in failures:
                say(errors, failure, "yellow")
            best = next(iter(speeds))
            if not tuning.fits(speeds[best]):
                say(errors, f"no batch runs within {max_latency_ms:g} ms; the shortest are kept", "yellow")
            path = write_tuning(artifact.folder, tuning.record(speeds))
            allowed = " where `auto` takes int8, or with --precision int8" if best.precision is Precision.INT8 else ""
            say(console, f"{best} is kept in {path}; `serve` uses it on machines like this one{allowed}\n", "dim")
        except (ArtifactError, EngineUnavailableError, OSError) as error:
            say(errors, f"{name}: {error}", "red")
            status = 1
    sys.exit(status)


def _table(speeds: Mapping[Candidate, Speed], tuning: Tuning) -> Table:
    """The fastest measurements, the best first."""
    table = new_table("engine", numbers=("slots", "threads", "batch", "img/s", "run ms"))
    table.add_column("", no_wrap=True)
    for place, (one, speed) in enumerate(list(speeds.items())[:_SHOWN]):
        layout = one.layout
        table.add_row(
            f"{one.runtime} {one.precision}",
            *map(str, (layout.slots, layout.threads, layout.max_batch)),
            *(f"{speed.images_per_s:.1f}", f"{speed.run_ms:.1f}"),
            "best" if place == 0 else "" if tuning.fits(speed) else "slow",
            style="bold" if place == 0 else None,
        )
    if len(speeds) > _SHOWN:
        table.caption = f"and {len(speeds) - _SHOWN} more"
    return table
