"""Images per second of the engine alone over batch sizes: `python -m benchmarks.batches`."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from benchmarks.command import artifacts_option, model_option
from export.gate_images import random_pixels
from models.artifact.artifact import load
from service.common.cpus import cpu_quota
from service.common.types import Batch, Probabilities, Rows
from service.engines.base import Engine
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions

SIZES = (1, 2, 4, 8, 16, 32)

RunBatch = Callable[[Engine, Rows], Probabilities]
"""Runs a batch on an engine."""


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


def batch_rates(
    engines: Mapping[str, tuple[Engine, RunBatch]], images: Batch, sizes: Sequence[int], rounds: int, seconds: float
) -> dict[str, dict[int, float]]:
    """Images per second of each engine by the batch sizes that it takes; every slot is busy.

    They are medians over rounds in which engines and sizes take turns.
    """
    rates: dict[str, dict[int, list[float]]] = {
        name: {size: [] for size in sizes if size <= engine.max_batch} for name, (engine, _) in engines.items()
    }
    for _ in range(rounds):
        for name, (engine, run) in engines.items():
            for size, found in rates[name].items():
                found.append(size * per_second(partial(run, engine, images[:size]), engine.slots, seconds))
    return {name: {size: statistics.median(found) for size, found in each.items()} for name, each in rates.items()}


def measure_batches(model: str, artifacts: Path, sizes: Sequence[int], rounds: int, seconds: float) -> dict[int, float]:
    """Images per second of a model's default engine by batch size."""
    artifact = load(artifacts, model)
    options = replace(EngineOptions(cpus=cpu_quota()), max_batch=max(sizes))
    engine = open_engine(artifact, options).engine
    images = random_pixels(artifact.manifest.input, max(sizes))
    with closing(engine):
        for size in sizes:
            if size <= engine.max_batch:
                engine.run(images[:size])  # what is made at a first batch of a size
        return batch_rates({model: (engine, lambda one, rows: one.run(rows))}, images, sizes, rounds, seconds)[model]


@click.command()
@model_option
@artifacts_option
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", default=0.7, show_default=True, help="Of each measurement")
def main(model: str, artifacts: Path, rounds: int, seconds: float) -> None:
    """Print images per second by batch size as JSON."""
    click.echo(json.dumps(measure_batches(model, artifacts, SIZES, rounds, seconds)))


if __name__ == "__main__":
    main()
