"""The command `topfive classify`."""

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from service.cli.long_run import display_on, run_options, run_until_done
from service.cli.options import BATCH_OPTIONS, crops_option, model_option, option, options, settings_from, top_k_option
from service.cli.tables import say
from service.engines.selection.opening import OpenEngine
from service.offline.classify import ClassifyJob, classify
from service.offline.images import find_images, skipped_line
from service.offline.results_file import ResultsFormat
from service.server.data_plane import build_data_plane


@click.command("classify", short_help="Classify many images into one results file.")
@click.argument("sources", metavar="DIR|GLOB|LIST|IMAGE...", nargs=-1, required=True)
@model_option
@option(
    "--out",
    variable="TOPFIVE_RESULTS",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help=f"Results file: {', '.join(f'.{kind}' for kind in ResultsFormat)}",
)
@top_k_option
@crops_option
@option("--overwrite", is_flag=True, help="Overwrite --out, and do not resume")
@options(*BATCH_OPTIONS)
@click.pass_obj
def classify_command(
    open_engine: OpenEngine | None,
    /,
    sources: Sequence[str],
    model: str,
    out: Path,
    top_k: int | None,
    crops: int,
    overwrite: bool,
    **values: Any,
) -> None:
    """Classify many images without a server, and write a row for each to one file.

    DIR is searched for images to any depth. GLOB is a pattern in quotes; ** matches any depth. LIST is a .txt with a
    path per line, or a .csv with a column path; its paths are relative to its folder, or to the working directory.

    An image that cannot be classified has its error in its row. After Ctrl-C, SIGTERM or a crash the same command
    resumes from OUT.partial. OUT appears when all images are done.
    """
    settings, errors = settings_from(values), Console(stderr=True)

    async def work(stop: asyncio.Event) -> None:
        found = find_images(sources)
        if skipped := skipped_line(found.skipped):
            say(errors, skipped, "yellow")
        job = ClassifyJob(model, found.images, out, top_k)
        job.prepare(overwrite)
        build = partial(build_data_plane, settings, open_engine=open_engine)
        done = await classify(job, run_options(settings, crops), build, display_on(errors), stop)
        rate = "" if done.progress.images_per_s is None else f", {done.progress.images_per_s:.1f} images/s"
        say(errors, f"{out}: {done.progress.total:,} images{rate}")
        if done.failed:
            say(errors, f"{done.failed:,} could not be classified; their rows have the errors", "yellow")
        for warning in done.warnings:
            say(errors, f"warning: {warning}", "yellow")

    sys.exit(run_until_done(work, errors))
