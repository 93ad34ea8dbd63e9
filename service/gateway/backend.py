"""One inference server: its channel, its state by its own health service, and how many calls it has."""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from service.rpc.server import MAX_MESSAGE_BYTES, SERVICE

M = TypeVar("M")

Send = Callable[[ClassifierStub, float], grpc.aio.UnaryUnaryCall[Any, M]]
"""Makes one call on a stub with so many seconds as its timeout."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),  # `service.gateway.retries` retries: gRPC would not, beyond 256 KiB, and only here
    ("grpc.enable_http_proxy", 0),  # http_proxy is meant for the way out, and gRPC would go through it to a neighbour
    ("grpc.use_local_subchannel_pool", 1),  # a new channel to an old address must not inherit its back-off
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # which is also how long a try to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),  # the default of two minutes would keep a restarted server idle
    ("grpc.keepalive_time_ms", 10_000),  # a host that vanishes closes no connection
    ("grpc.http2.ping_timeout_ms", 5_000),  # by default a minute; grpc.keepalive_timeout_ms does not shorten it
    ("grpc.http2.max_pings_without_data", 0),
)
_WATCH_AGAIN_S = 0.1
_STRANGER_S = 1.0  # another server may come to its address

log = logging.getLogger(__name__)


class Serving(Enum):
    """What a server says of itself; GONE where it says nothing, STRANGER where it knows nothing of this service."""

    YES = "serving"
    NO = "not serving"
    GONE = "gone"
    STRANGER = "another service; give the gRPC port of topfive serve"


_SAID = {health_pb2.HealthCheckResponse.SERVING: Serving.YES, health_pb2.HealthCheckResponse.NOT_SERVING: Serving.NO}


class Replica:
    """One server, watched from now on; `on_change` is called whenever its state is another."""

    def __init__(self, address: str, on_change: Callable[[], None]) -> None:
        self.address = address
        self.calls = 0
        self.state = Serving.GONE
        self._on_change = on_change
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = ClassifierStub(self._channel)  # type: ignore[no-untyped-call]
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def call(self, send: Send[M], left_s: float) -> M:
        """The reply to what `send` asks of the stub within `left_s`. Raises AioRpcError. Cancelled, it cancels that."""
        self.calls += 1
        call = send(self._stub, left_s)
        try:
            return await call
        except asyncio.CancelledError:
            await call.code()  # until it has ended: an event of it that is left over would go to whoever runs next
            raise
        finally:
            self.calls -= 1

    async def aclose(self, settle_s: float) -> None:
        """End the watching, and within so many seconds every call."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        self._set(Serving.GONE)
        await self._channel.close(settle_s or None)

    async def _watch(self) -> None:
        while True:
            watch = self._health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), wait_for_ready=True)
            try:
                async for reply in watch:
                    self._set(_SAID.get(reply.status, Serving.STRANGER))
            except grpc.aio.AioRpcError as error:
                log.debug("%s: %s", self.address, error.details())
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    self._set(Serving.STRANGER)
                    await asyncio.sleep(_STRANGER_S)
                    continue
            except asyncio.CancelledError:
                watch.cancel()
                await watch.code()  # as above
                raise
            self._set(Serving.GONE)
            await asyncio.sleep(_WATCH_AGAIN_S)

    def _set(self, state: Serving) -> None:
        if state is not self.state:
            level = logging.WARNING if state is Serving.STRANGER else logging.INFO
            log.log(level, "inference server %s is %s", self.address, state.value)
            self.state = state
            self._on_change()
