"""The servers that `benchmarks.overhead` measures, and how they report what they have spent.

Two kinds are this server over an engine that computes nothing, with and without decoding. The third is the libraries
under it and nothing else: uvicorn and grpc.aio, whose handlers take a photo and answer.
"""

import asyncio
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
import grpc
import numpy as np
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from benchmarks.command import artifacts_option, model_option
from models.artifact.artifact import Artifact
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server
from service.common.settings import Settings
from service.common.types import EngineInfo, Probabilities, Rows, Samples
from service.engines.base import CPU, Engine
from service.engines.selection.opening import OpenedEngine
from service.inference.local import LocalDataPlane
from service.preprocessing.decode import DecodedImage, decode_image
from service.preprocessing.preprocessor import Preprocessor
from service.preprocessing.transforms import make_samples
from service.server.app import Service
from service.server.data_plane import build_data_plane

P = ParamSpec("P")
T = TypeVar("T")

_REPLY = b'{"predictions": [%s]}' % b", ".join([b'{"class_id": 340, "probability": 0.2}'] * 5)
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_REPLY))]


class OverheadServer(StrEnum):
    """A kind of server."""

    NULL = "null decoder"  # every photo becomes the same black samples
    REAL = "real decoder"
    BARE = "libraries alone"


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds so far of the process, of its event loop's thread, and of decoding and resizing.

    `switches` counts how often the process gave up the processor.
    """

    cpu_s: float
    loop_s: float
    decode_s: float
    switches: int


async def read_spent(port: int) -> Spent:
    """What the server that reports on `port` has spent so far."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return Spent(**json.loads(await reader.read()))
    finally:
        writer.close()


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


class CpuTimer:
    """Sums the CPU time of the threads that call what it wraps."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def timed(self, step: Callable[P, T]) -> Callable[P, T]:
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            began = time.thread_time()
            try:
                return step(*args, **kwargs)
            finally:
                self.spent_s += time.thread_time() - began

        return run


class BareServicer(ClassifierServicer):
    """Answers every call with the same five classes."""

    async def Classify(  # noqa: N802 - the name in the contract
        self, request: pb.ClassifyRequest, _context: "grpc.aio.ServicerContext[pb.ClassifyRequest, pb.ClassifyReply]"
    ) -> pb.ClassifyReply:
        assert request.image
        return pb.ClassifyReply(predictions=[pb.Prediction(class_id=340, probability=0.2)] * 5)


async def bare_app(_scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every HTTP request with the same five classes."""
    while (await receive()).get("more_body"):
        continue
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _REPLY})


async def serve_bare(port: int) -> None:
    """Serve REST on `port`, gRPC on the next one, and what was spent on the one after it, until SIGTERM."""
    rpc = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 << 20),))
    add_ClassifierServicer_to_server(BareServicer(), rpc)  # type: ignore[no-untyped-call]
    rpc.add_insecure_port(f"127.0.0.1:{port + 1}")
    await rpc.start()
    rest = uvicorn.Server(uvicorn.Config(bare_app, port=port, lifespan="off", log_config=None, access_log=False))
    await asyncio.gather(rest.serve(), _serve_spent(port + 2, CpuTimer()))


async def serve_null(port: int, kind: OverheadServer, model: str, artifacts: Path) -> None:
    """Serve topfive over a NullEngine, on the same three ports as `serve_bare`, until SIGTERM."""
    settings = Settings(models=(model,), artifacts=artifacts, port=port, grpc_port=port + 1, cpus=2)
    data_plane, timer = build_data_plane(settings, open_engine=_open), CpuTimer()
    pixel = DecodedImage.from_pixels(np.zeros((1, 1, 3), dtype=np.uint8))
    real = kind is OverheadServer.REAL
    preprocessor = Preprocessor(
        settings.limits,
        threads=2,
        clock=data_plane.clock,
        decode=timer.timed(decode_image) if real else lambda _data, _limits, _needed: pixel,
        crop=timer.timed(make_samples) if real else lambda spec, _image, count: _black(count, spec.crop),
    )
    timed = LocalDataPlane(data_plane.repository, preprocessor, clock=data_plane.clock, metrics=data_plane.metrics)
    service = Service(settings, timed)
    await service.start()
    await service.load()
    await _serve_spent(port + 2, timer)


def _open(artifact: Artifact) -> OpenedEngine:
    return OpenedEngine(NullEngine(artifact.manifest.classes))


@cache
def _black(count: int, crop: int) -> Samples:
    return np.zeros((count, crop, crop, 3), dtype=np.uint8)


async def _serve_spent(port: int, decoding: CpuTimer) -> None:
    def report(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = Spent(time.process_time(), time.thread_time(), decoding.spent_s, used.ru_nvcsw + used.ru_nivcsw)
        writer.write(json.dumps(asdict(spent)).encode())
        writer.close()

    async with await asyncio.start_server(report, "127.0.0.1", port) as server:
        await server.serve_forever()


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--kind", type=click.Choice([one.value for one in OverheadServer]), required=True)
@model_option
@artifacts_option
def main(port: int, kind: str, model: str, artifacts: Path) -> None:
    """Serve for `benchmarks.overhead`."""
    bare = kind == OverheadServer.BARE
    serving = serve_bare(port) if bare else serve_null(port, OverheadServer(kind), model, artifacts)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving)


if __name__ == "__main__":
    main()
