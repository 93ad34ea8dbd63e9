"""The command `topfive evaluate`."""

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.text import Text

from models.artifact.measured import protocol
from service.cli.long_run import display_on, run_options, run_until_done
from service.cli.options import BATCH_OPTIONS, crops_option, option, options, settings_from, split_names
from service.cli.tables import new_table, rate, rate_and_interval, say
from service.engines.selection.opening import OpenEngine
from service.offline.evaluate import EvaluateJob, evaluate
from service.offline.images import read_dataset, skipped_line
from service.offline.report import Evaluation
from service.server.data_plane import build_data_plane

_LISTED = 20  # images without an answer that are printed; report.json has all


@click.command("evaluate", short_help="Measure the accuracy of models on your own images.")
@click.argument("source", metavar="DIR|LIST.csv", type=click.Path(path_type=Path, exists=True))
@option(
    "--model", "names", multiple=True, required=True, help="Exported model, or ensemble:a+b; may be repeated, or a,b"
)
@option(
    "--out",
    variable="TOPFIVE_EVALUATION",
    type=click.Path(path_type=Path, file_okay=False),
    default="evaluation",
    help="Folder of the results",
)
@crops_option
@option("--overwrite", is_flag=True, help="Run every image again, and do not resume")
@options(*BATCH_OPTIONS)
@click.pass_obj
def evaluate_command(
    open_engine: OpenEngine | None,
    /,
    source: Path,
    names: Sequence[str],
    out: Path,
    crops: int,
    overwrite: bool,
    **values: Any,
) -> None:
    """Measure the accuracy of models on labelled images, without a server.

    DIR has a folder for each class, named by its wnid, its label or its class id. LIST.csv has a column path (or file)
    and one of wnid, class_id, label.

    Prints top-1 and top-5 error with 95 % intervals beside the published ones. Writes to --out every prediction, the
    figures of each class, the confusions, and report.json. The accuracy goes into the model's manifest, where /models
    shows it; an ensemble's is only in the report. After Ctrl-C, SIGTERM or a crash the same command resumes.
    """
    settings, console, errors = settings_from(values), Console(), Console(stderr=True)
    models = tuple(split_names(names))
    if not models:
        raise click.UsageError("--model: name at least one model")

    async def work(stop: asyncio.Event) -> None:
        dataset = read_dataset(source)
        if skipped := skipped_line(dataset.skipped):
            say(errors, skipped, "yellow")
        job = EvaluateJob(dataset, models, out, overwrite)
        build = partial(build_data_plane, settings, open_engine=open_engine)
        run = run_options(settings, crops)
        async for evaluation, unrecorded in evaluate(job, run, build, display_on(errors), stop):
            console.print(_table(evaluation))
            rate = "" if evaluation.images_per_s is None else f"{evaluation.images_per_s:.1f} images/s; "
            engine = f"{evaluation.engine.runtime} {evaluation.engine.precision}, decode {evaluation.decode}; "
            say(console, f"{engine}{rate}tables and report.json in {out}\n", "dim")
            for line in (*_warnings(evaluation), *filter(None, [unrecorded])):
                say(errors, line, "yellow")

    sys.exit(run_until_done(work, errors))


def _table(evaluation: Evaluation) -> RenderableType:
    """The measured error rates above the published ones."""
    members = evaluation.members
    version = ", ".join(f"v{member.version}" for member in members)
    title = f"{evaluation.name} {version if len(members) == 1 else f'({version})'}: errors in %, with 95 % intervals"
    table = new_table("", numbers=("top-1", "top-5"))
    table.add_column("on")
    scores = evaluation.scores
    five = f"{len(evaluation.labels)} classes" if scores.top5 is None else rate_and_interval(scores.top5.complement)
    on = f"{scores.images:,} images of {evaluation.dataset.name}, {protocol(evaluation.crops)}"
    table.add_row("measured", rate_and_interval(scores.top1.complement), five, Text(on), style="bold")
    for one in evaluation.published():
        table.add_row(Text(one.what), rate(one.top1), rate(one.top5), Text(one.on))
    return Group(Text(title, "bold"), table)


def _warnings(evaluation: Evaluation) -> list[str]:
    """The images that do not count, and the warnings of the models."""
    missing = evaluation.unanswered
    lines = [f"not counted, because they have no answer: {len(missing):,}"] if missing else []
    lines += [f"  {one.path}: {one.error}" for one in missing[:_LISTED]]
    if len(missing) > _LISTED:
        lines.append(f"  and {len(missing) - _LISTED:,} more, in report.json")
    return [*lines, *(f"warning: {warning}" for warning in evaluation.warnings)]
