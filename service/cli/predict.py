"""The command `topfive predict`: classifies a few images in this process, or by a running server."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from rich.console import Console

from service.cli import tables
from service.cli.options import (
    ANSWER_OPTIONS,
    crops_option,
    model_option,
    option,
    options,
    server_options,
    settings_from,
    top_k_option,
)
from service.cli.tables import say
from service.common.clock import LoopClock
from service.common.errors import BadRequest, TopfiveError
from service.common.http_client import fetch
from service.common.image_file import read_image_file
from service.common.settings import Settings
from service.inference.dataplane import ClassifyOptions
from service.rest.client import RemoteServer
from service.rest.schemas import to_dict

if TYPE_CHECKING:
    from service.inference.local import LocalDataPlane

T = TypeVar("T")

_OWN = ("artifacts", "cache", "runtime", "precision", "cpus", "decode", "max_image_pixels")
"""Settings of models in this process."""


@click.command("predict")
@click.argument("images", nargs=-1, required=True, type=click.Path())
@model_option
@top_k_option
@crops_option
@option("--json", "as_json", is_flag=True, help="Print one JSON object per image")
@server_options
@options(*ANSWER_OPTIONS)
def predict_command(
    images: Sequence[str], model: str | None, top_k: int | None, crops: int, as_json: bool, **values: Any
) -> None:
    """Classify IMAGES, files or URLs, in this process, or with --server by a running server."""
    from service.inference.ensemble import member_names

    server = server_from(values)
    try:
        settings = settings_from({**values, "models": member_names(model) if model is not None else ()})
    except TopfiveError as error:
        raise click.UsageError(error.detail) from error
    asked = model if server or model else settings.models[0]
    sys.exit(asyncio.run(_predict(settings, server, images, asked, ClassifyOptions(inf, top_k, crops), as_json)))


async def _predict(
    settings: Settings,
    server: RemoteServer | None,
    images: Sequence[str],
    model: str | None,
    options: ClassifyOptions,
    as_json: bool,
) -> int:
    """Print an answer for each image. Returns 1 if an image has no answer, else 0."""
    console, failures = Console(), 0
    try:
        async with answering(settings, server, lambda local: local.repository.start(settings.models)) as data_plane:
            async for image, answer in answers(
                images, settings, options, lambda data, asked: data_plane.classify(data, model, asked)
            ):
                if answer is None:
                    failures += 1
                elif as_json:
                    click.echo(json.dumps({"image": image, **to_dict(answer)}))
                else:
                    console.print(tables.answer(image, answer, console.width))
    except (OSError, TopfiveError) as error:  # an error of the model or the server, not of the image
        say(Console(stderr=True), f"error: {error}", "red")
        failures += 1
    return int(failures > 0)


def server_from(values: dict[str, Any]) -> RemoteServer | None:
    """The server of --server, if it is given. Takes its options out of `values`.

    Raises click.UsageError for a wrong URL, and for options that say how this process would answer.
    """
    url, api_key = values.pop("server"), values.pop("api_key")
    if url is None:
        return None
    source = click.get_current_context().get_parameter_source
    if idle := [f"--{name.replace('_', '-')}" for name in _OWN if source(name) is ParameterSource.COMMANDLINE]:
        raise click.UsageError(f"with --server the server answers as it was started, without {', '.join(idle)}")
    try:
        return RemoteServer(url, api_key, values["timeout_s"])
    except BadRequest as error:
        raise click.UsageError(error.detail) from error


@asynccontextmanager
async def answering(
    settings: Settings, server: RemoteServer | None, load: Callable[["LocalDataPlane"], Awaitable[object]]
) -> AsyncIterator["RemoteServer | LocalDataPlane"]:
    """What answers: the server, or else models of this process, which `load` loads first."""
    if server is not None:
        yield server
        return
    from service.repository import repository
    from service.server.data_plane import build_data_plane

    local, log = build_data_plane(settings), logging.getLogger(repository.__name__)
    log.addFilter(_is_not_printed)
    try:
        await load(local)
        yield local
    finally:
        log.removeFilter(_is_not_printed)
        await local.aclose(0)


def _is_not_printed(record: logging.LogRecord) -> bool:
    """Whether the answer does not say it: it says which models have untrained weights."""
    return "untrained" not in record.getMessage()


async def answers(
    images: Iterable[str],
    settings: Settings,
    options: ClassifyOptions,
    ask: Callable[[bytes, ClassifyOptions], Awaitable[T]],
) -> AsyncIterator[tuple[str, T | None]]:
    """Yield each image with the answer of `ask`, which gets the bytes and the options with a deadline.

    The answer is None after an error of the image, which is printed. Raises OSError if there is no server.
    """
    clock, errors = LoopClock(), Console(stderr=True)
    for image in images:
        answer = None
        try:
            data = await asyncio.to_thread(_read, image, settings)
            answer = await ask(data, replace(options, deadline=clock.now() + settings.timeout_s))
        except TopfiveError as error:
            say(errors, f"{image}: {error.detail}", "red")
        yield image, answer


def _read(image: str, settings: Settings) -> bytes:
    """The bytes of the image, which is a file or a URL. Raises TopfiveError."""
    try:
        if not image.lower().startswith(("http://", "https://")):
            return read_image_file(Path(image), settings.limits)
        answer = fetch(image, settings.timeout_s, settings.max_image_bytes)
    except OSError as error:
        raise BadRequest(error.strerror or str(error)) from error
    if answer.status != HTTPStatus.OK:
        raise BadRequest(f"the host answered {answer.status} {answer.reason}")
    return answer.body
