"""The engine process of a service with fronts in the test's process; the fronts are real ones."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx

from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from service.common.metrics import Metrics
from service.common.settings import Settings
from service.front.fronts import Fronts
from service.server.app import Core
from tests.fakes import FakeEngine, opener
from tests.fleet import Counted


@dataclass(frozen=True, slots=True)
class Fronted(Counted):
    """A started service with fronts, and a client of each transport."""

    core: Core
    service: Fronts
    http: httpx.AsyncClient
    stub: ClassifierStub
    metrics: Metrics

    @property
    def url(self) -> str:
        """Of REST."""
        return str(self.http.base_url)

    def places(self) -> int:
        """Places taken at the batcher of `tiny`."""
        return self.core.repository._loaded["tiny"].batcher.places


@asynccontextmanager
async def fronted(artifacts: Path, engine: FakeEngine, gateways: int = 2, **settings: object) -> AsyncIterator[Fronted]:
    """A service of `tiny` on `engine` behind so many fronts, ready."""
    values = {"models": ("tiny",), "port": 0, "grpc_port": 0, "cpus": 2, "drain_s": 5.0, "recover_s": 0.05, **settings}
    core = Core(
        Settings.model_validate({"artifacts": artifacts, "gateways": gateways, **values}), opener=opener(engine)
    )
    service = Fronts(core)
    await service.start()
    try:
        async with asyncio.timeout(60):
            await service.load()
        options = (("grpc.max_send_message_length", 1 << 30), ("grpc.use_local_subchannel_pool", 1))
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=30) as http,
            grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}", options=options) as channel,
        ):
            stub = ClassifierStub(channel)  # type: ignore[no-untyped-call]
            yield Fronted(core, service, http, stub, core.metrics)
    finally:
        engine.gate.set()
        await service.stop(asyncio.Event())
