"""The load generator over gRPC: this project's service for real, the Open Inference Protocol by messages of its own."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from loadgen.connection import OK, TIMEOUT, Line, LoadError, Outcome
from loadgen.grpc_connection import GrpcTarget
from loadgen.images import Photo, read
from loadgen.requests import Api, Form
from loadgen.wire import fields, varint
from tests.conftest import png
from tests.fakes import reached
from tests.loadgen.test_bench_command import QUICK, bench
from tests.serving import serving

pytestmark = pytest.mark.anyio

GREY = Photo("grey.png", png(128), (40, 40), "image/png")
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {"string": _FIELD.TYPE_STRING, "bytes": _FIELD.TYPE_BYTES, "int64": _FIELD.TYPE_INT64}
_UNSIGNED = _FIELD.TYPE_UINT64

# Fields by number, as the specification has them; a capital is a message, a star means repeated.
MESSAGES = {
    "Tensor": {1: "name string", 2: "datatype string", 3: "shape int64*"},
    "MetadataRequest": {1: "name string", 2: "version string"},
    "MetadataResponse": {1: "name string", 4: "inputs Tensor*", 5: "outputs Tensor*"},
    "InferRequest": {1: "model_name string", 5: "inputs Tensor*", 7: "raw_input_contents bytes*"},
    "InferResponse": {1: "model_name string", 5: "outputs Tensor*", 6: "raw_output_contents bytes*"},
    "Duration": {1: "count uint64", 2: "ns uint64"},
    "InferStatistics": {
        1: "success Duration",
        3: "queue Duration",
        4: "compute_input Duration",
        5: "compute_infer Duration",
        6: "compute_output Duration",
    },
    "ModelStatistics": {1: "name string", 6: "inference_stats InferStatistics"},
    "StatisticsResponse": {1: "model_stats ModelStatistics*"},
}


def classes() -> dict[str, Any]:
    """The messages by protobuf itself, in a pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(name="checked.proto", package="checked", syntax="proto3")
    for name, numbered in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, told in numbered.items():
            called, kind = told.split(" ")
            one = message.field.add(name=called, number=number)
            one.label = _FIELD.LABEL_REPEATED if kind.endswith("*") else _FIELD.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in MESSAGES:
                one.type, one.type_name = _FIELD.TYPE_MESSAGE, f".checked.{kind}"
            else:
                one.type = _UNSIGNED if kind == "uint64" else _SCALARS[kind]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"checked.{name}")) for name in MESSAGES}


@dataclass
class Oip(grpc.GenericRpcHandler):
    """A server of the Open Inference Protocol with the model `net`."""

    datatype: str
    shape: list[int]
    messages: dict[str, Any] = field(default_factory=classes)
    inferred: list[Any] = field(default_factory=list)

    def service(self, details: Any) -> Any:
        """The method of that name."""
        name = details.method.removeprefix("/inference.GRPCInferenceService/")
        method = {"ModelMetadata": self.metadata, "ModelInfer": self.infer, "ModelStatistics": self.statistics}[name]
        return grpc.unary_unary_rpc_method_handler(method)

    async def metadata(self, request: bytes, context: Any) -> bytes:
        """What the model takes."""
        asked = self.messages["MetadataRequest"].FromString(request)
        if asked.name != "net":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {asked.name}")
        tensor = self.messages["Tensor"](name="image", datatype=self.datatype, shape=self.shape)
        return bytes(self.messages["MetadataResponse"](name="net", inputs=[tensor]).SerializeToString())

    async def infer(self, request: bytes, _context: Any) -> bytes:
        """One output."""
        self.inferred.append(self.messages["InferRequest"].FromString(request))
        output = self.messages["Tensor"](name="scores", datatype="FP32", shape=[1, 10])
        return bytes(self.messages["InferResponse"](model_name="net", outputs=[output]).SerializeToString())

    async def statistics(self, _request: bytes, _context: Any) -> bytes:
        """2 ms in the queue of each request."""
        count = len(self.inferred)
        told = self.messages["InferStatistics"](
            success={"count": count, "ns": 5_000_000 * count}, queue={"count": count, "ns": 2_000_000 * count}
        )
        model = self.messages["ModelStatistics"](name="net", inference_stats=told)
        return bytes(self.messages["StatisticsResponse"](model_stats=[model]).SerializeToString())


@asynccontextmanager
async def running(handler: grpc.GenericRpcHandler) -> AsyncIterator[str]:
    """That server's address."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def prepared(address: str, form: Form) -> GrpcTarget:
    """A target with one image."""
    target = GrpcTarget([address], form)
    try:
        await target.prepare([GREY])
    except LoadError:
        await target.aclose()
        raise
    return target


async def test_v2_by_its_messages() -> None:
    """Requests and replies are what protobuf reads and writes: metadata, the file as BYTES, the reply, statistics."""
    server = Oip("BYTES", [-1, 1])
    async with running(server) as address:
        target = await prepared(address, Form(Api.V2_GRPC, "net"))
        before = await target.spent()
        said = await target.check()
        after = await target.spent()
        await target.aclose()

    (asked,) = server.inferred
    (tensor,) = asked.inputs
    assert asked.model_name == "net"
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("image", "BYTES", [1, 1])
    assert list(asked.raw_input_contents) == [len(GREY.data).to_bytes(4, "little") + GREY.data]
    assert said[0].endswith("scores FP32 [1, 10]")
    assert before is not None
    assert after is not None
    spent = after.since(before)
    assert spent is not None
    assert (spent.queue, spent.total) == (2, 5)


async def test_v2_pixels() -> None:
    """Where the model takes pixels it gets as many as its shape says."""
    server = Oip("UINT8", [-1, 3, 32, 32])
    async with running(server) as address:
        target = await prepared(address, Form(Api.V2_GRPC, "net"))
        await target.check()
        await target.aclose()

    assert list(server.inferred[0].raw_input_contents) == [bytes([128]) * 3 * 32 * 32]


async def test_no_such_model() -> None:
    """The server's own word is given."""
    async with running(Oip("BYTES", [1])) as address:
        with pytest.raises(LoadError, match="NOT_FOUND: no model other"):
            await prepared(address, Form(Api.V2_GRPC, "other"))


async def test_nobody_there() -> None:
    """A port without a server is said."""
    async with running(Oip("BYTES", [1])) as address:
        pass
    with pytest.raises(LoadError, match=f"{address} cannot be reached"):
        await prepared(address, Form(Api.V2_GRPC, "net"))


@pytest.mark.parametrize("message", [b"\x0a\xff", b"\xff" * 11, b"\x0b", b"\x0a\x05abc"])
async def test_no_message(message: bytes) -> None:
    """Bytes that are no message are refused, not half read."""
    with pytest.raises(LoadError, match="no message"):
        list(fields(message))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**63, -1])
async def test_numbers(value: int) -> None:
    """Numbers survive the way through bytes, negative ones as 64 bits."""
    assert list(fields(varint(8) + varint(value))) == [(1, value % 2**64)]


class Garbled(grpc.GenericRpcHandler):
    """Answers every call with the same bytes."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def service(self, _details: Any) -> Any:
        """The one method."""

        async def answer(_request: bytes, _context: Any) -> bytes:
            return self._reply

        return grpc.unary_unary_rpc_method_handler(answer)


async def test_an_answer_that_is_no_message() -> None:
    """Bytes that are no ClassifyReply are an error of that request, which ends; of the first, they are said."""
    outcomes: list[Outcome] = []
    async with running(Garbled(b"\xff\xff")) as address:
        target = await prepared(address, Form(Api.GRPC))
        line = target.line(0, lambda _line, outcome: outcomes.append(outcome))
        line.send(0, 0.0)
        await reached(lambda: bool(outcomes))
        with pytest.raises(LoadError, match="not that of topfive"):
            await target.check()
        await target.aclose()

    assert [outcome.failure for outcome in outcomes] == ["bad answer"]


async def test_an_empty_answer_is_no_first_answer() -> None:
    """A reply without a class, which is what another service's looks like, is said and not shown as one."""
    async with running(Garbled(b"")) as address:
        target = await prepared(address, Form(Api.GRPC))
        with pytest.raises(LoadError, match="not that of topfive"):
            await target.check()
        await target.aclose()


async def test_a_server_that_is_gone_is_not_asked_in_a_circle() -> None:
    """Where calls fail at once the next waits a tenth of a second: a generator at full speed would starve others."""
    async with running(Oip("BYTES", [1])) as address:
        target = await prepared(address, Form(Api.V2_GRPC, "net"))
    outcomes: list[Outcome] = []
    line = target.line(0, lambda _line, outcome: outcomes.append(outcome))
    began = time.monotonic()
    for count in range(1, 4):
        line.send(0, 0.0)
        await reached(lambda count=count: len(outcomes) == count)  # type: ignore[misc]
    took_s = time.monotonic() - began
    await target.aclose()

    assert [outcome.failure for outcome in outcomes] == ["UNAVAILABLE"] * 3
    assert took_s >= 0.3


async def test_lines_end_each_request_once() -> None:
    """An answer, and a request that is given up, each have one outcome, and the line goes on."""
    outcomes: list[Outcome] = []

    def done(_line: Line, outcome: Outcome) -> None:
        outcomes.append(outcome)

    server = Oip("BYTES", [1])
    async with running(server) as address:
        target = await prepared(address, Form(Api.V2_GRPC, "net"))
        line = target.line(0, done)
        line.send(0, 0.0)
        await reached(lambda: len(outcomes) == 1)
        line.send(0, 0.0)
        line.give_up()
        line.send(0, 0.0)
        await reached(lambda: len(outcomes) == 3)
        await line.aclose()
        await target.aclose()

    assert [outcome.failure for outcome in outcomes] == [OK, TIMEOUT, OK]


async def test_refusals_are_told_apart() -> None:
    """A status is the kind of the error, with what the server said."""

    class Full(Oip):
        """Refuses."""

        async def infer(self, request: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
            raise AssertionError

    outcomes: list[Outcome] = []
    async with running(Full("BYTES", [1])) as address:
        target = await prepared(address, Form(Api.V2_GRPC, "net"))
        line = target.line(0, lambda _line, outcome: outcomes.append(outcome))
        line.send(0, 0.0)
        await reached(lambda: bool(outcomes))
        await target.aclose()

    assert [(outcome.failure, outcome.said) for outcome in outcomes] == [("RESOURCE_EXHAUSTED", "full")]


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
