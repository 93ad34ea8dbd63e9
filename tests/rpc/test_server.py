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
from service.rpc import server
from tests.conftest import png
from tests.fakes import FakeEngine, reached
from tests.serving import Running, busy, serving

pytestmark = pytest.mark.anyio

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)
SERVICE = "topfive.v1.Classifier"


async def stream(*images: bytes) -> AsyncIterator[pb.ClassifyRequest]:
    """The requests of a stream."""
    for number, image in enumerate(images):
        yield pb.ClassifyRequest(image=image, request_id=str(number))


async def status_of(running: Running, image: bytes, **options: Any) -> tuple[grpc.StatusCode, object]:
    """The status of a call with that image, and the code in its trailing metadata."""
    call = running.stub.Classify(pb.ClassifyRequest(image=image), **options)
    status = await call.code()
    return status, dict(await call.trailing_metadata()).get("topfive-code")


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


async def test_large_message(running: Running) -> None:
    """gRPC refuses a message over the largest image and a megabyte; one below it the server refuses with its code."""
    limit = 10_000_000
    assert await status_of(running, bytes(limit + 1)) == (grpc.StatusCode.INVALID_ARGUMENT, "too_large")
    assert await status_of(running, bytes(limit + (2 << 20))) == (grpc.StatusCode.RESOURCE_EXHAUSTED, None)


async def test_many_names_of_a_comparison(running: Running) -> None:
    """Names of over a MiB are refused before a list is made of them: they would take 25 times their room."""
    many = pb.CompareRequest(image=png(1), models=[""] * (1 << 20))
    with pytest.raises(grpc.aio.AioRpcError, match="bytes beside the image; send 1 MiB at most") as refused:
        await running.stub.Compare(many)

    assert dict(refused.value.trailing_metadata())["topfive-code"] == "too_large"
    assert len((await running.stub.Compare(pb.CompareRequest(image=png(1), models=["tiny"]))).rows) == 1


async def test_compressed_message(running: Running) -> None:
    """A compressed message is refused before it is inflated."""
    status, _ = await status_of(running, bytes(1 << 20), compression=grpc.Compression.Gzip)

    assert status is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["Classify", "ClassifyStream"])
async def test_no_message_of_the_call(running: Running, method: str, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are no message are the client's fault, and no error of the server."""
    sending: Any = running.channel.stream_stream(f"/{SERVICE}/{method}")
    call = sending(iter([b"\xff" * 9]))

    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(await call.trailing_metadata())["topfive-code"] == "bad_request"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_messages_that_are_read_at_once(exported: Path) -> None:
    """Of a client only as many messages are read at once as its half of --max-upload-bytes has room for; others wait.

    A call that never sends its message keeps its place until it ends, and health checks have places of their own.
    """
    async with serving(exported, FakeEngine(), max_image_bytes=1 << 20, max_upload_bytes=8 << 20) as running:
        silent: list[Any] = [running.channel.stream_unary(f"/{SERVICE}/Classify")() for _ in range(2)]
        for call in silent:
            await call.wait_for_connection()
        health: Any = health_pb2_grpc.HealthStub(running.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        waits = running.stub.Classify(pb.ClassifyRequest(image=png(1)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Classify(pb.ClassifyRequest(image=png(1)), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        silent[0].cancel()
        assert (await waits).predictions[0].class_id == 1
        await silent[1].done_writing()
        assert await silent[1].code() is grpc.StatusCode.INVALID_ARGUMENT  # it has no message


async def test_streams_are_bounded(exported: Path) -> None:
    """A stream that finds no place is refused; one that ends makes room."""
    async with serving(exported, FakeEngine(), max_image_bytes=1 << 20, max_upload_bytes=2 << 20) as running:
        first = running.stub.ClassifyStream()
        await first.write(pb.ClassifyRequest(image=png(1)))
        assert (await first.read()).reply.predictions[0].class_id == 1
        second = running.stub.ClassifyStream(stream(png(2)))
        assert await second.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(await second.trailing_metadata())["topfive-code"] == "overloaded"
        await first.done_writing()
        assert await first.code() is grpc.StatusCode.OK
        assert [reply.reply.predictions[0].class_id async for reply in running.stub.ClassifyStream(stream(png(2)))] == [
            2
        ]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("grpc_max_connection_idle_s", b"connection idle"), ("grpc_max_connection_age_s", b"max_age")],
)
async def test_ends_of_connections(exported: Path, setting: str, reason: bytes) -> None:
    """The server closes a connection without calls, or one of a certain age, after the time that the setting says."""
    settings: dict[str, Any] = {setting: 0.5}
    async with serving(exported, FakeEngine(), **settings) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.service.rpc.port)
        writer.write(PREFACE)
        async with asyncio.timeout(20):
            await reader.readuntil(reason)
        writer.close()


async def test_calls_of_an_old_connection(exported: Path) -> None:
    """A call that runs when its connection reaches its age is answered; later calls come on new connections."""
    engine = FakeEngine()
    async with serving(exported, engine, grpc_max_connection_age_s=0.2) as running, busy(running, engine):
        await running.channel.channel_ready()
        old = running.stub.Classify(pb.ClassifyRequest(image=png(5)))
        states: list[grpc.ChannelConnectivity] = []
        while (state := running.channel.get_state(try_to_connect=True)) not in states[1:]:
            states.append(state)
            await asyncio.wait_for(running.channel.wait_for_state_change(state), 20)
        new = running.stub.Classify(pb.ClassifyRequest(image=png(6)))
        engine.gate.set()
        assert [(await call).predictions[0].class_id for call in (old, new)] == [5, 6]
    assert states[0] is grpc.ChannelConnectivity.READY


async def test_pings_without_calls(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings of a client without calls are answered, as many as it sends, while they are no closer than allowed."""
    interval_s, ack = 0.01, b"\6\1"
    often = {"grpc.http2.min_ping_interval_without_data_ms": round(interval_s * 1000)}
    monkeypatch.setattr(server, "_OPTIONS", tuple((dict(server._OPTIONS) | often).items()))
    async with serving(exported, FakeEngine()) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.service.rpc.port)
        writer.write(PREFACE)
        async with asyncio.timeout(20):
            for number in range(6):
                writer.write(b"\0\0\x08\6\0" + bytes(4) + bytes([number] * 8))
                await reader.readuntil(ack + bytes(4) + bytes([number] * 8))
                await asyncio.sleep(2 * interval_s)
        writer.close()


@pytest.mark.parametrize("allowed", [True, False])
async def test_pings_of_a_client(exported: Path, monkeypatch: pytest.MonkeyPatch, *, allowed: bool) -> None:
    """A channel that pings while it has no call stays connected; only pings below the allowed interval end it."""
    often = {"grpc.http2.min_ping_interval_without_data_ms": 20 if allowed else 60_000}
    monkeypatch.setattr(server, "_OPTIONS", tuple((dict(server._OPTIONS) | often).items()))
    pings = (
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    async with (
        serving(exported, FakeEngine()) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.service.rpc.port}", options=pings) as channel,
    ):
        await channel.channel_ready()
        left = asyncio.ensure_future(channel.wait_for_state_change(grpc.ChannelConnectivity.READY))
        await asyncio.wait({left}, timeout=5 if allowed else 20)  # gRPC pings once a second at most
        assert left.done() is not allowed
        left.cancel()


async def test_port_taken(running: Running, exported: Path) -> None:
    """A second server on the same gRPC port fails and says which option to use, rather than share the calls."""
    with pytest.raises(OSError, match="--grpc-port"):
        async with serving(exported, FakeEngine(), grpc_port=running.service.rpc.port):
            pass
