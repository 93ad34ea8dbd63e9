"""The command `topfive models`: all known models, as a table or JSON."""

import json
from typing import Any

import click
from rich.console import Console

from models.catalog import CATALOG
from service.cli import tables
from service.cli.options import option, options, settings_from
from service.common.model_info import ModelSummary
from service.common.types import copy_as
from service.rest.schemas import to_dict


@click.command("models")
@option("--json", "as_json", is_flag=True, help="Print a JSON array")
@options("artifacts")
def models_command(as_json: bool, **values: Any) -> None:
    """List every model: size, accuracy, and whether it is exported, or `packaged`: it comes with topfive."""
    from service.repository.model_info import model_detail
    from service.server.data_plane import build_data_plane

    rows = [model_detail(entry) for entry in build_data_plane(settings_from(values)).repository.entries()]
    if as_json:
        click.echo(json.dumps([to_dict(copy_as(ModelSummary, row)) for row in rows], indent=2))
    else:
        order = {name: place for place, name in enumerate(CATALOG.names())}
        console = Console()
        rows.sort(key=lambda row: order.get(row.name, len(order)))  # as in the catalog; others last, by name
        console.print(tables.models(rows, console.width))
