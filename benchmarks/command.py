"""The options that the commands of this package share, and how they print figures."""

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from benchmarks.figures import Measurement
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


def print_measurement(measurement: Measurement, *, as_json: bool) -> None:
    """Print all figures as JSON, or else their title and table."""
    if as_json:
        click.echo(json.dumps(measurement.figures, indent=2, default=asdict))
        return
    table, console = new_table(measurement.heads[0], numbers=measurement.heads[1:]), Console(width=120)
    for row in measurement.table:
        table.add_row(*row)
    console.print(measurement.title, style="bold", markup=False, highlight=False)
    console.print(table)
