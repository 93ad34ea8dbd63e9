"""The command `topfive export`."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from export.common import ExportError
from export.engines import build_one, engine_options, read_request
from export.terminal import (
    ProgressBar,
    artifacts_option,
    print_artifact,
    print_line,
    sigterm_as_interrupt,
    verbose_option,
)
from export.weights_choice import WeightsChoice
from models.artifact.artifact import (
    IMPORTED,
    PACKAGED,
    ArtifactError,
    NotExportedError,
    WeightRecord,
    WeightSource,
    read_manifest,
    root_of,
)
from models.catalog import CATALOG, Architecture, UnknownModelError
from models.weights.hosts import unreachable


def _check_weights(_context: click.Context, _option: click.Parameter, value: str) -> str:
    """Find a missing file before PyTorch is imported."""
    if value not in ("auto", *WeightSource) and not Path(value).is_file():
        kind = "a folder" if Path(value).is_dir() else "not there"
        raise click.BadParameter(f"{value} is {kind}; give auto, pretrained, untrained or a file")
    return value


@click.command("export")
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--weights",
    envvar="TOPFIVE_WEIGHTS",
    default="auto",
    show_default=True,
    show_envvar=True,
    metavar="auto|pretrained|untrained|FILE",
    callback=_check_weights,
    help="pretrained is the published file; untrained is seeded noise; FILE is a .pth or .safetensors state "
    "dict, or an .onnx file of the same architecture; auto is pretrained, or untrained where the download host "
    "does not answer",
)
@artifacts_option
@click.option(
    "--weights-mirror",
    envvar="TOPFIVE_WEIGHTS_MIRROR",
    show_envvar=True,
    metavar="URL",
    show_default="the publisher's own host",
    help="Folder to download published files from",
)
@click.option(
    "--missing",
    is_flag=True,
    envvar="TOPFIVE_MISSING",
    show_default="off",
    show_envvar=True,
    help="Export only missing models; one with untrained weights counts as missing unless you ask for untrained",
)
@verbose_option
@engine_options
def export_command(
    names: tuple[str, ...],
    weights: str,
    artifacts: Path,
    weights_mirror: str | None,
    missing: bool,
    verbose: bool,
    **engine: Any,
) -> None:
    """Export MODEL... for serving, and check each against PyTorch.

    With --engine, an existing artifact with the right weights is kept, and the engine is built into it.
    """
    request = read_request(engine)
    wanted = [name.strip() for name in ",".join(names).split(",") if name.strip()]
    if not wanted:
        raise click.UsageError("name at least one model")
    imported = [name for name in dict.fromkeys(wanted) if request is not None and _is_imported(name, artifacts)]
    try:
        catalogued = [CATALOG[name] for name in wanted if name not in imported]
    except UnknownModelError as error:
        raise click.UsageError(str(error)) from error
    architectures = list({one.name: one for one in catalogued}.values())
    choice = WeightsChoice.parse(weights, weights_mirror)
    with sigterm_as_interrupt():
        failed = []
        for one in architectures:
            # an engine is built into an artifact of the folder, never into one that comes with topfive
            kept_in = artifacts if request is not None else root_of(artifacts, one.name) if missing else None
            if not _export_one(one, choice, artifacts, kept_in, verbose):
                failed.append(one.name)
        if request is not None:
            present = [*imported, *(one.name for one in architectures if one.name not in failed)]
            failed += [name for name in present if not build_one(name, artifacts, request, missing)]
    sys.exit(1 if failed else 0)


def _export_one(
    architecture: Architecture, choice: WeightsChoice, root: Path, kept_in: Path | None, verbose: bool
) -> bool:
    """Export one model and print the result. Returns False if it fails.

    An artifact in the folder `kept_in` with the right weights is kept.
    """
    auto = choice.source is None
    present = None if kept_in is None else _present_weights(architecture, kept_in)
    if present is not None:
        if choice.satisfied_by(present, architecture):
            where = "comes with topfive" if kept_in == PACKAGED else "exported already"
            print_line(f"{architecture.name}: {where}, {present.source} weights")
            return True
        if auto and (reason := unreachable(architecture, choice.mirror)):
            _warn_untrained(architecture, reason)
            return True
        choice = choice.without_fallback()  # untrained weights would add nothing
    try:
        from export.pipeline import export
        from models.weights.weights import HostUnreachableError, WeightsError
    except ImportError as error:
        raise click.ClickException(
            f"{error.name} is not installed; exporting needs: pip install '.[export]'"
        ) from error
    try:
        with ProgressBar(architecture.name) as bar:
            done = export(architecture, choice, root, bar)
    except (WeightsError, ExportError, ArtifactError, OSError) as error:
        if present is not None and auto and isinstance(error, HostUnreachableError):
            _warn_untrained(architecture, str(error))
            return True
        print_line(f"[bold red]{architecture.name} was not exported:[/] {escape(str(error))}")
        return False
    if done.fallback_reason is not None:
        _warn_untrained(architecture, done.fallback_reason)
    print_artifact(done.manifest, done.version, root, verbose)
    return True


def _is_imported(name: str, root: Path) -> bool:
    try:
        return read_manifest(root, name)[1].family == IMPORTED
    except ArtifactError:
        return False


def _present_weights(architecture: Architecture, root: Path) -> WeightRecord | None:
    """The weights of the newest artifact, or None if none can be read."""
    try:
        return read_manifest(root, architecture.name)[1].weights
    except NotExportedError:
        return None
    except ArtifactError as error:
        print_line(f"[yellow]{escape(str(error))}[/]")
        return None


def _warn_untrained(architecture: Architecture, reason: str) -> None:
    print_line(
        f"[bold yellow]{architecture.name} has UNTRAINED weights:[/] {escape(reason)}. It runs, but its answers mean "
        "nothing, and every reply says so. With a connection, run: "
        f"topfive export {architecture.name} --weights pretrained"
    )
