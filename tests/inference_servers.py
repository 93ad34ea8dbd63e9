"""Inference servers that do what they are told, and what asks them: calls over replicas, and a whole gateway."""

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
from service.gateway.classifier import RemoteClassifier
from service.gateway.load_balancer import Replicas, parse_targets
from service.gateway.retries import Calls
from service.inference.dataplane import ClassifyOptions
from service.rpc.server import SERVICE
from service.server.gateway import Gateway
from tests.exposition import value

Context = grpc.aio.ServicerContext[Any, Any]
Step = Callable[[Context], Awaitable[None]]


def refusing(status: grpc.StatusCode, detail: str, *trailing: tuple[str, str]) -> Step:
    """A step that ends the call so."""

    async def refuse(context: Context) -> None:
        await context.abort(status, detail, trailing)

    return refuse


class Inference(ClassifierServicer):
    """Answers every image with one class, after the next step of its `script`; notes each call's time left."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.script: list[Step] = []
        self.left_s: list[float] = []
        self.port = 0
        self.health = health.aio.HealthServicer()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def calls(self) -> int:
        return len(self.left_s)

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyReply:  # noqa: N802
        self.left_s.append(context.time_remaining() or 0.0)
        if self.script:
            await self.script.pop(0)(context)
        best = pb.Prediction(rank=1, label=self.label, probability=1.0, class_id=len(request.image))
        return pb.ClassifyReply(predictions=[best], model=pb.Model(name="tiny"))

    async def serving(self, ready: bool | None) -> None:
        """Say so to those who watch; None says that it knows no such service."""
        values = health_pb2.HealthCheckResponse
        said = {True: values.SERVING, False: values.NOT_SERVING, None: values.SERVICE_UNKNOWN}
        await self.health.set(SERVICE, said[ready])

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Inference"]:
        """As a server, ready, on the port it had before or on a free one."""
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 1 << 30), ("grpc.so_reuseport", 0)])
        add_ClassifierServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        self.port = server.add_insecure_port(self.address)
        await self.serving(True)
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


@dataclass(frozen=True, slots=True)
class Asking:
    """What asks inference servers."""

    replicas: Replicas
    metrics: Metrics
    classifier: RemoteClassifier

    async def classify(self, data: bytes = b"photo", *, within_s: float = 10.0) -> Classification:
        """The answer of any of them."""
        return await self.classifier.classify(data, None, ClassifyOptions(LoopClock().now() + within_s))

    async def label(self, data: bytes = b"photo", *, within_s: float = 10.0) -> str:
        """Which of them answered."""
        return (await self.classify(data, within_s=within_s)).predictions[0].label

    async def ready(self, count: int) -> None:
        """Once so many of them are ready."""
        async with asyncio.timeout(20):
            while len(self.replicas.serving) != count:
                await self.replicas.change(1)

    def retried(self, code: str) -> float:
        """How many calls were sent again because of that."""
        return value(self.metrics, "topfive_retries_total", code=code) or 0.0


@asynccontextmanager
async def asking(replicas: Replicas, ready: int) -> AsyncIterator[Asking]:
    """A classifier over these replicas, once so many of them are ready."""
    metrics = Metrics()
    one = Asking(replicas, metrics, RemoteClassifier(Calls(replicas, LoopClock(), metrics), metrics))
    replicas.start()
    try:
        await one.ready(ready)
        yield one
    finally:
        await replicas.aclose()


@asynccontextmanager
async def asked(*servers: Inference) -> AsyncIterator[Asking]:
    """Those servers, all ready, and what asks them."""
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server.listening())
        targets = parse_targets(",".join(server.address for server in servers))
        yield await stack.enter_async_context(asking(Replicas(targets), len(servers)))


@dataclass(frozen=True, slots=True)
class Fronted:
    """A gateway and its client."""

    gateway: Gateway
    http: httpx.AsyncClient


@asynccontextmanager
async def gateway(ports: Sequence[int], *, load: bool = True, **settings: object) -> AsyncIterator[Fronted]:
    """A gateway in this process, in front of the servers on these ports."""
    values = Settings.model_validate({"port": 0, "drain_s": 5.0, **settings})
    front = Gateway(values, parse_targets(",".join(f"127.0.0.1:{port}" for port in ports)))
    await front.start()
    try:
        if load:
            async with asyncio.timeout(20):
                await front.load()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.rest.port}", timeout=30) as http:
            yield Fronted(front, http)
    finally:
        await front.stop(asyncio.Event())
