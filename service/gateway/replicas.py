"""The inference servers behind a gateway: one gRPC channel over all of them.

gRPC balances calls over the servers that its health checks find ready, reconnects lost ones, and drops those that
answer no ping. This module adds two things. It resolves host names every two seconds: gRPC does so only after it lost a
connection, and waits up to two minutes after a failed look-up. And it retries a failed call once: gRPC's retry policy
would wait for as long as a full server asks its clients to, and would not be counted.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from proto.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from service.common.clock import Clock
from service.common.errors import DeadlineExceeded, NotReady, Overloaded, ShuttingDown
from service.common.metrics import Metrics
from service.common.request_id import current_request_id
from service.gateway.errors import refusing_server, translated

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": pb.DESCRIPTOR.services_by_name["Classifier"].full_name},
}
_OPTIONS = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),  # `ReplicaClient.call` retries
    ("grpc.enable_http_proxy", 0),  # http_proxy leads out of the network of the servers
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # also the timeout of an attempt to connect
    ("grpc.max_reconnect_backoff_ms", 1000),  # the default of two minutes would keep a restarted server idle
    ("grpc.keepalive_time_ms", 10_000),  # a host that vanishes closes no connection
    ("grpc.http2.ping_timeout_ms", 5_000),  # the default is a minute, which grpc.keepalive_timeout_ms does not shorten
    ("grpc.http2.max_pings_without_data", 0),
)
_RESOLVE_EVERY_S = 2.0
_TRIES = 8  # of a call that a full server refused, until gRPC chooses another server
_SETTLE_S = 60.0  # for calls on a channel that has been replaced

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """A host name or an IP address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_targets(text: str) -> tuple[Target, ...]:
    """Parses `HOST:PORT[,HOST:PORT]` and drops duplicates. Raises ValueError with an example."""
    targets = []
    for part in filter(None, map(str.strip, text.split(","))):
        host, colon, port = part.removeprefix("dns:///").rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"{part!r} is no address; give HOST:PORT, such as inference:8001")
        targets.append(Target(host.removeprefix("[").removesuffix("]"), int(port)))
    if not targets:
        raise ValueError("name at least one inference server, such as inference:8001")
    return tuple(dict.fromkeys(targets))


Resolve = Callable[[Target], Awaitable[Collection[Target]]]
"""Looks up the IP addresses of a target. Raises OSError or UnicodeError if its name has none."""


async def resolve(target: Target) -> Collection[Target]:
    """Look up the IP addresses of a target with the system's resolver. Raises OSError or UnicodeError."""
    found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    return {Target(str(address[0]), target.port) for *_, address in found}


@dataclass(frozen=True, slots=True)
class ReplicaAccess:
    """How the gateway calls the servers: with an API key, and by TLS if it has the authority of their certificates.

    All of them have certificates with the name of the first target. The gateway shows `cert` where it has one.
    """

    api_key: str = ""
    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    def channel(self, uri: str, name: Target) -> grpc.aio.Channel:
        """A channel to the addresses of the URI, whose servers have that name."""
        options = (*_OPTIONS, ("grpc.default_authority", str(name)))
        if self.ca is None:
            return grpc.aio.insecure_channel(uri, options)
        credentials = grpc.ssl_channel_credentials(self.ca, self.key, self.cert)
        return grpc.aio.secure_channel(uri, credentials, (*options, ("grpc.ssl_target_name_override", name.host)))


class ReplicaClient:
    """A gRPC channel to every server that the targets name. Start and close it on the event loop."""

    def __init__(
        self,
        targets: Sequence[Target],
        clock: Clock,
        metrics: Metrics,
        resolve: Resolve = resolve,
        *,
        resolve_every_s: float = _RESOLVE_EVERY_S,
        access: ReplicaAccess | None = None,
    ) -> None:
        self._access = access or ReplicaAccess()
        self._targets = targets
        self._clock = clock
        self._metrics = metrics
        self._resolve = resolve
        self._resolve_every_s = resolve_every_s
        self._found: dict[Target, Collection[Target]] = {}
        self._addresses: set[Target] = set()
        self._methods: dict[str, Any] = {}
        self._resolving: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []  # a task for each channel that is not closed; the last is in use
        self._serving = False
        self._stopped = False
        self._wake = asyncio.Event()  # set while calls need not wait: a server is ready, or `stop` was called

    def __str__(self) -> str:
        return ", ".join(map(str, self._targets))

    def start(self) -> None:
        """Start to resolve the names, each in its own task: a slow name does not delay the others."""
        self._resolving = [asyncio.create_task(self._keep_resolving(target)) for target in self._targets]

    def check_ready(self) -> None:
        """Raise NotReady while no server is ready."""
        if not self._serving:
            raise NotReady(
                f"no inference server at {self} is ready; its models are loading, "
                "or topfive serve does not run there with that gRPC port"
            )

    async def until_ready(self, deadline: float | None = None) -> None:
        """Wait until a server is ready. Raises NotReady at the deadline, ShuttingDown after `stop`."""
        if not self._wake.is_set():
            try:
                async with asyncio.timeout(None if deadline is None else deadline - self._clock.now()):
                    await self._wake.wait()
            except TimeoutError:
                self.check_ready()
        if self._stopped:
            raise ShuttingDown

    async def call(self, method: str, request: Message, deadline: float) -> Any:
        """The reply of a server to `request`. Raises the TopfiveError of the last server that was tried.

        Requests change nothing, so a call is retried once on another server if the connection broke, or if the server
        stops, is at capacity or cannot load the model. A third server is never tried: an image that crashes its server
        must not crash all of them.
        """
        await self.until_ready(deadline)
        try:
            return await self._send(method, request, deadline)
        except (NotReady, Overloaded, ShuttingDown) as error:
            if isinstance(error, Overloaded) and len(self._addresses) == 1:
                raise  # there is no other server
            await self.until_ready(deadline)
            self._metrics.retried(error.code)
            log.info("%s: %s; trying another inference server", current_request_id.get(), error.detail)
            refused_by = refusing_server(error)
        for _ in range(_TRIES):
            try:
                return await self._send(method, request, deadline)
            except Overloaded as error:
                if refused_by is None or refusing_server(error) != refused_by:
                    raise
        return await self._send(method, request, deadline)

    def stop(self) -> None:
        """Refuse the calls that wait for a server, and new ones."""
        self._stopped = True
        self._wake.set()

    async def aclose(self) -> None:
        """Stop, and close the channel once its calls have ended."""
        self.stop()
        for task in (*self._resolving, *self._watching[-1:]):
            task.cancel()
        await asyncio.gather(*self._resolving, *self._watching, return_exceptions=True)

    async def _send(self, method: str, request: Message, deadline: float) -> Any:
        timeout_s = deadline - self._clock.now()
        call = self._methods[method](request, timeout=timeout_s, wait_for_ready=True, metadata=self._access.metadata)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            failure = translated(error)
            if isinstance(failure, DeadlineExceeded):
                self.check_ready()  # until now the call may have waited for a server
            raise failure from error
        except asyncio.CancelledError:
            await call.code()  # waits until gRPC has ended the call: its last event needs this loop
            raise

    async def _keep_resolving(self, target: Target) -> None:
        level = logging.WARNING
        while True:
            try:
                self._found[target] = await self._resolve(target)
                level = logging.WARNING
            except (OSError, UnicodeError) as error:  # while all servers restart, their name may have no address
                log.log(level, "%s has no address (%s); is the name right? It is looked up again", target, error)
                level = logging.DEBUG  # logged once as a warning
            self._connect()
            await asyncio.sleep(self._resolve_every_s)

    def _connect(self) -> None:
        """Open a channel to the resolved addresses, unless they are unchanged.

        Channels of a process share connections: the new channel has the connections of the old one at once.
        """
        addresses = {address for found in self._found.values() for address in found}
        if addresses == self._addresses:
            return
        log.info("inference servers: %s", ", ".join(sorted(map(str, addresses))))
        self._addresses = addresses
        for task in self._watching[-1:]:
            task.cancel()
        channel = self._access.channel(_uri(addresses), self._targets[0])
        stubs = ClassifierStub(channel), GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        self._methods = {name: method for stub in stubs for name, method in vars(stub).items()}
        self._watching = [task for task in self._watching if not task.done()]
        self._watching.append(asyncio.create_task(self._watch(channel)))

    async def _watch(self, channel: grpc.aio.Channel) -> None:
        """Follow the state of the channel until it is replaced, and close it once its calls have ended."""
        try:
            while True:
                state = channel.get_state(try_to_connect=True)
                if state is grpc.ChannelConnectivity.READY and not self._serving:
                    log.info("an inference server is ready")
                    self._serving = True
                    self._wake.set()
                elif state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and self._serving:
                    log.warning("no inference server is ready")
                    self._serving = False
                    if not self._stopped:
                        self._wake.clear()
                await channel.wait_for_state_change(state)  # while it connects nothing changes: gRPC queues its calls
        finally:
            await channel.close(_SETTLE_S)


def _uri(addresses: Collection[Target]) -> str:
    """The addresses as a gRPC target. A list has one address family, so IPv4 is mapped to IPv6."""
    hosts = ((one.host if ":" in one.host else f"::ffff:{one.host}", one.port) for one in addresses)
    return "ipv6:" + ",".join(f"[{host}]:{port}" for host, port in hosts)
