"""The terminal of `topfive export` and `topfive import`: a shared option, a progress bar, and results."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from models.artifact.artifact import Manifest, ParityReport
from models.artifact.engine_plan import EnginePlan, PlanRecord

console = Console(stderr=True)

artifacts_option = click.option(
    "--artifacts",
    envvar="TOPFIVE_ARTIFACTS",
    default="artifacts",
    show_default=True,
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of exported models",
)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raises KeyboardInterrupt at SIGTERM, so that temporary files are deleted as after Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_line(text: str) -> None:
    """Print a line of rich's markup without line breaks."""
    console.print(text, highlight=False, soft_wrap=True)


def print_artifact(manifest: Manifest, version: int, root: Path) -> None:
    """Print the folder of an artifact, its input, and how each engine's answers compare with the original's."""
    folder = root / manifest.name / str(version)
    print_line(f"[bold]{manifest.name}[/] is in {escape(str(folder))}, {manifest.weights.source} weights")
    spec = manifest.input
    size = f"{spec.fit} {spec.resize}, centre {spec.crop}, {spec.interpolation}"
    print_line(f"  input: {size}, {spec.channels}, mean {spec.mean}, std {spec.std}")
    for parity in manifest.parity:
        print_line(_parity_line(parity, "not used"))


def print_engines(plans: Sequence[EnginePlan], parity: ParityReport | None) -> None:
    """Print each plan with its GPUs and batch sizes, and how their graph compares with PyTorch on the CPU."""
    for plan in plans:
        print_line(f"  {escape(str(plan.path))}")
        print_line(f"  {escape(plan_line(plan.record))}")
        for warning in plan.record.warnings:
            print_line(f"  [yellow]{plan.record.flavour}:[/] {escape(warning)}")
    if parity is not None:
        print_line(_parity_line(parity, "not passed"))


def _parity_line(parity: ParityReport, otherwise: str) -> str:
    from service.engines.selection.parity import figures

    return f"  {'[green]passed[/]' if parity.passed else f'[yellow]{otherwise}[/]'} {figures(parity)}"


def plan_line(record: PlanRecord) -> str:
    """One line with the runtime, GPUs, precision, batch sizes and size of a plan."""
    sizes = record.profile
    where = f"on {record.card}" if record.card else "without a GPU"
    return (
        f"{record.flavour} {record.version} for {', '.join(record.targets)} in {record.precision}: "
        f"batches {sizes.smallest} to {sizes.largest}, best {sizes.best}; {record.size_bytes / 1e6:.1f} MB, "
        f"built in {record.build_s:.1f} s {where}"
    )


class ProgressBar:
    """Shows the current step of one export, and how much of it is done where that is known."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
        )
        self._task = self._progress.add_task(name, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.phase("done", 1, 1)
        self._progress.stop()

    def step(self, what: str) -> None:
        self.phase(what, 0, 0)

    def phase(self, what: str, done: int, total: int) -> None:
        description = f"{self._name}: {what}"
        self._progress.update(self._task, description=description, completed=done, total=total or None)
