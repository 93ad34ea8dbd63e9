"""The command `topfive import`."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from export.options import artifacts_option
from export.terminal import Bars, report, say

if TYPE_CHECKING:
    from export.importing.pipeline import Request


@click.command("import", short_help="Make a model of an ONNX classifier of any origin.")
@click.argument("file", metavar="FILE.onnx", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the model is called when it is served")
@click.option(
    "--recipe",
    required=True,
    type=click.Path(path_type=Path),
    metavar="recipe.toml",
    help="What its input is: size, resize, interpolation, channels, scale, mean, std, output, output_name",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="labels.csv|.txt",
    help="Class names: a CSV with the column label (and class_id, wnid), or a .txt with a name per line",
)
@artifacts_option
def import_command(file: Path, name: str, recipe: Path, labels: Path | None, artifacts: Path) -> None:
    """Make FILE.onnx, a classifier of any origin, a model for serving, checked against the file itself."""
    try:
        from export.importing.pipeline import Request
    except ImportError as error:
        raise click.ClickException(
            f"{error.name} is not installed; importing needs: pip install '.[cpu,export]'"
        ) from error
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing half done is left behind
    try:
        done = _import(Request(file, name, recipe, labels), artifacts)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(0 if done else 1)


def _import(request: "Request", root: Path) -> bool:
    """Import and say so; False where it failed, with the reason on the screen."""
    from export.importing.labels import LabelsError
    from export.importing.pipeline import STEPS, UnfitNameError, import_model
    from export.importing.recipe import RecipeError
    from export.onnx_common import ExportError
    from export.parity_gate import GateError, candidates
    from models.weights.onnx_reader import OnnxFileError

    try:
        with Bars(request.name, STEPS + len(candidates())) as bars:
            done = import_model(request, root, bars)
    except OSError as error:
        return _failed(request, f"{error.filename or root}: {error.strerror or error}")
    except (UnfitNameError, RecipeError, OnnxFileError, LabelsError, ExportError, GateError) as error:
        return _failed(request, str(error))
    report(done.manifest, done.version, root)
    for note in done.notes:
        say(f"  [yellow]note:[/] {escape(note)}")
    return True


def _failed(request: "Request", reason: str) -> bool:
    say(f"[bold red]{escape(request.name)} was not imported:[/] {escape(reason)}")
    return False
