"""The limits of the machine: what decoder and engine do without a server."""

import io
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from PIL import Image

from benchmarks.decoding import ours
from benchmarks.peers.common import cut
from benchmarks.requests import bench_photo
from models.artifact.artifact import Artifact
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
    """Images per second of all threads, and the median milliseconds of one thread alone."""

    per_second: float
    alone_ms: float
    engine: str


MeasureLimit = Callable[[Limit, float], LimitFigures]
"""Measures a limit for so many seconds."""


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


class LimitMeter:
    """Measures a limit for a model, in as many threads as are fastest together. Its engine stays open.

    Raises EngineUnavailableError.
    """

    def __init__(self, limit: Limit, artifact: Artifact) -> None:
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
        self._work = work
        self._threads = max(rates, key=lambda threads: rates[threads])
        self._engine = f"{info.runtime} {info.precision}"

    def measure(self, seconds: float) -> LimitFigures:
        """Run one thread alone for a quarter of the time, and all threads for the rest."""
        alone_s: list[float] = []
        end = time.monotonic() + seconds / 4
        while not alone_s or time.monotonic() < end:
            began = time.monotonic()
            self._work()
            alone_s.append(time.monotonic() - began)
        rate = per_second(self._work, self._threads, seconds * 3 / 4)
        return LimitFigures(rate, 1000 * statistics.median(alone_s), self._engine)
