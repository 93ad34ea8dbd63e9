"""The gRPC server: the servicers, `grpc.health.v1` with Watch, and reflection."""

import asyncio
import resource
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from proto.inference import grpc_service_pb2
from proto.inference.grpc_service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1 import classifier_pb2_grpc
from service.common.api_keys import ApiKeys
from service.common.tls import ServerTls
from service.inference.dataplane import DataPlane
from service.rpc import v2
from service.rpc.in_flight import RequestsInFlight
from service.rpc.key_interceptor import KeyInterceptor
from service.rpc.message_limit import MessageLimit
from service.rpc.servicer import SERVICE, Servicer
from service.rpc.v2 import InferenceServicer

_NEVER_MS = (1 << 31) - 1
_FLUSH_S = 0.1  # for the last replies to leave
_ENVELOPE_BYTES = 1 << 20  # the fields of a message beside its image
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port fails
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: gRPC inflates a message before it looks at its size
    ("grpc.http2.bdp_probe", 0),  # it lets a client send 15 MB of a message that nobody reads
    ("grpc.http2.lookahead_bytes", 256 << 10),
    ("grpc.max_concurrent_streams", 1024),  # of one connection; later calls wait at the client, not in memory here
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # gateways look every 10 s whether the host still is there
    ("grpc.keepalive_permit_without_calls", 1),  # else pings of a client without calls end its connection
    ("grpc.keepalive_time_ms", 60_000),  # a client's host that vanishes closes no connection
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """Limits of messages and connections.

    `max_read_bytes` at the largest message size gives a number of places for each service, at least one. A unary call
    holds a place while its message is read, and further calls wait. A stream holds one until it ends, and further
    streams are refused. `MessageLimit` shares the places among clients. The server closes a connection without calls
    after `idle_s`, and any connection after `age_s` (0: never). Its calls then have `grace_s` to end.
    """

    max_image_bytes: int
    max_read_bytes: int
    idle_s: float
    age_s: float
    grace_s: float

    @property
    def max_message_bytes(self) -> int:
        return self.max_image_bytes + _ENVELOPE_BYTES

    @property
    def options(self) -> tuple[tuple[str, int], ...]:
        """The options of the server, with those that no setting changes."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            *_OPTIONS,
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_connection_idle_ms", round(self.idle_s * 1000)),
            ("grpc.max_connection_age_ms", round(self.age_s * 1000) if self.age_s else _NEVER_MS),
            ("grpc.max_connection_age_grace_ms", round(self.grace_s * 1000)),
            ("grpc.max_allowed_incoming_connections", max(1, descriptors // 2)),  # the rest is for REST and files
        )


class RpcServer:
    """A grpc.aio server, bound when it is made. `port` is the real one. Raises OSError if it cannot be bound."""

    def __init__(
        self,
        data_plane: DataPlane,
        in_flight: RequestsInFlight,
        host: str,
        port: int,
        limits: RpcLimits,
        keys: ApiKeys | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        self._in_flight = in_flight
        limit = MessageLimit(max(1, limits.max_read_bytes // limits.max_message_bytes))
        self._server = grpc.aio.server(
            interceptors=[*([KeyInterceptor(keys)] if keys else []), limit], options=limits.options
        )
        self._health = health.aio.HealthServicer()
        classifier, inference = Servicer(data_plane, in_flight), InferenceServicer(data_plane, in_flight)
        classifier_pb2_grpc.add_ClassifierServicer_to_server(classifier, self._server)  # type: ignore[no-untyped-call]
        add_GRPCInferenceServiceServicer_to_server(inference, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, v2.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, _descriptors())
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port: int = self._listen(address, tls)
        except RuntimeError as error:
            raise OSError(
                f"gRPC cannot listen on {address}; is another server there? Choose another --grpc-port"
            ) from error

    def _listen(self, address: str, tls: ServerTls | None) -> int:
        """Listen on that address, by TLS if given. Each handshake uses the present certificates."""
        if tls is None:
            return self._server.add_insecure_port(address)

        def current() -> grpc.ServerCertificateConfiguration:
            material = tls.material
            return grpc.ssl_server_certificate_configuration([(material.key, material.cert)], material.client_ca)

        with_client = tls.material.client_ca is not None
        credentials = grpc.dynamic_ssl_server_credentials(current(), current, with_client)
        return self._server.add_secure_port(address, credentials)

    async def start(self) -> None:
        """Accept calls. Health checks report NOT_SERVING until `set_serving`."""
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        values = health_pb2.HealthCheckResponse
        status = values.SERVING if serving else values.NOT_SERVING
        for name in (health.OVERALL_HEALTH, SERVICE, v2.SERVICE):
            await self._health.set(name, status)

    async def stop(self, over: asyncio.Task[None]) -> None:
        """Refuse new images, answer accepted ones until `over`, then end every call, also of health watchers."""
        self._in_flight.close()
        while self._in_flight.owed and not over.done():
            await asyncio.wait({over}, timeout=0.02)
        await self._server.stop(_FLUSH_S)


def _descriptors() -> DescriptorPool:
    """The contracts of all services in one pool, for reflection: that of the inference protocol is in another."""
    pool = DescriptorPool()
    for contract in (pb, grpc_service_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(contract.DESCRIPTOR.serialized_pb)
    return pool
