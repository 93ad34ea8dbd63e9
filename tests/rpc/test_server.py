"""What only gRPC has: streams, health with Watch, reflection, deadlines, cancellation, status codes."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from proto.topfive.v1 import classifier_pb2 as pb
from tests.conftest import png
from tests.fakes import FakeEngine, reached
from tests.serving import Running, busy, serving

pytestmark = pytest.mark.anyio

SERVICE = "topfive.v1.Classifier"


async def stream(*images: bytes) -> AsyncIterator[pb.ClassifyRequest]:
    """The requests of a stream."""
    for number, image in enumerate(images):
        yield pb.ClassifyRequest(image=image, request_id=str(number))


async def test_stream(running: Running) -> None:
    """A stream answers in order; each bad image fails its own reply only."""
    images = [png(1), b"bad", png(3), b"", png(5)] * 20
    replies = [reply async for reply in running.stub.ClassifyStream(stream(*images))]

    assert [reply.request_id for reply in replies] == [str(number) for number in range(100)]
    results = [
        reply.reply.predictions[0].class_id if reply.HasField("reply") else reply.error.code for reply in replies
    ]
    assert results == [1, "bad_image", 3, "bad_image", 5] * 20
    assert replies[1].error.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert not replies[1].error.retryable


async def test_stream_is_bounded(exported: Path) -> None:
    """A stream has at most 32 images in flight, in batches: gRPC slows the client down, and refuses no image."""
    engine = FakeEngine()
    async with serving(exported, engine) as running:
        engine.gate.clear()
        engine.batches.clear()
        model = await running.data_plane.repository.get("tiny")
        call = running.stub.ClassifyStream(stream(*map(png, range(100))))
        await reached(lambda: model.batcher.admitted == 32)
        engine.gate.set()
        replies = [reply async for reply in call]

    assert [reply.reply.predictions[0].class_id for reply in replies] == list(range(100))
    assert len(engine.batches) < 100


async def test_cancelled_stream(exported: Path) -> None:
    """A stream that its client cancels frees every place it had, and none of its images is run."""
    engine = FakeEngine(max_batch=1)
    async with serving(exported, engine) as running, busy(running, engine) as batcher:
        ran = len(engine.batches)
        call = running.stub.ClassifyStream(stream(*map(png, range(10))))
        await reached(lambda: batcher.admitted == 11)
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED  # and nothing of it is left for the next test's loop
        await reached(lambda: batcher.admitted == 1)

    assert len(engine.batches) == ran + 1


@pytest.mark.parametrize("timeout_s", [None, 0.1])
async def test_an_image_that_waits(exported: Path, timeout_s: float | None) -> None:
    """A call that its client cancels, or that passes its deadline, frees its place, and its image is never run."""
    engine = FakeEngine(max_batch=1)
    async with serving(exported, engine) as running, busy(running, engine) as batcher:
        ran = len(engine.batches)
        call = running.stub.Classify(pb.ClassifyRequest(image=png(2)), timeout=timeout_s)
        if timeout_s is None:
            await reached(lambda: batcher.depth == 1)
            call.cancel()
        status = await call.code()
        await reached(lambda: batcher.depth == 0)

    assert status is (grpc.StatusCode.DEADLINE_EXCEEDED if timeout_s else grpc.StatusCode.CANCELLED)
    assert len(engine.batches) == ran + 1


async def test_health_watch(exported: Path) -> None:
    """Health is NOT_SERVING until loaded, SERVING after, NOT_SERVING while stopping; a watcher sees each change."""
    values = health_pb2.HealthCheckResponse
    async with serving(exported, FakeEngine(), load=False) as running:
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


async def test_reflection(running: Running) -> None:
    """A client without the contract finds the services and the file that describes them."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)  # type: ignore[arg-type]
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
    described = await call.read()
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK

    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto == [pb.DESCRIPTOR.serialized_pb]


@pytest.mark.parametrize(
    ("megabytes", "status"), [(60, grpc.StatusCode.INVALID_ARGUMENT), (65, grpc.StatusCode.RESOURCE_EXHAUSTED)]
)
async def test_large_message(running: Running, megabytes: int, status: grpc.StatusCode) -> None:
    """The server refuses a message of 60 MiB for its image's size; gRPC refuses one over 64 MiB."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Classify(pb.ClassifyRequest(image=bytes(megabytes << 20)))

    assert caught.value.code() is status


async def test_port_taken(running: Running, exported: Path) -> None:
    """A second server on the same gRPC port fails and says which option to use, rather than share the calls."""
    with pytest.raises(OSError, match="--grpc-port"):
        async with serving(exported, FakeEngine(), grpc_port=running.service.rpc.port):
            pass
