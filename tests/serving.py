"""A whole service in the test's process: both transports on free ports, over an engine of the test's choice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx

from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from service.common.settings import Settings
from service.engines.selection.opening import Choice, OpenEngine
from service.inference.local import LocalDataPlane
from service.server.app import Service
from service.server.data_plane import build_data_plane
from tests.fakes import FakeEngine, opener


@dataclass(frozen=True, slots=True)
class Running:
    """A started service and a client of each transport."""

    settings: Settings
    data_plane: LocalDataPlane
    service: Service
    http: httpx.AsyncClient
    channel: grpc.aio.Channel
    stub: ClassifierStub


@asynccontextmanager
async def serving(
    artifacts: Path,
    engine: FakeEngine | None = None,
    *,
    load: bool = True,
    choice: Choice | None = None,
    open_engine: OpenEngine | None = None,
    **settings: object,
) -> AsyncIterator[Running]:
    """A service of the models in `artifacts`; with `engine` it runs on that, chosen so, instead of a real one.

    `open_engine` opens what it runs on otherwise than settings do.
    """
    values = {"models": ("tiny",), "port": 0, "grpc_port": 0, "cpus": 2, "drain_s": 5.0, "recover_s": 0.05, **settings}
    given = Settings.model_validate({"artifacts": artifacts, "cache": artifacts.parent / "cache", **values})
    data_plane = build_data_plane(given, open_engine=opener(engine, choice) if engine else open_engine)
    service = Service(given, data_plane)
    await service.start()
    try:
        if load:
            await service.load()
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.rest.port}", timeout=30) as http,
            grpc.aio.insecure_channel(
                f"127.0.0.1:{service.rpc.port}", options=(("grpc.max_send_message_length", 1 << 30),)
            ) as channel,
        ):
            yield Running(given, data_plane, service, http, channel, ClassifierStub(channel))  # type: ignore[no-untyped-call]
    finally:
        await service.stop(asyncio.Event())
