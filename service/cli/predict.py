"""The command `topfive predict`: classifies a few images in this process, without a server."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from service.cli import tables
from service.cli.options import ANSWER_OPTIONS, crops_option, model_option, option, options, settings_from, top_k_option
from service.cli.tables import say
from service.common.clock import Clock
from service.common.errors import TopfiveError
from service.common.image_file import read_image_file
from service.common.settings import Settings
from service.inference.dataplane import ClassifyOptions
from service.inference.ensemble import member_names
from service.rest.schemas import to_dict
from service.server.data_plane import build_data_plane

T = TypeVar("T")


@click.command("predict", short_help="Classify images without a server.")
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
    sys.exit(asyncio.run(_predict(settings, images, model, ClassifyOptions(inf, top_k, crops), as_json)))


async def _predict(
    settings: Settings, images: Sequence[Path], model: str, options: ClassifyOptions, as_json: bool
) -> int:
    """Print an answer for each image. Returns 1 if an image has no answer, else 0."""
    data_plane, console, failures = build_data_plane(settings), Console(), 0
    try:
        await data_plane.repository.start(settings.models)
        async for path, answer in answers(
            images, settings, data_plane.clock, options, lambda data, asked: data_plane.classify(data, model, asked)
        ):
            if answer is None:
                failures += 1
            elif as_json:
                click.echo(json.dumps({"image": str(path), **to_dict(answer)}))
            else:
                console.print(tables.answer(str(path), answer, console.width))
    except TopfiveError as error:  # an error of the model, not of the image
        say(Console(stderr=True), f"error: {error.detail}", "red")
        failures += 1
    finally:
        await data_plane.aclose(0)
    return int(failures > 0)


async def answers(
    images: Iterable[Path],
    settings: Settings,
    clock: Clock,
    options: ClassifyOptions,
    ask: Callable[[bytes, ClassifyOptions], Awaitable[T]],
) -> AsyncIterator[tuple[Path, T | None]]:
    """Yield each image with the answer of `ask`, which gets the bytes and the options with a deadline.

    The answer is None after an error, which is printed.
    """
    errors = Console(stderr=True)
    for path in images:
        try:
            data = await asyncio.to_thread(read_image_file, path, settings.limits)
            yield path, await ask(data, replace(options, deadline=clock.now() + settings.timeout_s))
        except (OSError, TopfiveError) as error:
            reason = error.detail if isinstance(error, TopfiveError) else error.strerror or str(error)
            say(errors, f"{path}: {reason}", "red")
            yield path, None
