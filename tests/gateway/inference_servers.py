"""Inference servers that follow a script, and their clients: the data plane of a gateway, and a whole gateway."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server
from service.common.clock import LoopClock
from service.common.metrics import Metrics
from service.common.settings import Settings
from service.common.types import Classification
from service.gateway.dataplane import GatewayDataPlane
from service.gateway.replicas import ReplicaAccess, ReplicaClient, Target, parse_targets
from service.inference.dataplane import ClassifyOptions
from service.server.gateway import Gateway
from tests.exposition import value
from tests.serving import RestClient

SERVICE = pb.DESCRIPTOR.services_by_name["Classifier"].full_name

Context = grpc.aio.ServicerContext[Any, Any]
Step = Callable[[Context], Awaitable[None]]


def refusing(status: grpc.StatusCode, detail: str, *trailing: tuple[str, str]) -> Step:
    """A step that ends the call with that status."""

    async def refuse(context: Context) -> None:
        await context.abort(status, detail, trailing)

    return refuse


class Inference(ClassifierServicer):
    """Answers every image with one class, after the next step of its `script`. `left_s` has the time of each call.

    An image `poison` ends it with all its connections.
    """

    def __init__(self, label: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.label = label
        self.host = host
        self.port = port
        self.script: list[Step] = []
        self.left_s: list[float] = []
        self.health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def target(self) -> Target:
        return Target(self.host, self.port)

    @property
    def calls(self) -> int:
        return len(self.left_s)

    @property
    def alive(self) -> bool:
        return not self._ending

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyReply:  # noqa: N802
        self.left_s.append(context.time_remaining() or 0.0)
        if request.image == b"poison" and self._server is not None:
            self._ending.add(asyncio.create_task(self._server.stop(None)))
            await asyncio.Event().wait()
        if self.script:
            await self.script.pop(0)(context)
        best = pb.Prediction(rank=1, label=self.label, probability=1.0, class_id=len(request.image))
        return pb.ClassifyReply(predictions=[best], model=pb.Model(name="tiny"))

    async def set_ready(self, ready: bool) -> None:
        """Tell the watchers of its health."""
        values = health_pb2.HealthCheckResponse
        await self.health.set(SERVICE, values.SERVING if ready else values.NOT_SERVING)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Inference"]:
        """Listen, ready, on the port that it had before or on a free one."""
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", 1 << 30), ("grpc.so_reuseport", 0)])
        add_ClassifierServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.port = self._server.add_insecure_port(str(self.target))
        await self.set_ready(True)
        await self._server.start()
        try:
            yield self
        finally:
            await self._server.stop(None)


@dataclass(frozen=True, slots=True)
class Plane:
    """The data plane of a gateway, and the calls of the tests."""

    replicas: ReplicaClient
    metrics: Metrics
    data_plane: GatewayDataPlane

    async def classify(self, data: bytes = b"photo", *, within_s: float = 10.0) -> Classification:
        """The answer of any server."""
        return await self.data_plane.classify(data, None, ClassifyOptions(LoopClock().now() + within_s))

    async def label(self, data: bytes = b"photo", *, within_s: float = 10.0) -> str:
        """The label of the server that answers."""
        return (await self.classify(data, within_s=within_s)).predictions[0].label

    async def until_called(self, *servers: Inference) -> None:
        """Call until each of these servers has answered and no other does, then forget their calls."""
        wanted, count = {server.label for server in servers}, 2 * len(servers)
        async with asyncio.timeout(20):
            while {await self.label() for _ in range(count)} != wanted:
                pass
        for server in servers:
            server.left_s.clear()

    def retried(self, code: str) -> float:
        """How many calls were sent again because of that error."""
        return value(self.metrics, "topfive_retries_total", code=code) or 0.0


@asynccontextmanager
async def plane_of(targets: Sequence[Target], **options: Any) -> AsyncIterator[Plane]:
    """A data plane over the servers of these targets; `options` are those of ReplicaClient."""
    clock, metrics = LoopClock(), Metrics()
    replicas = ReplicaClient(targets, clock, metrics, **options)
    replicas.start()
    try:
        yield Plane(replicas, metrics, GatewayDataPlane(replicas, clock, metrics, timeout_s=10.0))
    finally:
        await replicas.aclose()


@asynccontextmanager
async def connected(*servers: Inference) -> AsyncIterator[Plane]:
    """Those servers, all ready, and a data plane that is connected to each."""
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server.listening())
        plane = await stack.enter_async_context(plane_of([server.target for server in servers]))
        await plane.until_called(*servers)
        yield plane


@dataclass(frozen=True, slots=True)
class RunningGateway(RestClient):
    """A gateway and its client."""

    gateway: Gateway


@asynccontextmanager
async def gateway(
    *ports: int, load: bool = True, access: ReplicaAccess | None = None, host: str = "127.0.0.1", **settings: object
) -> AsyncIterator[RunningGateway]:
    """A gateway in this process, in front of the servers on these ports."""
    values = Settings.model_validate({"port": 0, "drain_s": 5.0, **settings})
    front = Gateway(values, parse_targets(",".join(f"{host}:{port}" for port in ports)), access or ReplicaAccess())
    await front.start()
    try:
        if load:
            async with asyncio.timeout(20):
                await front.load()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.rest.port}", timeout=30) as http:
            yield RunningGateway(http, front)
    finally:
        await front.stop(asyncio.Event())
