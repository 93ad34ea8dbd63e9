"""The options that the commands of this package share, and how they print figures."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from export.gate_images import PHOTOS
from service.cli.tables import new_table

model_option = click.option("--model", default="googlenet", show_default=True, help="An exported model")
artifacts_option = click.option(
    "--artifacts",
    type=click.Path(path_type=Path, exists=True),
    default=Path("artifacts"),
    envvar="TOPFIVE_ARTIFACTS",
    show_default=True,
    help="Folder of exported models",
)
photo_option = click.option(
    "--photo",
    type=click.Path(path_type=Path, exists=True),
    default=PHOTOS / "zebra.jpeg",
    help="The photo that is sent; else one of the project",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON")


def print_json(figures: Any) -> None:
    """Print figures as JSON; dataclasses in them become objects of their fields."""
    click.echo(json.dumps(figures, indent=2, default=_object))


def _object(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} has no form in JSON")


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a title and a table, whose first column is text and whose others are figures, on the right."""
    table, console = new_table(heads[0], numbers=heads[1:]), Console(width=120)
    for row in rows:
        table.add_row(*row)
    console.print(title, style="bold", markup=False, highlight=False)
    console.print(table)
