"""The command `topfive predict`: a few photos classified in this process, without a server."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from service.cli import tables
from service.cli.options import ANSWER_OPTIONS, crops_option, model_option, option, options, settings_from, top_k_option
from service.common.errors import TopfiveError
from service.common.image_file import read_image_file
from service.common.settings import Settings
from service.inference.dataplane import ClassifyOptions
from service.inference.ensemble import member_names
from service.rest.schemas import to_dict
from service.server.app import Core


@click.command("predict")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option
@top_k_option
@crops_option
@option("--json", "as_json", is_flag=True, help="Print one JSON object per image")
@options(*ANSWER_OPTIONS)
def predict_command(
    images: Sequence[Path], model: str, top_k: int | None, crops: int, as_json: bool, **values: Any
) -> None:
    """Classify IMAGES in this process, without a server."""
    try:
        settings = settings_from({**values, "models": member_names(model)})
    except TopfiveError as error:
        raise click.UsageError(error.detail) from error
    sys.exit(asyncio.run(_predict(settings, images, model, (top_k, crops), as_json)))


async def _predict(
    settings: Settings, images: Sequence[Path], model: str, question: tuple[int | None, int], as_json: bool
) -> int:
    """Print an answer for each image; 1 where any could not be answered."""
    top_k, crops = question
    core, failures = Core(settings), 0
    console, errors = Console(), Console(stderr=True)
    try:
        await core.repository.start(settings.models)
        for path in images:
            try:
                data = await asyncio.to_thread(read_image_file, path, settings.limits)
                deadline = core.clock.now() + settings.timeout_s
                answer = await core.data_plane.classify(data, model, ClassifyOptions(deadline, top_k, crops))
            except (OSError, TopfiveError) as error:
                reason = (error.strerror or str(error)) if isinstance(error, OSError) else error.detail
                errors.print(f"[red]{escape(str(path))}[/]: {escape(reason)}", highlight=False, soft_wrap=True)
                failures += 1
                continue
            if as_json:
                click.echo(json.dumps({"image": str(path), **to_dict(answer)}))
            else:
                console.print(tables.answer(str(path), answer, console.width))
    except TopfiveError as error:  # the model itself
        errors.print(f"[red]error[/]: {escape(error.detail)}", highlight=False, soft_wrap=True)
        failures += 1
    finally:
        await core.aclose(0)
    return int(failures > 0)
