"""Images per second of the engine alone over batch sizes: `python -m benchmarks.batches`."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from benchmarks.throughput import per_second
from export.gate_images import random_pixels
from models.artifact.artifact import load
from service.common.cpus import cpu_quota
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions


def measure(model: str, artifacts: Path, sizes: Sequence[int], rounds: int, seconds: float) -> dict[int, float]:
    """Images per second by batch size, medians over rounds in which the sizes take turns; every slot is busy."""
    artifact = load(artifacts, model)
    options = replace(EngineOptions(cpus=cpu_quota()), max_batch=max(sizes))
    engine = open_engine(artifact, options).engine
    images = random_pixels(artifact.manifest.input, max(sizes))
    rates: dict[int, list[float]] = {size: [] for size in sizes if size <= engine.max_batch}
    for size in rates:
        engine.run(images[:size])
    for _ in range(rounds):
        for size, found in rates.items():
            found.append(size * per_second(partial(engine.run, images[:size]), engine.slots, seconds))
    return {size: statistics.median(found) for size, found in rates.items()}


@click.command()
@click.option("--model", default="googlenet", show_default=True)
@click.option("--artifacts", type=click.Path(path_type=Path, exists=True), default=Path("artifacts"))
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", default=0.7, show_default=True, help="Of each measurement")
def main(model: str, artifacts: Path, rounds: int, seconds: float) -> None:
    """Print images per second by batch size as JSON."""
    click.echo(json.dumps(measure(model, artifacts, (1, 2, 4, 8, 16, 32), rounds, seconds)))


if __name__ == "__main__":
    main()
