"""The memory of refused requests: nothing keeps their bytes until the garbage collector comes by."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import grpc
import pytest
from starlette.types import ASGIApp, Message

from proto.inference import grpc_service_pb2 as v2
from proto.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.types import ImageLimits, RestAccess
from service.common.upload_budget import UploadBudget
from service.rest.app import create_app
from service.rest.image_request import ImageReader
from service.rpc.errors import Context
from service.rpc.in_flight import RequestsInFlight
from service.rpc.servicer import Servicer
from tests.conftest import noise, png
from tests.serving import Running

pytestmark = pytest.mark.anyio

SIZE = 4 << 20
LIMITS = ImageLimits(max_bytes=8 << 20, max_pixels=1_000_000)
REFUSED = {
    "no image": bytes(SIZE),
    "damaged": png()[:60] + bytes(SIZE),
    "too many bytes": bytes(9 << 20),
    "too many pixels": png(size=(1001, 1000)) + bytes(SIZE),
    "cut off": b"\xff\xd8\xff" + noise(1000, 1000).tobytes(),
}


class Call:
    """The context of a gRPC call."""

    def time_remaining(self) -> float:
        return 30.0


async def infer(running: Running, data: bytes, model: str) -> None:
    """One call of the inference protocol, which must be refused."""
    tensor = v2.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    content = len(data).to_bytes(4, "little") + data
    request = v2.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[content])
    stub: Any = GRPCInferenceServiceStub(running.channel)  # type: ignore[no-untyped-call]
    assert await stub.ModelInfer(request).code() is not grpc.StatusCode.OK


async def rest(app: ASGIApp, path: str, data: bytes, *headers: tuple[bytes, bytes]) -> None:
    """One request without a connection, which must be refused."""
    url, _, query = path.partition("?")
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": url, "query_string": query.encode()}
    scope |= {
        "headers": [(b"content-type", b"image/png"), (b"host", b"a"), *headers],
        "scheme": "http",
        "server": ("a", 80),
    }
    statuses: list[int] = []

    sent = iter([{"type": "http.request", "body": data, "more_body": False}])

    async def receive() -> Message:
        for message in sent:
            return message
        return await asyncio.Future[Message]()  # the client waits for its answer

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    await app(scope, receive, send)
    assert statuses[0] >= 400


async def stream(servicer: Servicer, data: bytes, model: str) -> None:
    """One stream without a connection, whose image must be refused."""

    async def requests() -> AsyncIterator[pb.ClassifyRequest]:
        yield pb.ClassifyRequest(image=data, model=model)

    assert [reply.error.code async for reply in servicer.ClassifyStream(requests(), cast(Context, Call()))] != [""]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector is off, and memory is traced."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("model", ["tiny", "unknown"])
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("way", ["predict", "compare", "rpc", "stream", "v2", "v2-json", "v2-rpc", "v1"])
async def test_refused(running: Running, way: str, name: str, model: str) -> None:
    """After ten refused images less is left than a quarter of one of them."""
    data_plane, budget = running.data_plane, UploadBudget(1 << 30)
    clock, metrics = data_plane.clock, data_plane.metrics
    app = create_app(
        data_plane, ImageReader(LIMITS, budget, 30.0, clock, metrics), metrics, RestAccess("", "", ["*"], [])
    )
    in_flight = RequestsInFlight(limits=LIMITS, budget=budget, timeout_s=30.0, clock=clock, metrics=metrics)
    servicer = Servicer(data_plane, in_flight)

    async def send() -> None:
        if way == "stream":
            await stream(servicer, REFUSED[name], model)
        elif way == "rpc":
            request = pb.ClassifyRequest(image=REFUSED[name], model=model)
            assert await running.stub.Classify(request).code() is not grpc.StatusCode.OK
        elif way == "v2-rpc":
            await infer(running, REFUSED[name], model)
        elif way == "v2":
            await rest(app, f"/v2/models/{model}/infer", REFUSED[name], (b"inference-header-content-length", b"0"))
        elif way == "v2-json":
            await rest(app, f"/v2/models/{model}/infer", REFUSED[name])
        elif way == "v1":
            await rest(app, f"/v1/models/{model}:predict", REFUSED[name])
        elif way == "predict" or model == "tiny":
            await rest(app, f"/{way}?model={model}", REFUSED[name])

    await send()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(10):
        await send()
    after, _ = tracemalloc.get_traced_memory()

    assert after - before < SIZE // 4
