"""A real server over an engine that does nothing; `benchmarks.spending` tells what it has spent."""

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import uvloop

from benchmarks.spending import tell
from models.artifact.artifact import Artifact
from models.catalog import InputSpec
from service.common.settings import Settings
from service.common.types import EngineInfo, ImageLimits, Probabilities, Rows, Samples
from service.engines.base import CPU, Engine
from service.engines.selection.opening import Opened
from service.inference.local import LocalDataPlane
from service.preprocessing import decode, transforms
from service.preprocessing.decode import Picture
from service.preprocessing.preprocessor import Decoder
from service.server.app import Core, Service

X = TypeVar("X")


class Decoding(StrEnum):
    """What becomes of the bytes of a photo: decoded and resized as ever, or passed over for constant samples."""

    REAL = "real"
    NULL = "null"


class NullEngine(Engine):
    """Gives the same probabilities for whatever it gets, at once."""

    slots = 2
    max_batch = 8
    device = CPU
    memory_bytes = 0

    def __init__(self, classes: int) -> None:
        falling = np.linspace(1.0, 0.0, classes, dtype=np.float32)
        self._rows = np.tile(falling / falling.sum(), (self.max_batch, 1))

    def run(self, rows: Rows) -> Probabilities:
        """A constant row for each of `rows`."""
        return self._rows[: len(rows)]

    def describe(self) -> EngineInfo:
        """Nothing that computes."""
        return EngineInfo("null", "1", CPU, "f32")

    def close(self) -> None:
        """Nothing to let go of."""


class TimedDecoding:
    """Decodes and cuts as the service does; `spent_s` is the CPU time of the threads that did it."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def read(self, data: bytes, limits: ImageLimits, enough: int | None) -> Picture:
        """The photo."""
        return self._timed(lambda: decode.picture(data, limits, enough))

    def cut(self, spec: InputSpec, picture: Picture, count: int) -> Samples:
        """Its crops."""
        return self._timed(lambda: transforms.crops(spec, picture, count))

    def _timed(self, work: Callable[[], X]) -> X:
        began = time.thread_time()
        try:
            return work()
        finally:
            self.spent_s += time.thread_time() - began


class NullDecoding:
    """Gives black samples for any bytes."""

    spent_s = 0.0

    def __init__(self) -> None:
        self._picture = Picture.of(np.zeros((1, 1, 3), dtype=np.uint8))
        self._samples: dict[tuple[int, int], Samples] = {}

    def read(self, _data: bytes, _limits: ImageLimits, _enough: int | None) -> Picture:
        """One pixel."""
        return self._picture

    def cut(self, spec: InputSpec, _picture: Picture, count: int) -> Samples:
        """The same crops each time."""
        return self._samples.setdefault((spec.crop, count), np.zeros((count, spec.crop, spec.crop, 3), dtype=np.uint8))


_DECODINGS: dict[Decoding, type[TimedDecoding] | type[NullDecoding]] = {
    Decoding.REAL: TimedDecoding,
    Decoding.NULL: NullDecoding,
}


async def serve(decoding: Decoding, model: str, artifacts: Path) -> None:
    """Serve `model` on free ports, which the first line tells, until the standard input ends."""
    settings = Settings(models=(model,), artifacts=artifacts, port=0, grpc_port=0, cpus=2)
    core = Core(settings, opener=_open)
    spent = _DECODINGS[decoding]()
    decoder = Decoder(settings.limits, threads=2, clock=core.clock, read=spent.read, cut=spent.cut)
    core.data_plane = LocalDataPlane(core.repository, decoder, clock=core.clock, metrics=core.metrics)
    service = Service(core)
    await service.start()
    await service.load()
    await tell({"port": service.rest.port, "grpc_port": service.rpc.port}, lambda: spent.spent_s)
    await service.stop(asyncio.Event())


def _open(artifact: Artifact) -> Opened:
    return Opened(NullEngine(artifact.manifest.classes))


@click.command()
@click.option("--decoding", type=click.Choice([one.value for one in Decoding]), required=True)
@click.option("--model", required=True)
@click.option("--artifacts", type=click.Path(path_type=Path, exists=True), required=True)
def main(decoding: str, model: str, artifacts: Path) -> None:
    """Serve for `benchmarks.overhead`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Decoding(decoding), model, artifacts))


if __name__ == "__main__":
    main()
