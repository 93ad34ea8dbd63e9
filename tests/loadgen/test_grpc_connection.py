"""gRPC of the load generator, against a scripted server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from loadgen.connection import OK, TIMEOUT, LoadTestError, RequestResult
from loadgen.grpc_connection import GrpcTarget
from loadgen.images import EncodedImage
from proto.topfive.v1.classifier_pb2 import ClassifyReply, ClassifyRequest
from tests.conftest import png
from tests.fakes import reached

pytestmark = pytest.mark.anyio

GREY = EncodedImage("grey.png", png(128), (40, 40), "image/png")
Answering = Callable[[bytes, Any], Awaitable[bytes]]


@asynccontextmanager
async def target_of(answer: Answering) -> AsyncIterator[GrpcTarget]:
    """A target with one image, and a server that answers every call with `answer`."""
    server = grpc.aio.server()
    methods: dict[str, Any] = {"Classify": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("topfive.v1.Classifier", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    target = GrpcTarget([f"127.0.0.1:{port}"], "net", [GREY])
    try:
        yield target
    finally:
        await target.aclose()
        await server.stop(0)


def always(reply: bytes) -> Answering:
    """The same bytes for every call."""

    async def answer(_request: bytes, _context: Any) -> bytes:
        return reply

    return answer


async def full(_request: bytes, context: Any) -> bytes:
    """Refuses."""
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    raise AssertionError


async def send_to(target: GrpcTarget, times: int) -> list[RequestResult]:
    """Send that many requests, one after the other on one connection."""
    results: list[RequestResult] = []
    connection = target.open_connection(0, lambda _connection, result: results.append(result))
    for count in range(1, times + 1):
        connection.send(0, 0.0)
        await reached(lambda count=count: len(results) == count)  # type: ignore[misc]
    await connection.aclose()
    return results


async def test_request_and_reply() -> None:
    """A request has the image and the model; the result has the timing of the reply; a check describes the reply."""
    seen: list[ClassifyRequest] = []
    reply = ClassifyReply(predictions=[{"label": "zebra", "probability": 0.5}], timing_ms={"decode": 2, "total": 4})

    async def answer(request: bytes, _context: Any) -> bytes:
        seen.append(ClassifyRequest.FromString(request))
        return reply.SerializeToString()

    async with target_of(answer) as target:
        said = await target.check(0)
        (result,) = await send_to(target, 1)

    assert [(one.image, one.model) for one in seen] == [(GREY.data, "net")] * 2
    assert "zebra 0.500" in said
    assert result.failure == OK
    assert b"decode;dur=2.0" in result.timing
    assert result.received == reply.ByteSize()


async def test_no_server() -> None:
    """A check names a port without a server; requests to it fail at most ten times a second."""
    async with target_of(full) as target:
        pass
    with pytest.raises(LoadTestError, match=r"127\.0\.0\.1:\d+ cannot be reached"):
        await target.check(0)
    began = time.monotonic()
    results = await send_to(target, 3)
    took_s = time.monotonic() - began
    await target.aclose()

    assert [result.failure for result in results] == ["UNAVAILABLE"] * 3
    assert took_s >= 0.3


@pytest.mark.parametrize(
    ("answer", "failure", "said", "of_check"),
    [
        (full, "RESOURCE_EXHAUSTED", "full", "answers RESOURCE_EXHAUSTED: full"),
        (always(b"\xff\xff"), "bad answer", "", "no reply of topfive"),
        (always(b""), OK, "", "no reply of topfive"),
    ],
)
async def test_kinds_of_errors(answer: Answering, failure: str, said: str, of_check: str) -> None:
    """A failed call has its status as failure; bytes that are no reply, or a reply without a class, fail the check."""
    async with target_of(answer) as target:
        with pytest.raises(LoadTestError, match=of_check):
            await target.check(0)
        (result,) = await send_to(target, 1)

    assert result.failure == failure
    assert said in result.text


async def test_timeout() -> None:
    """A request that times out has one result; its late reply is not the result of the next request."""
    results: list[RequestResult] = []
    stuck = asyncio.Event()

    async def slow_at_first(_request: bytes, _context: Any) -> bytes:
        if not results:
            await stuck.wait()
        return b""

    async with target_of(slow_at_first) as target:
        connection = target.open_connection(0, lambda _connection, result: results.append(result))
        connection.send(0, 0.0)
        connection.time_out()
        stuck.set()
        connection.send(0, 0.0)
        await reached(lambda: len(results) == 2)
        await connection.aclose()

    assert [result.failure for result in results] == [TIMEOUT, OK]
