"""The command `topfive models`: every model that there is, as a table or JSON."""

import json
from typing import Any

import click
from rich.console import Console

from models.catalog import CATALOG
from service.cli import tables
from service.cli.options import option, options, settings_from
from service.common.model_info import ModelSummary
from service.common.types import copy_as
from service.repository.model_info import model_detail
from service.rest.schemas import to_dict
from service.server.app import Core


@click.command("models")
@option("--json", "as_json", is_flag=True, help="Print a JSON array")
@options("artifacts")
def models_command(as_json: bool, **values: Any) -> None:
    """List every model: size, accuracy, and whether it is exported."""
    settings = settings_from(values)
    entries = Core(settings).repository.entries()
    if as_json:
        rows = [to_dict(copy_as(ModelSummary, model_detail(entry))) for entry in entries]
        click.echo(json.dumps(rows, indent=2))
    else:
        order = {name: place for place, name in enumerate(CATALOG.names())}
        console = Console()
        entries.sort(key=lambda entry: order.get(entry.name, len(order)))  # as the lectures go; others by name, last
        console.print(tables.models(entries, console.width))
