"""What only gRPC has: streams, health with Watch, reflection, deadlines, cancellation, status codes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import TABLE
from service.server.app import Service
from service.server.data_plane import build_data_plane
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.rest.test_rest import until
from tests.serving import serving

pytestmark = pytest.mark.anyio

SERVICE = "topfive.v1.Classifier"


async def stream(*requests: pb.ClassifyRequest) -> AsyncIterator[pb.ClassifyRequest]:
    """The requests of a stream."""
    for request in requests:
        yield request


async def test_stream(artifacts: Path) -> None:
    """A stream answers in order; each bad image fails its own reply only."""
    images = [png(1), b"bad", png(3), b"", png(5)] * 20
    requests = [pb.ClassifyRequest(image=image, request_id=str(i)) for i, image in enumerate(images)]
    async with serving(artifacts, FakeEngine()) as running:
        replies = [reply async for reply in running.stub.ClassifyStream(stream(*requests))]

    assert [reply.request_id for reply in replies] == [str(i) for i in range(100)]
    results = [
        reply.reply.predictions[0].class_id if reply.HasField("reply") else reply.error.code for reply in replies
    ]
    assert results == [1, "bad_image", 3, "bad_image", 5] * 20
    assert replies[1].error.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert not replies[1].error.retryable


async def test_stream_shares_batches(artifacts: Path) -> None:
    """The images of one stream run in batches: the next is read before the last is answered."""
    engine = FakeEngine()
    async with serving(artifacts, engine) as running:
        engine.batches.clear()
        requests = [pb.ClassifyRequest(image=png(i)) for i in range(64)]
        replies = [reply async for reply in running.stub.ClassifyStream(stream(*requests))]

    assert [reply.reply.predictions[0].class_id for reply in replies] == list(range(64))
    assert len(engine.batches) < 64


async def test_stream_is_bounded(artifacts: Path) -> None:
    """A stream holds at most its window of images in the house; the client is slowed down, not refused."""
    engine = FakeEngine()
    async with serving(artifacts, engine) as running:
        engine.gate.clear()
        model = await running.data_plane.repository.get("tiny")
        call = running.stub.ClassifyStream(stream(*(pb.ClassifyRequest(image=png(i)) for i in range(100))))
        await until(lambda: model.batcher.admitted == 32)
        engine.gate.set()
        replies = [reply async for reply in call]

    assert [reply.reply.predictions[0].class_id for reply in replies] == list(range(100))


async def test_cancelled_stream(artifacts: Path) -> None:
    """Cancelling a stream frees every place it held."""
    engine = FakeEngine(max_batch=1)
    async with serving(artifacts, engine) as running:
        engine.gate.clear()
        model = await running.data_plane.repository.get("tiny")
        call = running.stub.ClassifyStream(stream(*(pb.ClassifyRequest(image=png(i)) for i in range(10))))
        await until(lambda: model.batcher.admitted == 10)
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED  # and nothing of it is left for the next test's loop
        await until(lambda: model.batcher.admitted == 0)
        engine.gate.set()

    assert len(engine.batches) <= 2


async def test_cancelled_call(artifacts: Path) -> None:
    """Cancelling a call frees its place, and the image is never run."""
    engine = FakeEngine(max_batch=1)
    async with serving(artifacts, engine) as running:
        engine.gate.clear()
        model = await running.data_plane.repository.get("tiny")
        first = asyncio.ensure_future(running.stub.Classify(pb.ClassifyRequest(image=png(1))))
        await until(lambda: model.batcher.in_flight == 1)
        second = running.stub.Classify(pb.ClassifyRequest(image=png(2)))
        await until(lambda: model.batcher.depth == 1)
        second.cancel()
        assert await second.code() is grpc.StatusCode.CANCELLED
        await until(lambda: model.batcher.depth == 0)
        ran = len(engine.batches)
        engine.gate.set()
        await first

    assert len(engine.batches) == ran + 1


async def test_deadline(artifacts: Path) -> None:
    """The call's own deadline ends it with DEADLINE_EXCEEDED, and its image is never run."""
    engine = FakeEngine(max_batch=1)
    async with serving(artifacts, engine) as running:
        engine.gate.clear()
        model = await running.data_plane.repository.get("tiny")
        first = asyncio.ensure_future(running.stub.Classify(pb.ClassifyRequest(image=png(1))))
        await until(lambda: model.batcher.in_flight == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Classify(pb.ClassifyRequest(image=png(2)), timeout=0.1)
        await until(lambda: model.batcher.depth == 0)
        ran = len(engine.batches)
        engine.gate.set()
        await first

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(engine.batches) == ran + 1


async def test_overloaded(artifacts: Path) -> None:
    """At capacity the status is RESOURCE_EXHAUSTED, with the time to wait in the standard trailer."""
    engine = FakeEngine()
    async with serving(artifacts, engine, capacity=1) as running:
        engine.gate.clear()
        model = await running.data_plane.repository.get("tiny")
        first = asyncio.ensure_future(running.stub.Classify(pb.ClassifyRequest(image=png(1))))
        await until(lambda: model.batcher.admitted == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Classify(pb.ClassifyRequest(image=png(2)))
        engine.gate.set()
        await first

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(str(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"])) > 0


async def test_health_watch(artifacts: Path) -> None:
    """Health is NOT_SERVING until loaded, SERVING after, NOT_SERVING while stopping; a watcher sees each change."""
    values = health_pb2.HealthCheckResponse
    async with serving(artifacts, FakeEngine(), load=False) as running:
        stub: Any = health_pb2_grpc.HealthStub(running.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        seen = [(await watch.read()).status]
        await running.service.load()
        seen.append((await watch.read()).status)
        overall = await stub.Check(health_pb2.HealthCheckRequest())
        running.data_plane.repository.stop()
        seen.append((await watch.read()).status)
        watch.cancel()
        assert await watch.code() is grpc.StatusCode.CANCELLED

    assert seen == [values.NOT_SERVING, values.SERVING, values.NOT_SERVING]
    assert overall.status == values.SERVING


async def test_reflection(artifacts: Path) -> None:
    """A client without the contract finds the services and the file that describes them."""
    async with serving(artifacts, FakeEngine()) as running:
        channel: Any = running.channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await call.read()).list_services_response.service}
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
        described = await call.read()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK

    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto == [pb.DESCRIPTOR.serialized_pb]


async def test_large_message(artifacts: Path) -> None:
    """A message of 60 MiB arrives and is refused for its image's size; one over 64 MiB is refused by gRPC."""
    codes = []
    async with serving(artifacts, FakeEngine()) as running:
        for megabytes in (60, 65):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.stub.Classify(pb.ClassifyRequest(image=bytes(megabytes << 20)))
            codes.append(caught.value.code())

    assert codes == [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED]


async def test_port_taken(artifacts: Path) -> None:
    """A second server on the same gRPC port fails and says which option to use, rather than sharing the calls."""
    async with serving(artifacts, FakeEngine()) as running:
        settings = running.settings.model_copy(update={"grpc_port": running.service.rpc.port})
        with pytest.raises(OSError, match="--grpc-port"):
            Service(settings, build_data_plane(settings))


def test_every_status_exists() -> None:
    """Every row of the error table names a gRPC status."""
    assert all(hasattr(grpc.StatusCode, row.grpc) for row in TABLE.values())
