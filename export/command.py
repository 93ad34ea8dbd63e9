"""The command `topfive export`."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.panel import Panel

from export.options import artifacts_option
from export.tensorrt.command import build_one, engine_options, read_order
from export.terminal import Bars, console, report, say
from models.artifact.artifact import IMPORTED, ArtifactError, NotExportedError, WeightRecord, read_manifest
from models.catalog import CATALOG, Architecture, UnknownModelError

if TYPE_CHECKING:
    from export.pipeline import Exported, WeightsChoice


@click.command("export")
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--weights",
    envvar="TOPFIVE_WEIGHTS",
    default="auto",
    show_default=True,
    show_envvar=True,
    metavar="auto|pretrained|untrained|FILE",
    help="pretrained downloads torchvision's file; untrained is seeded noise; FILE is a .pth or .safetensors state "
    "dict, or an .onnx file of the same architecture; auto is pretrained, or untrained where the download host "
    "cannot be reached",
)
@artifacts_option
@click.option(
    "--weights-mirror",
    envvar="TOPFIVE_WEIGHTS_MIRROR",
    show_envvar=True,
    metavar="URL",
    show_default="torchvision's own host",
    help="Download torchvision's files from this folder instead of its own host",
)
@click.option(
    "--missing",
    is_flag=True,
    envvar="TOPFIVE_MISSING",
    show_default="off",
    show_envvar=True,
    help="Export only what is not there yet; an untrained model counts as missing unless untrained was asked for",
)
@engine_options
def export_command(
    names: tuple[str, ...], weights: str, artifacts: Path, weights_mirror: str | None, missing: bool, **engine: Any
) -> None:
    """Export MODEL... for serving, checked against PyTorch.

    With --engine, an artifact that is there is kept where its weights are those asked for, and the engine is built
    into it.
    """
    order = read_order(engine)
    wanted = [name.strip() for name in ",".join(names).split(",") if name.strip()]
    if not wanted:
        raise click.UsageError("name at least one model")
    imported = [name for name in dict.fromkeys(wanted) if order is not None and _is_imported(name, artifacts)]
    try:
        catalogued = [CATALOG[name] for name in wanted if name not in imported]
    except UnknownModelError as error:
        raise click.UsageError(str(error)) from error
    architectures = list({one.name: one for one in catalogued}.values())
    try:
        from export.pipeline import WeightsChoice
    except ImportError as error:
        raise click.ClickException(
            f"{error.name} is not installed; exporting needs: pip install '.[export]'"
        ) from error
    choice = WeightsChoice.parse(weights, weights_mirror)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing half done is left behind
    try:
        keep = missing or order is not None
        failed = [one.name for one in architectures if not _export_one(one, choice, artifacts, keep)]
        if order is not None:
            there = [*imported, *(one.name for one in architectures if one.name not in failed)]
            failed += [name for name in there if not build_one(name, artifacts, order, missing)]
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(1 if failed else 0)


def _export_one(architecture: Architecture, choice: "WeightsChoice", root: Path, missing: bool) -> bool:
    """Export one model and say so; False where it failed, with the reason on the screen."""
    from export.onnx_common import ExportError
    from export.parity_gate import GateError
    from models.weights.weights import HostUnreachableError, WeightsError

    present = _present(architecture, root) if missing else None
    if present is not None and choice.satisfied_by(present, architecture):
        say(f"{architecture.name}: exported already, {present.source} weights")
        return True
    try:
        # with something untrained already there, auto has only one thing left to try
        done = _with_progress(architecture, choice.strictly() if present else choice, root)
    except HostUnreachableError as error:
        if present is None or choice.source is not None:
            say(f"[bold red]{architecture.name} was not exported:[/] {escape(str(error))}")
            return False
        _warn_untrained(architecture, str(error))
        return True
    except (WeightsError, ExportError, GateError, OSError) as error:
        say(f"[bold red]{architecture.name} was not exported:[/] {escape(str(error))}")
        return False
    _report(architecture, done, root)
    return True


def _is_imported(name: str, root: Path) -> bool:
    """Whether that artifact was made from somebody's ONNX file, so that there is nothing to export."""
    try:
        return read_manifest(root, name)[1].family == IMPORTED
    except ArtifactError:
        return False


def _present(architecture: Architecture, root: Path) -> WeightRecord | None:
    """The weights of the newest artifact, or None where there is none that can be read."""
    try:
        return read_manifest(root, architecture.name)[1].weights
    except NotExportedError:
        return None
    except ArtifactError as error:
        say(f"[yellow]{escape(str(error))}[/]")
        return None


def _report(architecture: Architecture, done: "Exported", root: Path) -> None:
    if done.unreachable is not None:
        _warn_untrained(architecture, done.unreachable)
    report(done.manifest, done.version, root)


def _warn_untrained(architecture: Architecture, reason: str) -> None:
    console.print(
        Panel(
            f"{escape(reason)}\n\n{architecture.name} has UNTRAINED weights: it runs, but its answers mean nothing. "
            "Every reply says so. With a connection, run\n\n"
            f"    topfive export {architecture.name} --weights pretrained",
            title="untrained weights",
            border_style="bold yellow",
        )
    )


def _with_progress(architecture: Architecture, choice: "WeightsChoice", root: Path) -> "Exported":
    from export.parity_gate import candidates
    from export.pipeline import STEPS, export

    with Bars(architecture.name, STEPS + len(candidates())) as bars:
        return export(architecture, choice, root, bars)
