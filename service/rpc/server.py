"""The gRPC server: the servicer, `grpc.health.v1` with Watch, and reflection."""

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1 import classifier_pb2_grpc
from service.rpc.servicer import Servicer

MAX_MESSAGE_BYTES = 64 << 20
SERVICE: str = pb.DESCRIPTOR.services_by_name["Classifier"].full_name

_FLUSH_S = 0.1  # for the last replies to leave
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port fails
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 1024),  # of one connection; later calls wait at the client, not in memory here
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # gateways ping every 10 s to detect a lost host
)


class RpcServer:
    """A grpc.aio server, bound when it is made. `port` is the real one. Raises OSError if it cannot be bound."""

    def __init__(self, servicer: Servicer, host: str, port: int) -> None:
        self._servicer = servicer
        self._server = grpc.aio.server(options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        classifier_pb2_grpc.add_ClassifierServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"gRPC cannot listen on {address}; is another server there? Choose another --grpc-port"
            ) from error

    async def start(self) -> None:
        """Accept calls. Health checks report NOT_SERVING until `set_serving`."""
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        values = health_pb2.HealthCheckResponse
        status = values.SERVING if serving else values.NOT_SERVING
        for name in (health.OVERALL_HEALTH, SERVICE):
            await self._health.set(name, status)

    async def stop(self, over: asyncio.Task[None]) -> None:
        """Refuse new images, answer accepted ones until `over`, then end every call, also of health watchers."""
        self._servicer.close()
        while self._servicer.owed and not over.done():
            await asyncio.wait({over}, timeout=0.02)
        await self._server.stop(_FLUSH_S)
