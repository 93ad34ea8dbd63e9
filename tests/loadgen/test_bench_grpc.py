"""The load generator over gRPC, against a scripted server and against this project's service."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from loadgen.connection import OK, TIMEOUT, LoadError, Outcome
from loadgen.grpc_connection import GrpcTarget
from loadgen.images import Photo, read
from proto.topfive.v1.classifier_pb2 import ClassifyReply, ClassifyRequest
from tests.conftest import png
from tests.fakes import reached
from tests.loadgen.test_bench_command import QUICK, bench
from tests.serving import serving

pytestmark = pytest.mark.anyio

GREY = Photo("grey.png", png(128), (40, 40), "image/png")
Answer = Callable[[bytes, Any], Awaitable[bytes]]


class Scripted(grpc.GenericRpcHandler):
    """Answers every call by a function."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def service(self, _details: Any) -> Any:
        """The one method."""
        return grpc.unary_unary_rpc_method_handler(self._answer)


@asynccontextmanager
async def target_of(answer: Answer) -> AsyncIterator[GrpcTarget]:
    """A target with one image and such a server."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Scripted(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    target = GrpcTarget([f"127.0.0.1:{port}"], "net", [GREY])
    try:
        yield target
    finally:
        await target.aclose()
        await server.stop(0)


def always(reply: bytes) -> Answer:
    """The same bytes for every call."""

    async def answer(_request: bytes, _context: Any) -> bytes:
        return reply

    return answer


async def full(_request: bytes, context: Any) -> bytes:
    """Refuses."""
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    raise AssertionError


async def asked(target: GrpcTarget, times: int) -> list[Outcome]:
    """How that many requests ended, one after the other on one line."""
    outcomes: list[Outcome] = []
    line = target.line(0, lambda _line, outcome: outcomes.append(outcome))
    for count in range(1, times + 1):
        line.send(0, 0.0)
        await reached(lambda count=count: len(outcomes) == count)  # type: ignore[misc]
    await line.aclose()
    return outcomes


async def test_requests_and_answers() -> None:
    """The file and the model are sent; what the reply says of its steps is kept; the first answer is shown."""
    seen: list[ClassifyRequest] = []
    reply = ClassifyReply(predictions=[{"label": "zebra", "probability": 0.5}], timing_ms={"decode": 2, "total": 4})

    async def answer(request: bytes, _context: Any) -> bytes:
        seen.append(ClassifyRequest.FromString(request))
        return reply.SerializeToString()

    async with target_of(answer) as target:
        (said,) = await target.check()
        (outcome,) = await asked(target, 1)

    assert [(one.image, one.model) for one in seen] == [(GREY.data, "net")] * 2
    assert "zebra 0.500" in said
    assert outcome.failure == OK
    assert b"decode;dur=2.0" in outcome.timing
    assert outcome.received == reply.ByteSize()


async def test_nobody_there() -> None:
    """A port without a server is said."""
    async with target_of(full) as target:
        pass
    with pytest.raises(LoadError, match=r"127\.0\.0\.1:\d+ cannot be reached"):
        await target.check()
    await target.aclose()


@pytest.mark.parametrize(
    ("answer", "failure", "said", "of_check"),
    [
        (full, "RESOURCE_EXHAUSTED", "full", "answers RESOURCE_EXHAUSTED: full"),
        (always(b"\xff\xff"), "bad answer", "", "not that of topfive"),
        (always(b""), OK, "", "not that of topfive"),
    ],
)
async def test_errors_are_told_apart(answer: Answer, failure: str, said: str, of_check: str) -> None:
    """A status is the kind of the error; bytes that are no reply, or one without a class, are no first answer."""
    async with target_of(answer) as target:
        with pytest.raises(LoadError, match=of_check):
            await target.check()
        (outcome,) = await asked(target, 1)

    assert outcome.failure == failure
    assert said in outcome.said


async def test_a_server_that_is_gone_is_not_asked_in_a_circle() -> None:
    """Where calls fail at once the next waits a tenth of a second: a generator at full speed would starve others."""
    async with target_of(full) as target:
        pass
    began = time.monotonic()
    outcomes = await asked(target, 3)
    took_s = time.monotonic() - began
    await target.aclose()

    assert [outcome.failure for outcome in outcomes] == ["UNAVAILABLE"] * 3
    assert took_s >= 0.3


async def test_lines_end_each_request_once() -> None:
    """A request that is given up has one outcome, its late answer is not another's, and the line goes on."""
    outcomes: list[Outcome] = []
    stuck = asyncio.Event()

    async def slow_at_first(_request: bytes, _context: Any) -> bytes:
        if not outcomes:
            await stuck.wait()
        return b""

    async with target_of(slow_at_first) as target:
        line = target.line(0, lambda _line, outcome: outcomes.append(outcome))
        line.send(0, 0.0)
        line.give_up()
        stuck.set()
        line.send(0, 0.0)
        await reached(lambda: len(outcomes) == 2)
        await line.aclose()

    assert [outcome.failure for outcome in outcomes] == [TIMEOUT, OK]


async def test_the_service_itself(artifacts: Path, tmp_path: Path) -> None:
    """This project's gRPC is measured, with what its replies say of their steps."""
    async with serving(artifacts) as service:
        url = f"grpc://127.0.0.1:{service.service.rpc.port}"
        done = await bench(tmp_path, url, *QUICK, "--api", "grpc", "--seconds", "1", "--connections", "2")

    assert done.status == 0, done.said
    assert "tiny on " in done.said.splitlines()[0]
    assert done.point["requests"] > 0
    assert 0 < done.point["server_ms"]["input"] < done.point["server_ms"]["total"]
    assert done.report["images"][0]["bytes"] == len(read([])[0].data)
