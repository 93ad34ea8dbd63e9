"""The servers that `benchmarks.overhead` measures.

One is this server over a decoder and an engine that compute nothing. The other is the libraries under it and nothing
else: uvicorn and grpc.aio, whose handlers take a photo and answer.
"""

import asyncio
from enum import StrEnum
from functools import cache
from pathlib import Path

import click
import grpc
import numpy as np
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from models.artifact.artifact import Artifact
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server
from service.common.settings import Settings
from service.common.types import EngineInfo, Probabilities, Rows, Samples
from service.engines.base import CPU, Engine
from service.engines.selection.opening import OpenedEngine
from service.inference.local import LocalDataPlane
from service.preprocessing.decode import DecodedImage
from service.preprocessing.preprocessor import Preprocessor
from service.server.app import Service
from service.server.data_plane import build_data_plane

_REPLY = b'{"predictions": [%s]}' % b", ".join([b'{"class_id": 340, "probability": 0.2}'] * 5)
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_REPLY))]


class OverheadServer(StrEnum):
    """A kind of server."""

    NULL = "null decoder"  # every photo becomes the same black samples
    BARE = "libraries alone"


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
    """Serve REST on `port` and gRPC on the next one, until SIGTERM."""
    rpc = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 << 20),))
    add_ClassifierServicer_to_server(BareServicer(), rpc)  # type: ignore[no-untyped-call]
    rpc.add_insecure_port(f"127.0.0.1:{port + 1}")
    await rpc.start()
    await uvicorn.Server(uvicorn.Config(bare_app, port=port, lifespan="off", log_config=None, access_log=False)).serve()


async def serve_null(port: int, model: str, artifacts: Path) -> None:
    """Serve topfive without decoder and engine, on the same ports as `serve_bare`, until SIGTERM."""
    settings = Settings(models=(model,), artifacts=artifacts, port=port, grpc_port=port + 1, cpus=2)
    data_plane = build_data_plane(settings, open_engine=_open)
    pixel = DecodedImage.from_pixels(np.zeros((1, 1, 3), dtype=np.uint8))
    preprocessor = Preprocessor(
        settings.limits,
        threads=2,
        clock=data_plane.clock,
        decode=lambda _data, _limits, _needed: pixel,
        crop=lambda spec, _image, count: _black(count, spec.crop),
    )
    without = LocalDataPlane(data_plane.repository, preprocessor, clock=data_plane.clock, metrics=data_plane.metrics)
    service = Service(settings, without)
    await service.start()
    await service.load()
    await asyncio.Event().wait()


def _open(artifact: Artifact) -> OpenedEngine:
    return OpenedEngine(NullEngine(artifact.manifest.classes))


@cache
def _black(count: int, crop: int) -> Samples:
    return np.zeros((count, crop, crop, 3), dtype=np.uint8)


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--kind", type=click.Choice([one.value for one in OverheadServer]), required=True)
@click.option("--model", required=True)
@click.option("--artifacts", type=click.Path(path_type=Path), required=True)
def main(port: int, kind: str, model: str, artifacts: Path) -> None:
    """Serve for `benchmarks.overhead`."""
    serving = serve_bare(port) if kind == OverheadServer.BARE else serve_null(port, model, artifacts)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving)


if __name__ == "__main__":
    main()
