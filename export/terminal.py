"""The terminal of `topfive export` and `topfive import`: a shared option, progress bars, and results."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

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
    size = f"shorter side {spec.resize}, centre {spec.crop}, {spec.interpolation}"
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


class ProgressBars:
    """Shows the progress of one export: a bar of steps, and one for a download or a phase of a step."""

    def __init__(self, name: str, steps: int) -> None:
        self._name = name
        self._download: TaskID | None = None
        self._phase: TaskID | None = None
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
        )
        self._steps = self._progress.add_task(name, total=steps)
        self._started = False

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end_phase()
        if error[0] is None:
            self._progress.update(self._steps, advance=1, description=f"{self._name}: done")
        self._progress.stop()

    def step(self, what: str) -> None:
        self._end_phase()
        self._progress.update(self._steps, advance=int(self._started), description=f"{self._name}: {what}")
        self._started = True

    def download(self, done: int, total: int) -> None:
        if self._download is None:
            self._download = self._progress.add_task(f"{self._name}: download", total=None)
        megabytes = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
        self._progress.update(
            self._download, completed=done, total=total or None, description=f"{self._name}: {megabytes}"
        )

    def phase(self, what: str, done: int, total: int) -> None:
        if self._phase is None:
            self._phase = self._progress.add_task(what, total=total)
        self._progress.update(self._phase, completed=done, total=total, description=f"{self._name}: {what}")

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._progress.remove_task(self._phase)
            self._phase = None
