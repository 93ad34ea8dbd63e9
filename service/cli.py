"""The command `topfive`. Subcommands of other packages come in by the entry point group `topfive.commands`."""

import asyncio
import json
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from models.catalog import CATALOG
from service import tables
from service.app import Core, run
from service.commands.bench import bench_command
from service.commands.classify import classify_command
from service.commands.compare import compare
from service.commands.doctor import doctor_command
from service.commands.evaluate import evaluate_command
from service.commands.layers import layers_command
from service.commands.session import crops_option
from service.commands.show import show_command
from service.commands.tune import tune_command
from service.ensemble import member_names
from service.errors import TopfiveError
from service.facts import facts
from service.fronts import run_fronted
from service.gateway import run_gateway
from service.options import option, options, settings_from
from service.remote.replicas import parse_targets
from service.rest.schemas import ModelReply, PredictReply
from service.settings import Settings


class _Group(click.Group):
    """Adds the commands of other packages, so that this one imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*self.commands, *(point.name for point in entry_points(group="topfive.commands"))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported when it is asked for."""
        for point in entry_points(group="topfive.commands", name=cmd_name):
            command = point.load()
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="topfive")
def main() -> None:
    """A photo goes in, the five best ImageNet classes come out."""


main.add_command(bench_command)
main.add_command(classify_command)
main.add_command(layers_command)
main.add_command(show_command)
main.add_command(doctor_command)
main.add_command(evaluate_command)
main.add_command(compare)
main.add_command(tune_command)


@main.command()
@options(*Settings.model_fields)
def serve(**values: Any) -> None:
    """Serve exported models over REST and gRPC until SIGTERM or Ctrl-C."""
    settings = settings_from(values)
    sys.exit(run_fronted(settings) if settings.gateways else run(settings))


@main.command()
@option(
    "--inference", required=True, metavar="HOST:PORT", help="Inference servers: all that a name gives, or several names"
)
@options("host", "port", "max_image_bytes", "max_upload_bytes", "timeout_s", "drain_s", "log_level")
def gateway(inference: str, **values: Any) -> None:
    """Serve REST in front of inference servers, which hold the models, until SIGTERM or Ctrl-C."""
    try:
        targets = parse_targets(inference)
    except ValueError as error:
        raise click.UsageError(f"--inference: {error}") from error
    sys.exit(run_gateway(settings_from(values), targets))


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--model", default="googlenet", help="Which exported model answers, or ensemble:a+b for their average")
@option("--top-k", type=int, help="How many classes, best first; 5, or all if there are fewer")
@crops_option
@option("--json", "as_json", is_flag=True, help="Print one JSON object per image")
@options("artifacts", "runtime", "precision", "cpus", "max_image_bytes", "max_image_pixels", "timeout_s")
def predict(images: Sequence[Path], model: str, top_k: int | None, crops: int, as_json: bool, **values: Any) -> None:
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
                data = await asyncio.to_thread(path.read_bytes)
                deadline = core.clock.now() + settings.timeout_s
                answer = await core.classifier.classify(data, model=model, top_k=top_k, crops=crops, deadline=deadline)
            except (OSError, TopfiveError) as error:
                reason = (error.strerror or str(error)) if isinstance(error, OSError) else error.detail
                errors.print(f"[red]{escape(str(path))}[/]: {escape(reason)}", highlight=False, soft_wrap=True)
                failures += 1
                continue
            if as_json:
                reply = PredictReply.of(str(path), answer).model_dump(mode="json")
                click.echo(json.dumps({"image": reply.pop("request_id"), **reply}))
            else:
                console.print(tables.answer(str(path), answer, console.width))
    except TopfiveError as error:  # the model itself
        errors.print(f"[red]error[/]: {escape(error.detail)}", highlight=False, soft_wrap=True)
        failures += 1
    finally:
        await core.aclose(0)
    return int(failures > 0)


@main.command()
@option("--json", "as_json", is_flag=True, help="Print a JSON array")
@options("artifacts")
def models(as_json: bool, **values: Any) -> None:
    """List every model: size, accuracy, and whether it is exported."""
    settings = settings_from(values)
    entries = Core(settings).repository.entries()
    if as_json:
        rows = [ModelReply.model_validate(facts(entry)).model_dump(mode="json") for entry in entries]
        click.echo(json.dumps(rows, indent=2))
    else:
        order = {name: place for place, name in enumerate(CATALOG.names())}
        console = Console()
        entries.sort(key=lambda entry: order.get(entry.name, len(order)))  # as the lectures go; others by name, last
        console.print(tables.models(entries, console.width))
