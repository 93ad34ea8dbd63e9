"""Images per second of every engine that an NVIDIA card can run, by batch size: `make bench-gpu`.

What is measured on this card is written to a page with the card, the driver and the versions; nothing else is.
"""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import click

from benchmarks.machine import installed_versions
from benchmarks.report import BenchmarkReport, Measurement, ReportRow, page
from export.gate_images import random_pixels
from models.artifact.artifact import Artifact, ArtifactError, load
from service.common.gpus import Card, cards, driver_version
from service.common.types import Runtime
from service.engines.base import Engine
from service.engines.selection.opening import open_engine
from service.engines.selection.select import ON_CARDS, EngineOptions
from service.engines.torch import TorchEngine

SIZES = (1, 4, 8, 32)
_PACKAGES = ("tensorrt", "tensorrt-rtx-cu13-bindings", "onnxruntime-gpu", "torch", "cuda-bindings")

OpenCardEngine = Callable[[Artifact, Runtime, Card], Engine]


def open_on_card(artifact: Artifact, runtime: Runtime, card: Card) -> Engine:
    """The engine of a runtime on a card, for batches of all `SIZES`."""
    if runtime is Runtime.TORCH:
        return TorchEngine(artifact, threads=1, max_batch=max(SIZES), card=card)
    return open_engine(artifact, EngineOptions(runtime, max_batch=max(SIZES), card=card)).engine


def per_second(work: Callable[[], object], threads: int, seconds: float) -> float:
    """How often so many threads together do `work` in a second; each does it at least once."""
    end = time.monotonic() + seconds

    def loop() -> int:
        work()
        done = 1
        while time.monotonic() < end:
            work()
            done += 1
        return done

    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(lambda _: loop(), range(threads)))
    return total / (time.monotonic() - began)


def measure_card(artifact: Artifact, card: Card, seconds: float, opened: OpenCardEngine = open_on_card) -> Measurement:
    """Images per second of a model with every slot busy; a row for each engine that does not run."""
    images, table, rows = random_pixels(artifact.manifest.input, max(SIZES)), [], []
    for runtime in (*ON_CARDS, Runtime.TORCH):
        try:
            with closing(opened(artifact, runtime, card)) as engine:
                sizes = [size for size in SIZES if size <= engine.max_batch]
                rates = [size * per_second(partial(engine.run, images[:size]), engine.slots, seconds) for size in sizes]
                shown = [f"{rate:.0f}" for rate in rates] + ["-"] * (len(SIZES) - len(sizes))
                table.append([f"{runtime} {engine.describe().precision}", str(engine.slots), *shown])
        except Exception as error:  # a runtime's own exceptions have no common base
            rows.append(ReportRow(f"{artifact.manifest.name}: {runtime}", note=" ".join(str(error).split())))
    heads = ("images per second, copies among them", "slots", *(f"batch {size}" for size in SIZES))
    return Measurement(artifact.manifest.name, heads, table, rows)


@click.command()
@click.option("--model", "models", multiple=True, default=("googlenet",), show_default=True)
@click.option("--artifacts", type=click.Path(path_type=Path), default="artifacts", envvar="TOPFIVE_ARTIFACTS")
@click.option("--seconds", default=1.0, show_default=True, help="Length of each measurement")
@click.option("--output", type=click.Path(path_type=Path), default="benchmarks/gpu.md", show_default=True)
def main(models: Sequence[str], artifacts: Path, seconds: float, output: Path) -> None:
    """Measure exported models on the first NVIDIA card, and write what was measured."""
    here = cards()
    if not here.found:
        sys.exit(f"nothing is measured or written: {here.reason}")
    card = here.found[0]
    memory, driver = f"{card.memory_bytes / (1 << 30):.0f} GiB", driver_version() or "unknown"
    facts = [
        ("card", f"{card.name} ({card.target}, {memory}), driver {driver}"),
        ("versions", ", ".join(installed_versions(_PACKAGES))),
    ]
    report = BenchmarkReport(facts, "Written by make bench-gpu.")
    try:
        report.measurements += [measure_card(load(artifacts, name), card, seconds) for name in models]
    except ArtifactError as error:
        raise click.UsageError(str(error)) from error
    output.write_text(page(report), encoding="utf-8")
    click.echo(page(report))


if __name__ == "__main__":
    main()
