"""The command `topfive classify`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from service.cli.long_run import run_options, run_until_done, say_failed
from service.cli.options import BATCH_OPTIONS, crops_option, model_option, option, options, settings_from, top_k_option
from service.cli.tables import say
from service.engines.selection.opening import OpenEngine
from service.offline.classify import classify
from service.offline.images import find_images, skipped_line
from service.offline.results_file import ResultsFormat


@click.command("classify")
@click.argument("sources", metavar="DIR|LIST.txt|IMAGE...", nargs=-1, required=True)
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
    model: str | None,
    out: Path,
    top_k: int | None,
    crops: int,
    overwrite: bool,
    **values: Any,
) -> None:
    """Classify many images without a server, and write a row for each to one file.

    DIR is searched for images to any depth. LIST.txt has a path per line, relative to its folder, or to the working
    directory.

    An image that cannot be classified has its error in its row. After Ctrl-C, SIGTERM or a crash the same command
    resumes from OUT.partial. OUT appears when all images are done.
    """
    settings, errors = settings_from(values), Console(stderr=True)
    run = run_options(settings, crops, open_engine, errors)

    async def work() -> None:
        found = find_images(sources)
        if skipped := skipped_line(found.skipped):
            say(errors, skipped, "yellow")
        done = await classify(found.images, model or settings.models[0], out, run, top_k=top_k, overwrite=overwrite)
        rate = "" if done.images_per_s is None else f", {done.images_per_s:.1f} images/s"
        say(errors, f"{out}: {len(found.images):,} images{rate}")
        say_failed(errors, "could not be classified; their rows have the errors", done.failed)
        for warning in done.warnings:
            say(errors, f"warning: {warning}", "yellow")

    sys.exit(run_until_done(work(), errors))
