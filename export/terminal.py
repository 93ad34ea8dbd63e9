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
from models.artifact.quantized import QuantizedGraph

console = Console(stderr=True)

_RUNTIMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "onnxruntime-cuda": "ONNX Runtime CUDA"}

verbose_option = click.option(
    "--verbose",
    "-v",
    is_flag=True,
    envvar="TOPFIVE_VERBOSE",
    show_default="off",
    show_envvar=True,
    help="Print the input of the network and all figures of the comparison",
)
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
    """Print a line of rich's markup. In a terminal it breaks between words only; one with a longer word stays whole."""
    whole = not console.is_terminal or max(map(len, text.split())) > console.width
    console.print(text, highlight=False, soft_wrap=whole)


def print_artifact(manifest: Manifest, version: int, root: Path, verbose: bool) -> None:
    """Print the folder of an artifact and the engines that may serve it; with `verbose` its input and all figures."""
    from service.engines.selection.parity import figures, missed

    folder = root / manifest.name / str(version)
    print_line(f"[bold]{manifest.name}[/] is in {escape(str(folder))}, {manifest.weights.source} weights")
    passed: dict[str, list[str]] = {}
    for report in manifest.parity:
        if report.passed:
            passed.setdefault(_RUNTIMES.get(report.runtime, report.runtime), []).append(report.precision)
    words = ", ".join(f"{name} {' and '.join(found)}" for name, found in passed.items())
    print_line(f"  [green]passed[/] in {words}")
    for report in manifest.parity:
        if not report.passed:
            name = _RUNTIMES.get(report.runtime, report.runtime)
            print_line(f"  [yellow]not used[/] in {name} {report.precision}: {missed(report)}")
    if verbose:
        spec = manifest.input
        size = f"{spec.fit} {spec.resize}, centre {spec.crop}, {spec.interpolation}"
        print_line(f"  input: {size}, {spec.channels}, mean {spec.mean}, std {spec.std}")
        for report in manifest.parity:
            print_line(f"  {figures(report)}")


def print_engines(plans: Sequence[EnginePlan], parity: ParityReport | None) -> None:
    """Print each plan with its GPUs and batch sizes, and how their graph compares with PyTorch on the CPU."""
    for plan in plans:
        print_line(f"  {escape(str(plan.path))}")
        print_line(f"  {escape(plan_line(plan.record))}")
        for warning in plan.record.warnings:
            print_line(f"  [yellow]{plan.record.flavour}:[/] {escape(warning)}")
    if parity is not None:
        from service.engines.selection.parity import figures

        print_line(f"  {'[green]passed[/]' if parity.passed else '[yellow]not passed[/]'} {figures(parity)}")


def print_quantized(name: str, done: QuantizedGraph) -> None:
    """Print the int8 graph: how it was made, how it compares with f32, how fast it is, and how to serve it."""
    from service.engines.selection.parity import figures

    record = done.record
    print_line(f"[bold]{name}[/] has an int8 graph, {escape(str(done.path()))}")
    kept = f"; {len(record.floating_point)} layers in floating point" if record.floating_point else ""
    print_line(f"  NNCF {record.nncf_version}, {record.preset} preset, {record.photos} photos{escape(kept)}")
    print_line(f"  {'[green]passed[/]' if record.parity.passed else '[yellow]not passed[/]'} {figures(record.parity)}")
    speeds = ", ".join(f"{one.precision} {one.images_per_s:.0f}" for one in record.speeds)
    print_line(f"  images/s on this machine: {speeds}")
    print_line("  serve it with --precision int8; `topfive doctor` says what keeps auto from it")


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
    """Shows the current step of one export, and how much of it is done where that is known; cleared at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(name, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def step(self, what: str) -> None:
        self.phase(what, 0, 0)

    def phase(self, what: str, done: int, total: int) -> None:
        description = f"{self._name}: {what}"
        self._progress.update(self._task, description=description, completed=done, total=total or None)
