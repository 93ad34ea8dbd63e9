"""Images per second of every engine that an NVIDIA card can run, by batch size: `make bench-gpu`.

What is measured on this card is written to a page with the card, the driver and the versions; nothing else is.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from benchmarks.throughput import per_second
from export.gate_images import random_pixels
from models.artifact.artifact import Artifact, ArtifactError, load
from models.artifact.engine_plan import EnginePlan, Flavour, read_plans
from service.common.gpus import Card, Cards, cards, driver_version
from service.common.packages import package_version
from service.common.settings import Settings
from service.common.types import Batch, Probabilities, Rows, Runtime
from service.engines.base import Engine, EngineUnavailableError
from service.engines.tensorrt.engine import TensorRtEngine
from service.engines.tensorrt.slot import Launch

_ROUNDS = 5
_PACKAGES = (
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "onnxruntime-gpu",
    "torch",
    "cuda-bindings",
)


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure: how it is called, how it is opened, and what runs a batch of it."""

    name: str
    open: Callable[[], Engine]
    run: Callable[[Engine, Rows], Probabilities] = lambda engine, rows: engine.run(rows)


@dataclass(frozen=True, slots=True)
class Figures:
    """Images per second of one subject by batch size, medians over rounds; or why there are none."""

    name: str
    slots: int
    rates: dict[int, float]
    reason: str = ""


def plan_subjects(artifact: Artifact, plan: EnginePlan, card: Card, max_batch: int, cache: Path) -> list[Subject]:
    """A plan with CUDA graphs, with two batches at once, and, where they are not RTX's own, without graphs."""
    record = plan.record

    def subject(words: str, slots: int, launch: Launch = Launch.GRAPH) -> Subject:
        def opened() -> Engine:
            return TensorRtEngine(
                plan, artifact, card=card, slots=slots, max_batch=max_batch, cache=cache, launch=launch
            )

        return Subject(f"{record.flavour} {record.version} {record.precision}, {words}", opened)

    found = [subject("one slot", 1), subject("two slots", 2)]
    if record.flavour is Flavour.TENSORRT:
        found.append(subject("one slot, no CUDA graphs", 1, Launch.CALLS))
    return found


def subjects(artifact: Artifact, card: Card, max_batch: int, cache: Path) -> list[Subject]:
    """Everything that might run `artifact` on `card`; whether it does shows when it is opened."""
    found = [
        subject
        for plan in read_plans(artifact.folder)[0]
        if str(card.target) in plan.record.targets
        for subject in plan_subjects(artifact, plan, card, max_batch, cache)
    ]

    def onnxruntime() -> Engine:
        from service.engines.onnxruntime import OnnxRuntimeEngine

        runtime = Runtime.ONNXRUNTIME_CUDA
        return OnnxRuntimeEngine(artifact, runtime, slots=1, threads=1, max_batch=max_batch, card=card)

    def torch() -> Engine:
        from service.engines.torch import TorchEngine

        return TorchEngine(artifact, threads=1, max_batch=max_batch, card=card)

    def in_half(engine: Engine, rows: Rows) -> Probabilities:
        import torch

        with torch.autocast("cuda", torch.float16):
            return engine.run(rows)

    return [
        *found,
        Subject("onnxruntime CUDA f32", onnxruntime),
        Subject("PyTorch eager f32", torch),
        Subject("PyTorch eager fp16 (autocast)", torch, in_half),
    ]


def measure(found: Sequence[Subject], images: Batch, sizes: Sequence[int], seconds: float) -> list[Figures]:
    """The figures of each subject, in rounds that take turns; one that does not open has its reason instead."""
    with ExitStack() as opened:
        engines: dict[str, Engine] = {}
        reasons: dict[str, str] = {}
        for subject in found:
            try:
                engine = subject.open()
                opened.callback(engine.close)
                subject.run(engine, images[: min(engine.max_batch, len(images))])
                engines[subject.name] = engine
            except Exception as error:  # a runtime's own exceptions have no common base
                reasons[subject.name] = " ".join(str(error).split())
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(_ROUNDS):
            for subject in found:
                if (chosen := engines.get(subject.name)) is None:
                    continue
                for size in sizes:
                    if size <= chosen.max_batch:
                        work = partial(subject.run, chosen, images[:size])
                        rate = size * per_second(work, chosen.slots, seconds)
                        rates.setdefault((subject.name, size), []).append(rate)
        medians = {key: statistics.median(values) for key, values in rates.items()}
    return [
        Figures(
            name := subject.name,
            engines[name].slots if name in engines else 0,
            {size: medians[name, size] for size in sizes if (name, size) in medians},
            reasons.get(name, ""),
        )
        for subject in found
    ]


def table(figures: Sequence[Figures], sizes: Sequence[int]) -> list[str]:
    """Images per second and, in brackets, milliseconds per batch; then what was not measured and why."""
    measured = [one for one in figures if not one.reason]
    lines = [
        f"| engine | {' | '.join(f'batch {size}' for size in sizes)} |",
        f"|---|{'---:|' * len(sizes)}",
    ]
    for one in measured:
        cells = [
            f"{one.rates[size]:.0f} ({1000 * one.slots * size / one.rates[size]:.2f})" if size in one.rates else "-"
            for size in sizes
        ]
        lines.append(f"| {one.name} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- not measured: {one.name}: {one.reason}" for one in figures if one.reason]
    return lines


def versions() -> list[str]:
    """The packages that are installed of those that count here."""
    return [f"{package} {found}" for package in _PACKAGES if (found := package_version(package)) is not None]


def page(card: Card, driver: str | None, seconds: float, tables: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The page: on what, with what and how it was measured, and a table for each model."""
    lines = [
        "# Measured on a card",
        "",
        "Written by `make bench-gpu`.",
        "",
        f"- card: {card.name} ({card.target}, {card.memory_bytes / (1 << 30):.0f} GiB), driver {driver or 'unknown'}",
        f"- versions: {', '.join(versions())}",
        f"- images per second, and in brackets milliseconds per batch, copies to the card and back among them: medians "
        f"of {_ROUNDS} rounds of {seconds:g} s in which the engines take turns",
    ]
    for model, rows in tables:
        lines += ["", f"## {model}", "", *rows]
    return "\n".join(lines).rstrip() + "\n"


def on_card(found: Cards, models: Sequence[str], artifacts: Path, sizes: Sequence[int], seconds: float) -> str:
    """The page of the first card. Raises EngineUnavailableError where there is none."""
    if not found.found:
        raise EngineUnavailableError(found.reason)
    card, tables = found.found[0], []
    for name in models:
        artifact = load(artifacts, name)
        images = random_pixels(artifact.manifest.input, max(sizes))
        chosen = subjects(artifact, card, max(sizes), Settings().cache_folder)
        tables.append((name, table(measure(chosen, images, sizes, seconds), sizes)))
    return page(card, driver_version(), seconds, tables)


@click.command()
@click.option("--model", "models", multiple=True, default=("googlenet",), show_default=True)
@click.option(
    "--artifacts", type=click.Path(path_type=Path), default="artifacts", envvar="TOPFIVE_ARTIFACTS", show_default=True
)
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
        written = on_card(cards(), models, artifacts, sizes, seconds)
    except (EngineUnavailableError, ArtifactError) as error:
        click.echo(f"nothing is measured or written: {error}", err=True)
        sys.exit(1)
    output.write_text(written, encoding="utf-8")
    click.echo(written)


if __name__ == "__main__":
    main()
