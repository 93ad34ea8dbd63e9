"""Images per second of every engine that an NVIDIA card can run, by batch size: `make bench-gpu`.

What is measured on this card is written to a page with the card, the driver and the versions; nothing else is.
"""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click

from benchmarks.command import artifacts_option
from benchmarks.figures import Measurement, missing
from benchmarks.limit import per_second
from benchmarks.machine import installed_versions
from benchmarks.report import BenchmarkReport, page, write
from export.gate_images import random_pixels
from models.artifact.artifact import Artifact, ArtifactError, load
from models.artifact.engine_plan import EnginePlan, Flavour, read_plans
from service.common.gpus import Card, Cards, cards, driver_version
from service.common.settings import Settings
from service.common.types import Batch, Probabilities, Rows, Runtime
from service.engines.base import Engine, EngineUnavailableError
from service.engines.tensorrt.engine import TensorRtEngine
from service.engines.tensorrt.slot import Launch

_ROUNDS = 5
_PACKAGES = ("tensorrt", "tensorrt-rtx-cu13-bindings", "onnxruntime-gpu", "torch", "cuda-bindings")


@dataclass(frozen=True, slots=True)
class GpuEngine:
    """An engine to measure: its name in the table, how it is opened, and what runs a batch of it."""

    name: str
    open: Callable[[], Engine]
    run: Callable[[Engine, Rows], Probabilities] = lambda engine, rows: engine.run(rows)


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """Images per second of one engine by batch size, medians over rounds; or the reason why there are none."""

    name: str
    slots: int = 0
    rates: dict[int, float] = field(default_factory=dict)
    reason: str = ""


def plan_engines(artifact: Artifact, plan: EnginePlan, card: Card, max_batch: int, cache: Path) -> list[GpuEngine]:
    """A plan with one slot, with two, and without CUDA graphs, which TensorRT-RTX makes by itself."""
    record = plan.record

    def engine(words: str, slots: int, launch: Launch = Launch.GRAPH) -> GpuEngine:
        opened = partial(
            TensorRtEngine, plan, artifact, card=card, slots=slots, max_batch=max_batch, cache=cache, launch=launch
        )
        return GpuEngine(f"{record.flavour} {record.version} {record.precision}, {words}", opened)

    found = [engine("one slot", 1), engine("two slots", 2)]
    if record.flavour is Flavour.TENSORRT:
        found.append(engine("one slot, no CUDA graphs", 1, Launch.CALLS))
    return found


def gpu_engines(artifact: Artifact, card: Card, max_batch: int, cache: Path) -> list[GpuEngine]:
    """Everything that might run `artifact` on `card`; opening shows whether it does."""
    found = [
        engine
        for plan in read_plans(artifact.folder)[0]
        if str(card.target) in plan.record.targets
        for engine in plan_engines(artifact, plan, card, max_batch, cache)
    ]

    def onnxruntime() -> Engine:
        from service.engines.onnxruntime import OnnxRuntimeEngine

        runtime = Runtime.ONNXRUNTIME_CUDA
        return OnnxRuntimeEngine(artifact, runtime, slots=1, threads=1, max_batch=max_batch, card=card)

    def torch() -> Engine:
        from service.engines.torch import TorchEngine

        return TorchEngine(artifact, threads=1, max_batch=max_batch, card=card)

    def run_in_fp16(engine: Engine, rows: Rows) -> Probabilities:
        import torch

        with torch.autocast("cuda", torch.float16):
            return engine.run(rows)

    return [
        *found,
        GpuEngine("onnxruntime CUDA f32", onnxruntime),
        GpuEngine("PyTorch eager f32", torch),
        GpuEngine("PyTorch eager fp16 (autocast)", torch, run_in_fp16),
    ]


def batch_rates(
    engines: Mapping[str, tuple[GpuEngine, Engine]], images: Batch, sizes: Sequence[int], seconds: float
) -> dict[str, dict[int, float]]:
    """Images per second of each engine by the batch sizes that it takes; every slot is busy.

    They are medians over rounds in which engines and sizes take turns.
    """
    rates: dict[str, dict[int, list[float]]] = {
        name: {size: [] for size in sizes if size <= engine.max_batch} for name, (_, engine) in engines.items()
    }
    for _ in range(_ROUNDS):
        for name, (one, engine) in engines.items():
            for size, found in rates[name].items():
                found.append(size * per_second(partial(one.run, engine, images[:size]), engine.slots, seconds))
    return {name: {size: statistics.median(found) for size, found in each.items()} for name, each in rates.items()}


def measure_engines(
    found: Sequence[GpuEngine], images: Batch, sizes: Sequence[int], seconds: float
) -> list[GpuFigures]:
    """The figures of each engine, in rounds that take turns; one that does not open has its reason instead."""
    with ExitStack() as stack:
        opened: dict[str, Engine] = {}
        reasons: dict[str, str] = {}
        for one in found:
            try:
                engine = one.open()
                stack.callback(engine.close)
                one.run(engine, images[: min(engine.max_batch, len(images))])
                opened[one.name] = engine
            except Exception as error:  # a runtime's own exceptions have no common base
                reasons[one.name] = " ".join(str(error).split())
        engines = {one.name: (one, opened[one.name]) for one in found if one.name in opened}
        rates = batch_rates(engines, images, sizes, seconds)
        return [
            GpuFigures(one.name, reason=reasons[one.name])
            if one.name in reasons
            else GpuFigures(one.name, opened[one.name].slots, rates[one.name])
            for one in found
        ]


def engines_measured(model: str, figures: Sequence[GpuFigures], sizes: Sequence[int]) -> Measurement:
    """Images per second of a model and, in brackets, milliseconds per batch; a row for each engine that has none."""
    table = [
        [
            one.name,
            *(
                f"{one.rates[size]:.0f} ({1000 * one.slots * size / one.rates[size]:.2f})" if size in one.rates else "-"
                for size in sizes
            ),
        ]
        for one in figures
        if not one.reason
    ]
    heads = ("engine", *(f"batch {size}" for size in sizes))
    rows = [missing(f"{model}: {one.name}", one.reason) for one in figures if one.reason]
    title = f"Medians of {_ROUNDS} rounds in which the engines take turns"
    return Measurement(model, title, heads, table, figures, rows)


def measure_card(
    found: Cards, models: Sequence[str], artifacts: Path, sizes: Sequence[int], seconds: float
) -> BenchmarkReport:
    """Measure on the first card. Raises EngineUnavailableError where there is none."""
    if not found.found:
        raise EngineUnavailableError(found.reason)
    card = found.found[0]
    memory, driver = f"{card.memory_bytes / (1 << 30):.0f} GiB", driver_version() or "unknown"
    report = BenchmarkReport(
        machine=[
            ("command", "make bench-gpu"),
            ("card", f"{card.name} ({card.target}, {memory}), driver {driver}"),
            ("versions", ", ".join(installed_versions(_PACKAGES))),
        ],
        how="Images per second and, in brackets, milliseconds per batch, copies to the card and back among them.",
    )
    for name in models:
        artifact = load(artifacts, name)
        images = random_pixels(artifact.manifest.input, max(sizes))
        engines = gpu_engines(artifact, card, max(sizes), Settings().cache_folder)
        report.add(engines_measured(name, measure_engines(engines, images, sizes, seconds), sizes))
    return report


@click.command()
@click.option("--model", "models", multiple=True, default=("googlenet",), show_default=True)
@artifacts_option
@click.option("--batch", "batches", default="1,2,4,8,16,32", show_default=True, help="Batch sizes")
@click.option("--seconds", default=1.0, show_default=True, help="Length of each measurement")
@click.option("--output", type=click.Path(path_type=Path), default="benchmarks/gpu.md", show_default=True)
def main(models: Sequence[str], artifacts: Path, batches: str, seconds: float, output: Path) -> None:
    """Measure exported models on the first NVIDIA card, and write what was measured."""
    try:
        sizes = sorted({int(size) for size in batches.split(",")})
    except ValueError as error:
        raise click.BadParameter("write batch sizes as 1,8,32", param_hint="--batch") from error
    if sizes[0] < 1:
        raise click.BadParameter("a batch holds at least 1 image", param_hint="--batch")
    try:
        report = measure_card(cards(), models, artifacts, sizes, seconds)
    except (EngineUnavailableError, ArtifactError) as error:
        click.echo(f"nothing is measured or written: {error}", err=True)
        sys.exit(1)
    write(report, output)
    click.echo(page(report))


if __name__ == "__main__":
    main()
