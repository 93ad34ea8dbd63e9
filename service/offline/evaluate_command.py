"""The command `topfive evaluate`: how often models are right on the user's own images, beside what is published."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.artifact.artifact import LABELS, MANIFEST
from models.artifact.measured import Proportion, protocol, record_accuracy
from models.labels import Label, read_labels
from service.cli.options import option, settings_from
from service.common.settings import Settings
from service.inference.ensemble import canonical, member_names
from service.offline.dataset import Dataset, read_dataset
from service.offline.journal import Journal, discard
from service.offline.progress import Tally, watched
from service.offline.report import Evaluation, write_report, write_tables
from service.offline.rows import BulkError, Item, Row
from service.offline.runner import Question
from service.offline.scores import TOP, score
from service.offline.session import OpenCore, Session, StoppedError, core_options, crops_option, opened, run, say
from service.repository.model_info import exported, model_detail
from service.repository.repository import Repository
from service.server.app import Core

_LISTED = 20  # images without an answer that are named on the screen; report.json names all


@dataclass(frozen=True, slots=True)
class Job:
    """What one call of the command is about."""

    dataset: Dataset
    names: tuple[str, ...]
    out: Path
    crops: int
    overwrite: bool = False

    def journal(self, name: str) -> Path:
        """The record of that model's predictions."""
        return self.out / f"{name}.predictions.jsonl"

    @property
    def again(self) -> str:
        """How the command that goes on differs from this one."""
        return " without --overwrite" if self.overwrite else ""


@click.command("evaluate")
@click.argument("source", metavar="DIR|LIST.csv", type=click.Path(path_type=Path, exists=True))
@option(
    "--model", "names", multiple=True, required=True, help="Exported model or ensemble:a+b; more by repeating it or a,b"
)
@option(
    "--out",
    variable="TOPFIVE_EVALUATION",
    type=click.Path(path_type=Path, file_okay=False),
    default="evaluation",
    help="Folder of the results",
)
@crops_option
@option("--overwrite", is_flag=True, help="Run every image anew")
@core_options
def evaluate_command(source: Path, names: Sequence[str], out: Path, crops: int, overwrite: bool, **values: Any) -> None:
    """Measure how often models are right on labelled images, in this process.

    DIR has a folder for each class, named by its wnid, its label or its class id. LIST.csv has a column path (or file)
    and one of wnid, class_id, label.

    Prints top-1 and top-5 error with 95 % intervals beside the published ones, and writes to --out: every prediction,
    the figures of each class, what is taken for what, and report.json. The accuracy goes into the model's manifest,
    where /models shows it; an ensemble has none, and its accuracy is in the report only. After Ctrl-C, SIGTERM or
    worse the same command goes on.
    """
    settings = settings_from(values)
    models = tuple(name.strip() for value in names for name in value.split(",") if name.strip())
    if not models:
        raise click.UsageError("--model: name at least one model")
    errors = Console(stderr=True)
    try:
        job = Job(read_dataset(source), models, out, crops, overwrite)
    except BulkError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(run(lambda stop: evaluate(settings, job, (Console(), errors), stop), errors))


async def evaluate(
    settings: Settings, job: Job, consoles: tuple[Console, Console], stop: asyncio.Event, open_core: OpenCore = Core
) -> None:
    """Evaluate one model after the other, printing to the first console. Raises TopfiveError, BulkError, StoppedError.

    The second console has progress and warnings.
    """
    job = await _checked(settings, job, open_core)
    if job.overwrite:
        for name in job.names:
            discard(job.journal(name))
    done: list[Evaluation] = []
    for name in job.names:
        async with opened(settings, name, open_core, stop) as session:
            evaluation = await _evaluated(session, job, consoles[1], stop)
            folders = [member.artifact.folder for member in session.panel.members]
        done.append(evaluation)
        try:
            write_tables(job.out, evaluation)
            write_report(job.out / "report.json", job.dataset, done)
        except OSError as error:
            raise BulkError(f"{job.out} cannot be written: {error.strerror}; the same command tries again") from error
        unseen = _recorded(evaluation, folders)  # first, for a screen that is gone ends the command
        _print(evaluation, consoles[0], job.out)
        _warn(evaluation, consoles[1])
        if unseen is not None:
            say(consoles[1], unseen, "yellow")


def _recorded(evaluation: Evaluation, folders: Sequence[Path]) -> str | None:
    """Write the accuracy into the manifest of the only model; why /models will not show it, or None."""
    if len(folders) > 1:
        return f"{evaluation.name} has no manifest: its accuracy is in report.json, and /models will not show it"
    manifest = folders[0] / MANIFEST
    try:
        record_accuracy(manifest, evaluation.measurement(datetime.now(UTC).date().isoformat()))
    except (OSError, ValueError) as error:  # ValueError: measurements of a newer release
        return f"warning: /models will not show this accuracy: {manifest}: {error}"
    return None


async def _checked(settings: Settings, job: Job, open_core: OpenCore) -> Job:
    """The job with each model or ensemble once, by its own name.

    Raises BadRequest, ModelNotFound or BulkError unless every model is exported and knows every label.
    """
    core = open_core(settings)
    try:
        names = tuple(dict.fromkeys(canonical(core.repository, name) for name in job.names))
        for name in names:
            members = member_names(name)
            first = _labels(core.repository, members[0])
            for member in members[1:]:
                if _labels(core.repository, member) != first:
                    raise BulkError(f"{members[0]} and {member} have different classes, so they make no ensemble")
            job.dataset.items(first, name)
    finally:
        await core.aclose(0)
    return replace(job, names=names)


def _labels(repository: Repository, name: str) -> tuple[Label, ...]:
    """Those of the version that would be loaded."""
    entry = repository.entry(name)
    version, _ = exported(entry, repository.root)
    try:
        return read_labels(repository.root / entry.name / str(version) / LABELS)
    except (OSError, ValueError) as error:
        raise BulkError(f"the labels of {name} cannot be read: {error}; export it again") from error


async def _evaluated(session: Session, job: Job, console: Console, stop: asyncio.Event) -> Evaluation:
    """Run what is missing of one model and count."""
    name, labels, clock = session.panel.name, session.panel.labels, session.core.clock
    items = job.dataset.items(labels, name)
    question = Question(min(TOP, len(labels)), job.crops)
    settings = {**session.settings, **asdict(question), "dataset": job.dataset.sha256}
    with Journal(job.journal(name), settings) as journal:
        before = sum(item.name in journal for item in items)
        say(console, f"{session.title}: {len(items):,} images{_going_on(journal, before, len(items))}")
        tally = Tally(len(items), before, clock)
        if before < len(items):
            with watched(tally, console, clock) as watch:
                whole = await session.complete(journal, items, question=question, stop=stop, watch=watch)
            if not whole:
                raise StoppedError(
                    f"stopped: {tally.done:,} of {tally.total:,} are done and kept in {journal.path}; "
                    f"the same command{job.again} goes on"
                )
        return _counted(session, job, journal, items, tally)


def _going_on(journal: Journal, before: int, total: int) -> str:
    if before == total:
        return f", all in {journal.path} already; nothing is run (--overwrite runs them anew)"
    return f", going on: {before:,} are done" if before else ""


def _counted(session: Session, job: Job, journal: Journal, items: list[Item], tally: Tally) -> Evaluation:
    names = [item.name for item in items]
    labels = tuple(session.panel.labels)
    scores = score(journal.rows(names), len(labels))
    unanswered = tuple(row for row in journal.rows(names) if row.error is not None)
    if scores is None:
        first = unanswered[0]
        raise BulkError(f"none of the {len(items):,} images has an answer; {first.path}: {_reason(first)}")
    return Evaluation(
        name=session.panel.name,
        members=tuple(model_detail(session.core.repository.entry(card.name)) for card in session.cards),
        engine=session.panel.engine_info,
        crops=job.crops,
        decode=session.core.settings.decode,
        labels=labels,
        dataset=job.dataset,
        scores=scores,
        unanswered=unanswered,
        per_second=tally.per_second,
    )


def _print(evaluation: Evaluation, console: Console, out: Path) -> None:
    scores = evaluation.scores
    title = f"{evaluation.title}: errors in %, with 95 % intervals"
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    table.add_column("top-1", justify="right", no_wrap=True)
    table.add_column("top-5", justify="right", no_wrap=True)
    table.add_column("on")
    five = f"{len(evaluation.labels)} classes" if scores.top5 is None else _shown(scores.top5)
    on = f"{scores.images:,} images of {evaluation.dataset.name}, {protocol(evaluation.crops)}"
    table.add_row(Text("measured"), Text(_shown(scores.top1)), Text(five), Text(on), style="bold")
    for one in evaluation.published():
        table.add_row(*(Text(cell) for cell in (one.what, _figure(one.top1), _figure(one.top5), one.on)))
    console.print(table)
    rate = "" if evaluation.per_second is None else f"{evaluation.per_second:.1f} images/s; "
    engine = f"{evaluation.engine.runtime} {evaluation.engine.precision}, decode {evaluation.decode}; "
    say(console, f"{engine}{rate}tables and report.json in {out}\n", "dim")


def _warn(evaluation: Evaluation, console: Console) -> None:
    if missing := evaluation.unanswered:
        say(console, f"not counted, for want of an answer: {len(missing):,}", "yellow")
        for row in missing[:_LISTED]:
            say(console, f"  {row.path}: {_reason(row)}", "yellow")
        if len(missing) > _LISTED:
            say(console, f"  and {len(missing) - _LISTED:,} more, in report.json", "yellow")
    for warning in evaluation.warnings:
        say(console, f"warning: {warning}", "yellow")


def _reason(row: Row) -> str:
    return "" if row.error is None else f"{row.error.code}: {row.error.detail}"


def _shown(accuracy: Proportion) -> str:
    """The error rate with its interval."""
    error = accuracy.complement
    return f"{error.percent:.2f} [{error.low:.2f}, {error.high:.2f}]"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
