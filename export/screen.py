"""What `topfive export` and `topfive import` show on the terminal: progress, and what was made."""

from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from models.artifact import Manifest

console = Console(stderr=True)


def say(text: str) -> None:
    """A line of rich's markup, never broken."""
    console.print(text, highlight=False, soft_wrap=True)


def report(manifest: Manifest, version: int, root: Path) -> None:
    """Where the artifact is, what its input is, and how each engine compared."""
    from service.engines.parity import figures

    folder = root / manifest.name / str(version)
    say(f"[bold]{manifest.name}[/] is in {escape(str(folder))}, {manifest.weights.source} weights")
    spec = manifest.input
    size = f"shorter side {spec.resize}, centre {spec.crop}, {spec.interpolation}"
    say(f"  input: {size}, {spec.channels}, mean {spec.mean}, std {spec.std}")
    for parity in manifest.parity:
        mark = "[green]passed[/]" if parity.passed else "[yellow]not used[/]"
        say(f"  {mark} {figures(parity)}")


class Bars:
    """The progress of one export on the terminal: a bar of steps, and one of bytes while weights come in."""

    def __init__(self, name: str, steps: int) -> None:
        self._name = name
        self._download: TaskID | None = None
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
        )
        self._steps = self._progress.add_task(name, total=steps)
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
