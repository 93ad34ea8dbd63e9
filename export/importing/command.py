"""The command `topfive import`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from export.common import ExportError
from export.terminal import (
    ProgressBar,
    artifacts_option,
    print_artifact,
    print_line,
    sigterm_as_interrupt,
    verbose_option,
)

if TYPE_CHECKING:
    from export.importing.pipeline import ImportRequest


@click.command("import")
@click.argument("file", metavar="FILE.onnx", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the served model")
@click.option(
    "--recipe",
    required=True,
    type=click.Path(path_type=Path),
    metavar="recipe.toml",
    help="Input of the network: size, resize, interpolation, channels, scale, mean, std, output, output_name",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="labels.csv|.txt",
    help="Class names: a CSV with the column label (and class_id, wnid), or a .txt with a name per line",
)
@artifacts_option
@verbose_option
def import_command(file: Path, name: str, recipe: Path, labels: Path | None, artifacts: Path, verbose: bool) -> None:
    """Import FILE.onnx, a classifier of any origin, for serving, and check it against the file itself."""
    try:
        from export.importing.pipeline import ImportRequest
    except ImportError as error:
        raise click.ClickException(
            f"{error.name} is not installed; importing needs: pip install '.[cpu,import]'"
        ) from error
    with sigterm_as_interrupt():
        done = _import(ImportRequest(file, name, recipe, labels), artifacts, verbose)
    sys.exit(0 if done else 1)


def _import(request: "ImportRequest", root: Path, verbose: bool) -> bool:
    """Import the file and print the result. Returns False if that fails."""
    from export.importing.pipeline import import_model
    from models.weights.onnx_reader import OnnxFileError

    try:
        with ProgressBar(request.name) as bar:
            done = import_model(request, root, bar)
    except (ExportError, OnnxFileError, OSError) as error:
        reason = f"{error.filename or root}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
        print_line(f"[bold red]{escape(request.name)} was not imported:[/] {escape(reason)}")
        return False
    print_artifact(done.manifest, done.version, root, verbose)
    for note in done.notes:
        print_line(f"  [yellow]note:[/] {escape(note)}")
    return True
