"""The command `topfive classify`: any number of images into one results file, by batches, and again after a stop."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from service.cli.options import option, settings_from
from service.common.settings import Settings
from service.inference.topk import resolve_top_k
from service.offline.journal import Journal, discard
from service.offline.progress import Tally, watched
from service.offline.rows import BulkError, Item, Row
from service.offline.runner import Question
from service.offline.session import OpenCore, Session, StoppedError, core_options, crops_option, opened, run, say
from service.offline.sources import find
from service.offline.writers import Format, Results, format_of, write
from service.server.app import Core


@dataclass(frozen=True, slots=True)
class Job:
    """What one call of the command is about."""

    model: str
    items: list[Item]
    out: Path
    top_k: int | None
    crops: int
    again: str = ""  # how the command that goes on differs from this one

    @property
    def partial(self) -> Path:
        """The journal beside the results file."""
        return self.out.with_name(f"{self.out.name}.partial")


@click.command("classify")
@click.argument("sources", metavar="DIR|GLOB|LIST|IMAGE...", nargs=-1, required=True)
@option("--model", default="googlenet", help="Which exported model answers, or ensemble:a+b for their average")
@option(
    "--out",
    variable="TOPFIVE_RESULTS",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help=f"Results file: {', '.join(f'.{kind}' for kind in Format)}",
)
@option("--top-k", type=int, help="How many classes, best first; 5, or all if there are fewer")
@crops_option
@option("--overwrite", is_flag=True, help="Begin anew where --out or an unfinished run of it is there already")
@core_options
def classify_command(
    sources: Sequence[str], model: str, out: Path, top_k: int | None, crops: int, overwrite: bool, **values: Any
) -> None:
    """Classify many images in this process and write a row for each, in order.

    DIR is searched for images to any depth. GLOB is a pattern in quotes, ** for any depth. LIST is a .txt with a path
    per line, or a .csv with a column path, relative to the list's folder or else to the working directory.

    An image that cannot be classified is a row with its error. After Ctrl-C, SIGTERM or worse the same command goes
    on from OUT.partial; OUT appears when all is done.
    """
    settings = settings_from(values)
    errors = Console(stderr=True)
    try:
        format_of(out)
        job = Job(model, find(sources), out, top_k, crops, " without --overwrite" if overwrite else "")
        _make_way(job, overwrite)
    except BulkError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(run(lambda stop: classify(settings, job, errors, stop), errors))


async def classify(
    settings: Settings, job: Job, console: Console, stop: asyncio.Event, open_core: OpenCore = Core
) -> None:
    """Run what is missing and write the results. Raises TopfiveError, BulkError, StoppedError."""
    async with opened(settings, job.model, open_core, stop) as session:
        question = Question(resolve_top_k(job.top_k, len(session.panel.labels), session.panel.name), job.crops)
        with Journal(job.partial, {**session.settings, **asdict(question)}) as journal:
            before = sum(item.name in journal for item in job.items)
            going_on = f", going on: {before:,} are done" if before else ""
            say(console, f"{session.title}: {len(job.items):,} images{going_on}")
            tally = Tally(len(job.items), before, session.core.clock)
            with watched(tally, console, session.core.clock) as watch:
                whole = await session.complete(journal, job.items, question=question, stop=stop, watch=watch)
            if not whole:
                raise StoppedError(
                    f"stopped: {tally.done:,} of {tally.total:,} are done and kept in {job.partial}; "
                    f"the same command{job.again} goes on"
                )
            failed = _finish(job, journal, session, question)
        job.partial.unlink(missing_ok=True)
    rate = "" if tally.per_second is None else f", {tally.per_second:.1f} images/s"
    say(console, f"{job.out}: {tally.total:,} images{rate}")
    if failed:
        say(console, f"{failed:,} could not be classified; their rows say why", "yellow")
    for warning in session.panel.warnings:
        say(console, f"warning: {warning}", "yellow")


def _make_way(job: Job, overwrite: bool) -> None:
    """Check that nothing finished is in the way, or with --overwrite put away what is. Raises BulkError."""
    if overwrite:
        discard(job.partial)
    elif job.out.exists() and not job.partial.exists():
        raise BulkError(f"{job.out} is there already; --overwrite begins anew, or choose another --out")


def _finish(job: Job, journal: Journal, session: Session, question: Question) -> int:
    """Write the results file; how many rows are errors."""
    failed = 0

    def rows() -> Iterator[Row]:
        nonlocal failed
        for row in journal.rows(item.name for item in job.items):
            failed += row.error is not None
            yield row

    answerer = {**session.answerer, "crops": question.crops, "decode": session.core.settings.decode}
    try:
        write(job.out, Results(rows(), question.top_k, answerer))
    except OSError as error:
        raise BulkError(f"{job.out} cannot be written: {error.strerror}; the same command tries again") from error
    return failed
