"""`topfive compare`: many models beside each other on the same photos, in this process, without a server."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from models.artifact.artifact import exported_names
from service.cli import tables
from service.cli.options import ANSWER_OPTIONS, crops_option, option, options, settings_from, split_names
from service.common.errors import TopfiveError
from service.common.image_file import read_image_file
from service.common.settings import Settings
from service.common.tasks import together
from service.inference.dataplane import ClassifyOptions
from service.inference.ensemble import member_names
from service.rest.errors import row_problem
from service.rest.schemas import compare_reply, to_dict
from service.server.app import Core


@click.command("compare")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--model", "models", multiple=True, help="Which exported models, repeated or a,b; else all of them")
@option("--top-k", type=int, help="How many classes of each are looked at for what all have in common")
@crops_option
@option("--json", "as_json", is_flag=True, help="Print one JSON object per image")
@options(*ANSWER_OPTIONS)
def compare_command(
    images: Sequence[Path], models: Sequence[str], top_k: int | None, crops: int, as_json: bool, **values: Any
) -> None:
    """Classify IMAGES with many models, or ensemble:a+b, side by side; status 1 where any has no answer."""
    settings = settings_from(values)
    errors = Console(stderr=True)
    names = split_names(models)
    if not names:
        names = exported_names(settings.artifacts)
        if not names:
            errors.print(f"no model is exported in {settings.artifacts}; run: topfive export NAME", highlight=False)
            sys.exit(1)
        errors.print(f"comparing what is exported: {', '.join(names)}", highlight=False)
    sys.exit(asyncio.run(_compare(settings, images, names, (top_k, crops), as_json)))


async def _compare(
    settings: Settings, images: Sequence[Path], names: Sequence[str], question: tuple[int | None, int], as_json: bool
) -> int:
    """Print a comparison of each image; 1 where any row or image has an error."""
    core, failures = Core(settings), 0
    console, errors = Console(), Console(stderr=True)
    top_k, crops = question
    try:
        await together([_loaded(core, name) for name in names])
        for path in images:
            try:
                data = await asyncio.to_thread(read_image_file, path, settings.limits)
                deadline = core.clock.now() + settings.timeout_s
                comparison = await core.data_plane.compare(data, names, ClassifyOptions(deadline, top_k, crops))
            except (OSError, TopfiveError) as error:
                reason = (error.strerror or str(error)) if isinstance(error, OSError) else error.detail
                errors.print(f"[red]{escape(str(path))}[/]: {escape(reason)}", highlight=False, soft_wrap=True)
                failures += 1
                continue
            failures += sum(isinstance(row.result, Exception) for row in comparison.rows)
            if as_json:
                problems = [row_problem(row.result, str(path)) for row in comparison.rows]
                reply = to_dict(compare_reply(str(path), comparison, problems))
                click.echo(json.dumps({"image": reply.pop("request_id"), **reply}))
            else:
                console.print(tables.comparison(str(path), comparison))
    finally:
        await core.aclose(0)
    return int(failures > 0)


async def _loaded(core: Core, name: str) -> None:
    """Load it without a limit of time; what is wrong with it will stand in its row."""
    try:
        for member in member_names(name):
            await core.repository.get(member)
    except TopfiveError:
        return
