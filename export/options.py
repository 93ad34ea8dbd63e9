"""Options that the commands of this package share."""

from pathlib import Path

import click

artifacts_option = click.option(
    "--artifacts",
    envvar="TOPFIVE_ARTIFACTS",
    default="artifacts",
    show_default=True,
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of exported models",
)
