"""The command `topfive export`."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from models.artifact import ArtifactError, NotExportedError, WeightRecord, read_manifest
from models.catalog import CATALOG, Architecture, UnknownModelError

if TYPE_CHECKING:
    from export.pipeline import Exported, WeightsChoice

_console = Console(stderr=True)


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
    "dict; auto is pretrained, or untrained where the download host cannot be reached",
)
@click.option(
    "--artifacts",
    envvar="TOPFIVE_ARTIFACTS",
    default="artifacts",
    show_default=True,
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of exported models",
)
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
def export_command(
    names: tuple[str, ...], weights: str, artifacts: Path, weights_mirror: str | None, missing: bool
) -> None:
    """Export MODEL... for serving, checked against PyTorch."""
    wanted = [name.strip() for name in ",".join(names).split(",") if name.strip()]
    if not wanted:
        raise click.UsageError("name at least one model")
    try:
        architectures = list({CATALOG[name].name: CATALOG[name] for name in wanted}.values())
    except UnknownModelError as error:
        raise click.UsageError(str(error)) from error
    try:
        from export.pipeline import WeightsChoice
    except ImportError as error:
        raise click.ClickException(
            f"{error.name} is not installed; exporting needs: pip install '.[export]'"
        ) from error
    choice = WeightsChoice.parse(weights, weights_mirror)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing half done is left behind
    try:
        failed = [one.name for one in architectures if not _export_one(one, choice, artifacts, missing)]
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(1 if failed else 0)


def _export_one(architecture: Architecture, choice: "WeightsChoice", root: Path, missing: bool) -> bool:
    """Export one model and say so; False where it failed, with the reason on the screen."""
    from export.onnx_file import ExportError
    from export.parity import GateError
    from models.weights import HostUnreachableError, WeightsError

    present = _present(architecture, root) if missing else None
    if present is not None and choice.satisfied_by(present, architecture):
        _say(f"{architecture.name}: exported already, {present.source} weights")
        return True
    try:
        # with something untrained already there, auto has only one thing left to try
        done = _with_progress(architecture, choice.strictly() if present else choice, root)
    except HostUnreachableError as error:
        if present is None or choice.source is not None:
            _say(f"[bold red]{architecture.name} was not exported:[/] {escape(str(error))}")
            return False
        _warn_untrained(architecture, str(error))
        return True
    except (WeightsError, ExportError, GateError, OSError) as error:
        _say(f"[bold red]{architecture.name} was not exported:[/] {escape(str(error))}")
        return False
    _report(architecture, done, root)
    return True


def _present(architecture: Architecture, root: Path) -> WeightRecord | None:
    """The weights of the newest artifact, or None where there is none that can be read."""
    try:
        return read_manifest(root, architecture.name)[1].weights
    except NotExportedError:
        return None
    except ArtifactError as error:
        _say(f"[yellow]{escape(str(error))}[/]")
        return None


def _report(architecture: Architecture, done: "Exported", root: Path) -> None:
    from export.parity import figures

    if done.unreachable is not None:
        _warn_untrained(architecture, done.unreachable)
    folder = root / architecture.name / str(done.version)
    _say(f"[bold]{architecture.name}[/] is in {escape(str(folder))}, {done.manifest.weights.source} weights")
    spec = done.manifest.input
    size = f"shorter side {spec.resize}, centre {spec.crop}, {spec.interpolation}"
    _say(f"  input: {size}, mean {spec.mean}, std {spec.std}")
    for report in done.manifest.parity:
        mark = "[green]passed[/]" if report.passed else "[yellow]not used[/]"
        _say(f"  {mark} {figures(report)}")


def _warn_untrained(architecture: Architecture, reason: str) -> None:
    _console.print(
        Panel(
            f"{escape(reason)}\n\n{architecture.name} has UNTRAINED weights: it runs, but its answers mean nothing. "
            "Every reply says so. With a connection, run\n\n"
            f"    topfive export {architecture.name} --weights pretrained",
            title="untrained weights",
            border_style="bold yellow",
        )
    )


def _say(text: str) -> None:
    _console.print(text, highlight=False, soft_wrap=True)


def _with_progress(architecture: Architecture, choice: "WeightsChoice", root: Path) -> "Exported":
    from export.pipeline import export

    with _Bars(architecture.name) as bars:
        return export(architecture, choice, root, bars)


class _Bars:
    """The progress of one export on the terminal: a bar of steps, and one of bytes while weights come in."""

    def __init__(self, name: str) -> None:
        from export.parity import candidates
        from export.pipeline import STEPS

        self._name = name
        self._download: TaskID | None = None
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=_console
        )
        self._steps = self._progress.add_task(name, total=STEPS + len(candidates()))
        self._begun = False

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._progress.update(self._steps, advance=1, description=f"{self._name}: done")
        self._progress.stop()

    def step(self, what: str) -> None:
        """A new step began, so the one before has ended."""
        self._progress.update(self._steps, advance=int(self._begun), description=f"{self._name}: {what}")
        self._begun = True

    def download(self, done: int, total: int) -> None:
        """Show how much of the weights is here."""
        if self._download is None:
            self._download = self._progress.add_task(f"{self._name}: download", total=None)
        megabytes = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
        self._progress.update(
            self._download, completed=done, total=total or None, description=f"{self._name}: {megabytes}"
        )
