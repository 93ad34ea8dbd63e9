"""The command `topfive compare`: many models side by side on the same images, here or by a server."""

import asyncio
import json
import sys
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from models.artifact.artifact import exported_names
from service.cli import tables
from service.cli.options import (
    ANSWER_OPTIONS,
    crops_option,
    option,
    options,
    server_options,
    settings_from,
    split_names,
)
from service.cli.predict import answering, answers, server_from
from service.cli.tables import say
from service.common.errors import TopfiveError
from service.common.settings import Settings
from service.common.tasks import together
from service.inference.dataplane import ClassifyOptions
from service.rest.client import RemoteServer
from service.rest.schemas import compare_reply, to_dict

if TYPE_CHECKING:
    from service.inference.local import LocalDataPlane


@click.command("compare")
@click.argument("images", nargs=-1, required=True, type=click.Path())
@option(
    "--model", "models", multiple=True, help="Models, repeated or with commas; else all exported, or loaded by --server"
)
@option("--top-k", type=int, help="Classes of each model among which common ones are searched")
@crops_option
@option("--json", "as_json", is_flag=True, help="Print one JSON object per image")
@server_options
@options(*ANSWER_OPTIONS)
def compare_command(
    images: Sequence[str], models: Sequence[str], top_k: int | None, crops: int, as_json: bool, **values: Any
) -> None:
    """Classify IMAGES, files or URLs, with many models side by side, in this process or with --server by a server.

    The exit status is 1 if any model has no answer.
    """
    server = server_from(values)
    settings = settings_from(values)
    errors = Console(stderr=True)
    names = split_names(models)
    if not names and server is None:
        if names := exported_names(settings.artifacts):
            say(errors, f"comparing what is exported: {', '.join(names)}")
        else:
            names = list(settings.models)
            say(errors, f"nothing is exported in {settings.artifacts}; taking what comes with topfive: {names[0]}")
    sys.exit(asyncio.run(_compare(settings, server, images, names, ClassifyOptions(inf, top_k, crops), as_json)))


async def _compare(
    settings: Settings,
    server: RemoteServer | None,
    images: Sequence[str],
    names: Sequence[str],
    options: ClassifyOptions,
    as_json: bool,
) -> int:
    """Print a comparison for each image. Returns 1 if an image or a row has an error, else 0."""
    from service.rest.errors import row_problem

    console, failures = Console(), 0
    try:
        async with answering(settings, server, lambda local: _load(local, names)) as data_plane:
            async for image, comparison in answers(
                images, settings, options, lambda data, asked: data_plane.compare(data, names, asked)
            ):
                if comparison is None:
                    failures += 1
                    continue
                failures += sum(isinstance(row.result, Exception) for row in comparison.rows)
                if as_json:
                    problems = [row_problem(row.result, image) for row in comparison.rows]
                    reply = to_dict(compare_reply(image, comparison, problems))
                    click.echo(json.dumps({"image": reply.pop("request_id"), **reply}))
                else:
                    console.print(tables.comparison(image, comparison))
    except OSError as error:  # of the server
        say(Console(stderr=True), f"error: {error}", "red")
        failures += 1
    return int(failures > 0)


async def _load(data_plane: "LocalDataPlane", names: Sequence[str]) -> None:
    """Load the models, however long that takes. The row of one that fails has the error."""
    await together([_loaded(data_plane, name) for name in names])


async def _loaded(data_plane: "LocalDataPlane", name: str) -> None:
    """Load the model, however long that takes. On an error its row has the message."""
    from service.inference.ensemble import member_names

    try:
        for member in member_names(name):
            await data_plane.repository.get(member)
    except TopfiveError:
        return
