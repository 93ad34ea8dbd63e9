"""This server for real, over an engine that computes nothing."""

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import uvloop

from benchmarks.command import artifacts_option, model_option
from benchmarks.spent import serve_spent
from models.artifact.artifact import Artifact
from models.catalog import InputSpec
from service.common.settings import Settings
from service.common.types import EngineInfo, ImageLimits, Probabilities, Rows, Samples
from service.engines.base import CPU, Engine
from service.engines.selection.opening import Opened
from service.inference.local import LocalDataPlane
from service.preprocessing import decode, transforms
from service.preprocessing.decode import DecodedImage
from service.preprocessing.preprocessor import Preprocessor
from service.server.app import Core, Service

T = TypeVar("T")


class Decoding(StrEnum):
    """Whether photos are decoded and resized, or every photo becomes the same black samples."""

    REAL = "real"
    NULL = "null"


class NullEngine(Engine):
    """Gives the same probabilities for every sample, at once."""

    slots = 2
    max_batch = 8
    device = CPU
    memory_bytes = 0

    def __init__(self, classes: int) -> None:
        falling = np.linspace(1.0, 0.0, classes, dtype=np.float32)
        self._rows = np.tile(falling / falling.sum(), (self.max_batch, 1))

    def run(self, rows: Rows) -> Probabilities:
        return self._rows[: len(rows)]

    def describe(self) -> EngineInfo:
        return EngineInfo("null", "1", CPU, "f32")

    def close(self) -> None:
        """Nothing was opened."""


class TimedDecoding:
    """Decodes and crops as the service does; `spent_s` is the CPU time of the threads that did it."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def read(self, data: bytes, limits: ImageLimits, enough: int | None) -> DecodedImage:
        return self._timed(lambda: decode.decode_image(data, limits, enough))

    def cut(self, spec: InputSpec, picture: DecodedImage, count: int) -> Samples:
        return self._timed(lambda: transforms.make_samples(spec, picture, count))

    def _timed(self, work: Callable[[], T]) -> T:
        began = time.thread_time()
        try:
            return work()
        finally:
            self.spent_s += time.thread_time() - began


class NullDecoding:
    """Gives black samples for any bytes."""

    spent_s = 0.0

    def __init__(self) -> None:
        self._picture = DecodedImage.from_pixels(np.zeros((1, 1, 3), dtype=np.uint8))
        self._samples: dict[tuple[int, int], Samples] = {}

    def read(self, _data: bytes, _limits: ImageLimits, _enough: int | None) -> DecodedImage:
        return self._picture

    def cut(self, spec: InputSpec, _picture: DecodedImage, count: int) -> Samples:
        return self._samples.setdefault((spec.crop, count), np.zeros((count, spec.crop, spec.crop, 3), dtype=np.uint8))


async def serve(port: int, decoding: Decoding, model: str, artifacts: Path) -> None:
    """Serve REST on `port`, gRPC on the next one, and what was spent on the one after it, until SIGTERM."""
    settings = Settings(models=(model,), artifacts=artifacts, port=port, grpc_port=port + 1, cpus=2)
    core = Core(settings, opener=_open)
    spent = TimedDecoding() if decoding is Decoding.REAL else NullDecoding()
    decoder = Preprocessor(settings.limits, threads=2, clock=core.clock, decode=spent.read, crop=spent.cut)
    core.data_plane = LocalDataPlane(core.repository, decoder, clock=core.clock, metrics=core.metrics)
    service = Service(core)
    await service.start()
    await service.load()
    await serve_spent(port + 2, lambda: spent.spent_s)


def _open(artifact: Artifact) -> Opened:
    return Opened(NullEngine(artifact.manifest.classes))


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--decoding", type=click.Choice([one.value for one in Decoding]), required=True)
@model_option
@artifacts_option
def main(port: int, decoding: str, model: str, artifacts: Path) -> None:
    """Serve for `benchmarks.overhead`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(port, Decoding(decoding), model, artifacts))


if __name__ == "__main__":
    main()
