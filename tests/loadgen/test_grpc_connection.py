"""gRPC of the load generator, against a scripted server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from loadgen.connection import LoadTestError, Response
from loadgen.grpc_connection import GrpcConnection, grpc_address, grpc_request
from loadgen.images import EncodedImage
from proto.topfive.v1.classifier_pb2 import ClassifyRequest
from tests.conftest import png

pytestmark = pytest.mark.anyio

GREY = EncodedImage(png(128), "image/png")
Answering = Callable[[bytes, Any], Awaitable[bytes]]


@asynccontextmanager
async def connection_to(answer: Answering) -> AsyncIterator[GrpcConnection]:
    """A connection with one image, and a server that answers every call with `answer`."""
    server = grpc.aio.server()
    methods: dict[str, Any] = {"Classify": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("topfive.v1.Classifier", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection = GrpcConnection(f"127.0.0.1:{port}", [grpc_request(GREY, "net")])
    try:
        yield connection
    finally:
        await connection.aclose()
        await server.stop(0)


async def full(_request: bytes, context: Any) -> bytes:
    """Refuses."""
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    raise AssertionError


async def test_request_and_reply() -> None:
    """A request has the image and the model; the response has the bytes of the reply."""
    seen: list[ClassifyRequest] = []

    async def answer(request: bytes, _context: Any) -> bytes:
        seen.append(ClassifyRequest.FromString(request))
        return b"reply"

    async with connection_to(answer) as connection:
        responses = [await connection.send(0, 10) for _ in range(2)]

    assert [(one.image, one.model) for one in seen] == [(GREY.data, "net")] * 2
    assert responses == [Response("", b"reply")] * 2


async def test_failures() -> None:
    """A failed call has its status as failure; calls without a server fail at most twenty times a second."""
    async with connection_to(full) as connection:
        refused = await connection.send(0, 10)
    closed = GrpcConnection("127.0.0.1:9", [b""])
    began = time.monotonic()
    failures = [(await closed.send(0, 10)).failure for _ in range(3)]
    took_s = time.monotonic() - began
    await closed.aclose()

    assert refused == Response("RESOURCE_EXHAUSTED", b"full")
    assert failures == ["UNAVAILABLE"] * 3
    assert took_s >= 0.15


async def test_timeout() -> None:
    """A request that times out has one response; its late reply is not that of the next request."""
    stuck, calls = asyncio.Event(), 0

    async def slow_at_first(_request: bytes, _context: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 1:
            await stuck.wait()
        return b""

    async with connection_to(slow_at_first) as connection:
        first = await connection.send(0, 0.2)
        stuck.set()
        second = await connection.send(0, 10)

    assert [first.failure, second.failure] == ["DEADLINE_EXCEEDED", ""]


@pytest.mark.parametrize("url", ["http://host:1/x", "host", "host:x"])
async def test_no_address(url: str) -> None:
    """Another URL is an error that names it."""
    assert grpc_address("grpc://host:1/") == "host:1"
    with pytest.raises(LoadTestError, match=f"^{url} is no gRPC address"):
        grpc_address(url)
