"""The servers that `benchmarks.overhead` measures.

One is this server over a decoder and an engine that compute nothing. Another is the libraries under it and nothing
else: uvicorn and grpc.aio, whose handlers take a photo and answer with a few bytes. The third is these libraries with
the steps that no server of photos can leave out: it reads the form, goes to a thread to decode and to one to infer, and
encodes a whole answer.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import cache, partial
from pathlib import Path

import click
import grpc
import numpy as np
import uvicorn
import uvloop
from multipart import MultipartSegment, PushMultipartParser, parse_options_header
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

_FEW_BYTES = b'{"predictions": [%s]}' % b", ".join([b'{"class_id": 340, "probability": 0.2}'] * 5)
_ANSWER = {
    "request_id": "0123456789abcdef0123456789abcdef",
    "predictions": [
        {"rank": rank, "class_id": 340, "wnid": "n02391049", "label": "zebra", "probability": 0.1234567}
        for rank in range(1, 6)
    ],
    "model": {
        "name": "googlenet", "version": 1, "family": "inception", "parameters": 6_624_904, "macs": 1_498_376_192,
        "input_size": 224, "weights": "pretrained", "acc1": 69.778, "acc5": 89.53, "acc_dataset": "ImageNet-1k val",
        "latency_ms": {"count": 1000, "p50": 11.234, "p90": 12.345, "p99": 13.456},
    },
    "engine": {"runtime": "null", "version": "1", "device": "cpu", "precision": "f32"},
    "preprocessing": {"decoder": "Pillow 13.0.0", "scale": "1/1", "recipe": "resize 256 bilinear, crop 224"},
    "timing_ms": {"decode": 1.234, "queue": 0.123, "inference": 5.678, "total": 7.891},
    "batch_size": 1,
}  # fmt: skip
_HOPS = [ThreadPoolExecutor(2) for _ in ("decode", "infer")]

Answer = Callable[[Scope, list[bytes]], Awaitable[bytes]]


class OverheadServer(StrEnum):
    """A kind of server."""

    NULL = "null decoder"  # every photo becomes the same black samples
    BARE = "libraries alone"
    SAME_STEPS = "libraries, same steps"


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


class SameStepsServicer(ClassifierServicer):
    """Takes the image to two threads, and makes a whole answer."""

    async def Classify(  # noqa: N802 - the name in the contract
        self, request: pb.ClassifyRequest, _context: "grpc.aio.ServicerContext[pb.ClassifyRequest, pb.ClassifyReply]"
    ) -> pb.ClassifyReply:
        await _to_threads(request.image)
        return pb.ClassifyReply(**_ANSWER)  # type: ignore[arg-type]


async def _few_bytes(_scope: Scope, _body: list[bytes]) -> bytes:
    return _FEW_BYTES


async def _same_steps(scope: Scope, body: list[bytes]) -> bytes:
    kind, parameters = parse_options_header(dict(scope["headers"])[b"content-type"].decode())
    if kind == "multipart/form-data":
        parser = PushMultipartParser(parameters["boundary"])
        events = [event for chunk in body for event in parser.parse(chunk)]
        parser.close()
        body = [event for event in events if event is not None and not isinstance(event, MultipartSegment)]
    await _to_threads(b"".join(body))
    return json.dumps(_ANSWER).encode()


async def _to_threads(image: bytes) -> None:
    for threads in _HOPS:
        assert await asyncio.get_running_loop().run_in_executor(threads, len, image)


async def _app(answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every HTTP request."""
    body, more = [], True
    while more:
        message = await receive()
        body.append(message["body"])
        more = message["more_body"]
    reply = await answer(scope, body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


async def serve_libraries(port: int, answer: Answer, servicer: ClassifierServicer) -> None:
    """Serve REST on `port` and gRPC on the next one, until SIGTERM."""
    rpc = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 << 20),))
    add_ClassifierServicer_to_server(servicer, rpc)  # type: ignore[no-untyped-call]
    rpc.add_insecure_port(f"127.0.0.1:{port + 1}")
    await rpc.start()
    app = partial(_app, answer)
    config = uvicorn.Config(app, port=port, interface="asgi3", lifespan="off", log_config=None, access_log=False)
    await uvicorn.Server(config).serve()


async def serve_null(port: int, model: str, artifacts: Path) -> None:
    """Serve topfive without decoder and engine, on the same ports as `serve_libraries`, until SIGTERM."""
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
    serving = {
        OverheadServer.NULL: lambda: serve_null(port, model, artifacts),
        OverheadServer.BARE: lambda: serve_libraries(port, _few_bytes, BareServicer()),
        OverheadServer.SAME_STEPS: lambda: serve_libraries(port, _same_steps, SameStepsServicer()),
    }[OverheadServer(kind)]()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving)


if __name__ == "__main__":
    main()
