"""The limits of the machine: what decoder and engine do without a server, in a process that sleeps in between."""

import io
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.batches import per_second
from benchmarks.peers.common import cut
from benchmarks.requests import bench_photo
from models.artifact.artifact import load
from service.common.cpus import cpu_quota
from service.common.types import Decode, ImageLimits, Precision, Runtime, Sample
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions
from service.preprocessing import decode, transforms

_TRY_S = 0.5


class Limit(StrEnum):
    """What runs without a server."""

    OURS = "our decoder and the default engine"
    OURS_F32 = "our decoder and ONNX Runtime f32"
    PEERS = "Pillow and ONNX Runtime f32"


@dataclass(frozen=True, slots=True)
class LimitFigures:
    """Images per second of all threads, CPU milliseconds per image, and the median milliseconds of one thread alone."""

    per_second: float
    cpu_ms: float
    alone_ms: float
    threads: int
    engine: str


class LimitError(Exception):
    """A limit cannot be measured."""


MeasureLimit = Callable[[Limit, float], LimitFigures]
"""Measures a limit for so many seconds. Raises LimitError."""


@contextmanager
def limits(model: str, artifacts: Path) -> Iterator[MeasureLimit]:
    """Start the process. It opens each engine once and keeps it open until the block ends."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:

        def measure(limit: Limit, seconds: float) -> LimitFigures:
            try:
                return process.submit(_measure, limit, model, artifacts, seconds).result()
            except BrokenProcessPool as error:
                raise LimitError("the process that measures the limits has ended") from error

        yield measure


def _measure(limit: Limit, model: str, artifacts: Path, seconds: float) -> LimitFigures:
    """Run one thread alone for a quarter of the time, and all threads for the rest."""
    try:
        work, threads, engine = _opened(limit, model, artifacts)
    except Exception as error:  # not every exception can be sent to the other process
        raise LimitError(f"{limit} cannot be measured: {error}") from error
    alone_s: list[float] = []
    end = time.monotonic() + seconds / 4
    while not alone_s or time.monotonic() < end:
        began = time.monotonic()
        work()
        alone_s.append(time.monotonic() - began)
    before, began = time.process_time(), time.monotonic()
    rate = per_second(work, threads, seconds * 3 / 4)
    cpu_ms = 1000 * (time.process_time() - before) / (rate * (time.monotonic() - began))
    return LimitFigures(rate, cpu_ms, 1000 * statistics.median(alone_s), threads, engine)


@cache
def _opened(limit: Limit, model: str, artifacts: Path) -> tuple[Callable[[], object], int, str]:
    """What one thread repeats, with how many threads that is fastest (one or two for each slot), and the engine."""
    artifact = load(artifacts, model)
    options = EngineOptions(cpus=cpu_quota())
    if limit is not Limit.OURS:
        options = EngineOptions(Runtime.ONNXRUNTIME, Precision.F32, cpus=cpu_quota())
    engine = open_engine(artifact, options).engine
    spec, image_limits, photo = artifact.manifest.input, ImageLimits(), bench_photo()
    enough = transforms.needed_side(spec, Decode.AUTO)

    def sample() -> Sample:
        if limit is Limit.PEERS:
            return cut(Image.open(io.BytesIO(photo)))
        ours: Sample = transforms.make_samples(spec, decode.decode_image(photo, image_limits, enough), 1)[0]
        return ours

    def work() -> None:
        engine.run(sample()[np.newaxis])

    work()
    rates = {threads: per_second(work, threads, _TRY_S) for threads in (engine.slots, 2 * engine.slots)}
    info = engine.describe()
    return work, max(rates, key=lambda threads: rates[threads]), f"{info.runtime} {info.precision}"
