"""What `topfive export` and `topfive import` show on the terminal: progress, and what was made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from models.artifact.artifact import Manifest, ParityReport
from models.artifact.engine_plan import EnginePlan, PlanRecord

console = Console(stderr=True)


def say(text: str) -> None:
    """A line of rich's markup, never broken."""
    console.print(text, highlight=False, soft_wrap=True)


def report(manifest: Manifest, version: int, root: Path) -> None:
    """Where the artifact is, what its input is, and how each engine compared."""
    folder = root / manifest.name / str(version)
    say(f"[bold]{manifest.name}[/] is in {escape(str(folder))}, {manifest.weights.source} weights")
    spec = manifest.input
    size = f"shorter side {spec.resize}, centre {spec.crop}, {spec.interpolation}"
    say(f"  input: {size}, {spec.channels}, mean {spec.mean}, std {spec.std}")
    for parity in manifest.parity:
        say(_judged(parity, "not used"))


def report_engines(plans: Sequence[EnginePlan], parity: ParityReport | None) -> None:
    """Where engines are, for which cards and batches, and how their graph compared with PyTorch on the CPU."""
    for plan in plans:
        say(f"  {escape(str(plan.path))}")
        say(f"  {escape(plan_line(plan.record))}")
        for warning in plan.record.warnings:
            say(f"  [yellow]{plan.record.flavour}:[/] {escape(warning)}")
    if parity is not None:
        say(_judged(parity))


def _judged(parity: ParityReport, otherwise: str = "not passed") -> str:
    from service.engines.selection.parity import figures

    return f"  {'[green]passed[/]' if parity.passed else f'[yellow]{otherwise}[/]'} {figures(parity)}"


def plan_line(record: PlanRecord) -> str:
    """An engine in a line."""
    sizes = record.profile
    where = f"on {record.card}" if record.card else "without a card"
    return (
        f"{record.flavour} {record.version} for {', '.join(record.targets)} in {record.precision}: "
        f"batches {sizes.smallest} to {sizes.largest}, best {sizes.best}; {record.size_bytes / 1e6:.1f} MB, "
        f"built in {record.build_s:.1f} s {where}"
    )


class Bars:
    """The progress of one export on the terminal: a bar of steps, and one of bytes while weights come in."""

    def __init__(self, name: str, steps: int) -> None:
        self._name = name
        self._download: TaskID | None = None
        self._phase: TaskID | None = None
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
        )
        self._steps = self._progress.add_task(name, total=steps)
        self._begun = False

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end_phase()
        if error[0] is None:
            self._progress.update(self._steps, advance=1, description=f"{self._name}: done")
        self._progress.stop()

    def step(self, what: str) -> None:
        """A new step began, so the one before has ended."""
        self._end_phase()
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

    def phase(self, what: str, done: int, total: int) -> None:
        """Show how far a phase of the present step is."""
        if self._phase is None:
            self._phase = self._progress.add_task(what, total=total)
        self._progress.update(self._phase, completed=done, total=total, description=f"{self._name}: {what}")

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._progress.remove_task(self._phase)
            self._phase = None
