"""gRPC client of the load generator: requests are serialised in advance; of the replies only the timing is read."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from loadgen.connection import OK, TIMEOUT, Connection, LoadTestError, OnResult, RequestResult, send_once
from loadgen.images import EncodedImage
from loadgen.target import CHECK_S, LoadTarget
from proto.topfive.v1.classifier_pb2 import ClassifyReply, ClassifyRequest

_CLASSIFY = "/topfive.v1.Classifier/Classify"
_MAX_CHANNELS = 64  # further connections share them
_UNAVAILABLE_PAUSE_S = 0.1  # such calls fail at once: without it the generator would call in a tight loop
_BAD_ANSWER = "bad answer"
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # a retry would be measured as part of the first request
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # each channel has its own TCP connection
)

Call = Callable[..., Any]


class GrpcConnection(Connection):
    """One call at a time on a channel. The channel connects again by itself, which `connects` does not count."""

    def __init__(self, call: Call, payloads: Sequence[bytes], on_result: OnResult) -> None:
        super().__init__(payloads, on_result)
        self._call = call
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        self.busy = False
        self._abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send(self, payload: bytes) -> None:
        self.connects = 1
        self._task = asyncio.get_running_loop().create_task(self._run(payload))
        self._tasks.add(self._task)
        self._task.add_done_callback(self._tasks.discard)

    def _abort(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, payload: bytes) -> None:
        call = self._call(payload)
        try:
            reply = await call
            result = RequestResult(OK, reply, _timing(reply), len(reply))
        except asyncio.CancelledError:
            await call.code()  # until the call has ended: a late event of it would reach whoever runs next
            raise
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                await asyncio.sleep(_UNAVAILABLE_PAUSE_S)
            result = RequestResult(error.code().name, (error.details() or "").encode())
        except DecodeError as error:
            result = RequestResult(_BAD_ANSWER, str(error).encode())
        self._finish(result)


class GrpcTarget(LoadTarget):
    """Servers of `topfive.v1.Classifier`, each `HOST:PORT` or `grpc://HOST:PORT`; other URLs raise LoadTestError."""

    def __init__(self, urls: Sequence[str], model: str, images: Sequence[EncodedImage]) -> None:
        payloads = [ClassifyRequest(image=image.data, model=model).SerializeToString() for image in images]
        super().__init__([payloads] * len(urls))
        self._addresses = [_authority(url) for url in urls]
        self._channels: dict[int, grpc.aio.Channel] = {}

    def open_connection(self, number: int, on_result: OnResult) -> Connection:
        servers = len(self._addresses)
        key = number % max(servers, _MAX_CHANNELS // servers * servers)
        if key not in self._channels:
            self._channels[key] = grpc.aio.insecure_channel(self._addresses[key % servers], options=_OPTIONS)
        return GrpcConnection(self._channels[key].unary_unary(_CLASSIFY), self.payloads[0], on_result)

    async def check(self, server: int, timeout_s: float = CHECK_S) -> str:
        address = self._addresses[server]
        result = await send_once(lambda on_result: self.open_connection(server, on_result), timeout_s)
        if result.failure == TIMEOUT:
            raise LoadTestError(f"{address} did not answer within {timeout_s:g} s")
        if result.failure == grpc.StatusCode.UNAVAILABLE.name:
            raise LoadTestError(f"{address} cannot be reached: {result.text}; is its gRPC port there?")
        if result.failure not in (OK, _BAD_ANSWER):
            raise LoadTestError(f"{address} answers {result.failure}: {result.text}")
        try:
            reply = ClassifyReply.FromString(result.body)
            best = reply.predictions[0]
        except (DecodeError, IndexError) as error:
            raise LoadTestError(
                "the answer is no reply of topfive.v1.Classifier; for another server give its --api"
            ) from error
        size, engine = len(result.body), f"{reply.engine.runtime} {reply.engine.precision}"
        return f"{address}: {size:,} bytes, {best.label} {best.probability:.3f}, {reply.model.name} on {engine}"

    async def aclose(self) -> None:
        for channel in self._channels.values():
            await channel.close()


def _timing(reply: bytes) -> bytes:
    """The timing of a ClassifyReply as a Server-Timing header value."""
    steps = ClassifyReply.FromString(reply).timing_ms
    return (
        f"decode;dur={steps.decode}, queue;dur={steps.queue}, inference;dur={steps.inference}, total;dur={steps.total}"
    ).encode()


def _authority(url: str) -> str:
    host = url.removeprefix("grpc://").rstrip("/")
    if "/" in host or not host.rpartition(":")[2].isdecimal():
        raise LoadTestError(f"{url} is no gRPC address; give HOST:PORT, such as localhost:50051")
    return host
