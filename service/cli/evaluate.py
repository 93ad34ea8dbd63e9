"""The command `topfive evaluate`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.text import Text

from models.artifact.measured import protocol
from service.cli.long_run import run_options, run_until_done, say_failed
from service.cli.options import BATCH_OPTIONS, crops_option, option, options, settings_from, split_names
from service.cli.tables import accuracy, new_table, rate, rate_and_interval, say
from service.common.model_info import ModelDetail
from service.engines.selection.opening import OpenEngine
from service.inference.ensemble import stripped
from service.offline.evaluate import Evaluation, evaluate, write_report
from service.offline.images import read_dataset, skipped_line


@click.command("evaluate")
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

    Prints top-1 and top-5 accuracy with 95 % intervals beside the published ones. Writes to --out every prediction, and
    report.json. The accuracy goes into the model's manifest, where /models shows it; an ensemble's is only in the
    report. After Ctrl-C, SIGTERM or a crash the same command resumes.
    """
    settings, console, errors = settings_from(values), Console(), Console(stderr=True)
    models = dict.fromkeys(map(stripped, split_names(names)))
    if not models:
        raise click.UsageError("--model: name at least one model")
    run = run_options(settings, crops, open_engine, errors)

    async def work() -> None:
        dataset = read_dataset(source)
        if skipped := skipped_line(dataset.skipped):
            say(errors, skipped, "yellow")
        done: list[Evaluation] = []
        for model in models:
            evaluation = await evaluate(dataset, model, out, run, overwrite=overwrite)
            done.append(evaluation)
            write_report(out / "report.json", dataset, done)
            console.print(_table(evaluation))
            rate = "" if evaluation.images_per_s is None else f"{evaluation.images_per_s:.1f} images/s; "
            engine = f"{evaluation.engine.runtime} {evaluation.engine.precision}, decode {evaluation.decode}; "
            say(console, f"{engine}{rate}predictions and report.json in {out}\n", "dim")
            say_failed(errors, "not counted, because they have no answer", evaluation.unanswered)
            for warning in evaluation.warnings:
                say(errors, f"warning: {warning}", "yellow")

    sys.exit(run_until_done(work(), errors))


def _table(evaluation: Evaluation) -> RenderableType:
    """The measured accuracy above the published one."""
    members = evaluation.members
    version = ", ".join(f"v{member.version}" for member in members)
    title = f"{evaluation.name} {version if len(members) == 1 else f'({version})'}: accuracy in %, with 95 % intervals"
    table = new_table("", numbers=("top-1", "top-5"))
    table.add_column("on")
    scores = evaluation.scores
    five = "-" if scores.top5 is None else rate_and_interval(scores.top5)
    on = f"{scores.images:,} images of {evaluation.dataset.name}, {protocol(evaluation.crops)}"
    table.add_row("measured", rate_and_interval(scores.top1), five, Text(on), style="bold")
    for member in members:
        prefix = "" if len(members) == 1 else f"{member.name}: "
        for what, top1, top5, images in _published(member):
            table.add_row(Text(prefix + what), rate(top1), rate(top5), Text(images))
    return Group(Text(title, "bold"), table)


def _published(member: ModelDetail) -> Iterator[tuple[str, float | None, float | None, str]]:
    """The accuracy of the model's weights if known, else of the first published weights; then of the paper."""
    if member.acc1 is not None:
        name = member.weights_file.name if member.weights_file else "inside"
        yield f"weights {name}", member.acc1, member.acc5, member.acc_dataset or ""
    elif member.published:
        weights = member.published[0]
        yield f"weights {weights.tag} (not those inside)", weights.acc1, weights.acc5, weights.dataset
    for errors in member.published_errors:
        yield "paper", accuracy(errors.top1), accuracy(errors.top5), errors.protocol
