"""The limits of the machine: what decoder and engine do without a server."""

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.batches import per_second
from benchmarks.decoding import ours
from benchmarks.peers.common import cut
from benchmarks.requests import bench_photo
from models.artifact.artifact import Artifact, load
from service.common.cpus import cpu_quota
from service.common.types import Decode, Precision, Runtime
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions

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


MeasureLimit = Callable[[Limit, float], LimitFigures]
"""Measures a limit for so many seconds."""


@dataclass(frozen=True, slots=True)
class RepeatedWork:
    """What one thread repeats, and how many threads are fastest together."""

    work: Callable[[], object]
    threads: int
    engine: str


class LimitMeter:
    """Measures the limits for a model. It opens each engine once and keeps it open.

    Raises ArtifactError and EngineUnavailableError.
    """

    def __init__(self, model: str, artifacts: Path) -> None:
        self._artifact = load(artifacts, model)
        self._opened: dict[Limit, RepeatedWork] = {}

    def measure(self, limit: Limit, seconds: float) -> LimitFigures:
        """Run one thread alone for a quarter of the time, and all threads for the rest."""
        if limit not in self._opened:
            self._opened[limit] = _open(limit, self._artifact)
        opened = self._opened[limit]
        alone_s: list[float] = []
        end = time.monotonic() + seconds / 4
        while not alone_s or time.monotonic() < end:
            began = time.monotonic()
            opened.work()
            alone_s.append(time.monotonic() - began)
        before, began = time.process_time(), time.monotonic()
        rate = per_second(opened.work, opened.threads, seconds * 3 / 4)
        cpu_ms = 1000 * (time.process_time() - before) / (rate * (time.monotonic() - began))
        return LimitFigures(rate, cpu_ms, 1000 * statistics.median(alone_s), opened.threads, opened.engine)


def _open(limit: Limit, artifact: Artifact) -> RepeatedWork:
    options = EngineOptions(cpus=cpu_quota())
    if limit is not Limit.OURS:
        options = EngineOptions(Runtime.ONNXRUNTIME, Precision.F32, cpus=cpu_quota())
    engine = open_engine(artifact, options).engine
    spec, photo = artifact.manifest.input, bench_photo()

    def work() -> None:
        sample = cut(Image.open(io.BytesIO(photo))) if limit is Limit.PEERS else ours(photo, Decode.AUTO, spec)
        engine.run(sample[np.newaxis])

    work()
    rates = {threads: per_second(work, threads, _TRY_S) for threads in (engine.slots, 2 * engine.slots)}
    info = engine.describe()
    return RepeatedWork(work, max(rates, key=lambda threads: rates[threads]), f"{info.runtime} {info.precision}")
