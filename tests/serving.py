"""A whole service in the test's process: both transports on free ports, over an engine of the test's choice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from service.batching.batcher import Batcher
from service.common.errors import TABLE, Code
from service.common.settings import Settings
from service.common.types import Probabilities, Sample
from service.engines.selection.opening import Choice, OpenEngine
from service.inference.local import LocalDataPlane
from service.server.app import Service
from service.server.data_plane import build_data_plane
from tests.conftest import png
from tests.fakes import FakeEngine, opener, reached

PNG = {"content-type": "image/png"}
"""The header of a request whose body is an image."""


@dataclass(frozen=True, slots=True)
class RestClient:
    """A client of REST."""

    http: httpx.AsyncClient

    async def rest(self, path: str, image: bytes | None = None, **query: Any) -> dict[str, Any]:
        """The reply of REST to an image, or to a question without one; of a problem its code and its detail.

        A parameter of None is left out.
        """
        params = {name: value for name, value in query.items() if value is not None}
        files = None if image is None else {"image": ("a.jpg", image)}
        answer = await self.http.request("POST" if files else "GET", path, params=params or None, files=files)
        body: dict[str, Any] = answer.json()
        if answer.status_code == 200:
            return body
        assert answer.status_code == TABLE[Code(body["code"])].http
        return {"code": body["code"], "detail": body["detail"]}


@dataclass(frozen=True, slots=True)
class Running(RestClient):
    """A started service and a client of each transport."""

    data_plane: LocalDataPlane
    service: Service
    channel: grpc.aio.Channel
    stub: ClassifierStub

    async def rpc(self, request: Message) -> dict[str, Any]:
        """The reply of gRPC, all fields of the message; of an error its code and its detail."""
        call = getattr(self.stub, type(request).__name__.removesuffix("Request"))
        try:
            return as_dict(await call(request))
        except grpc.aio.AioRpcError as error:
            code = str(dict(error.trailing_metadata())["topfive-code"])
            status, detail = error.code().name, error.details()
        assert status == TABLE[Code(code)].grpc
        return {"code": code, "detail": detail}

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the port of REST."""
        return await asyncio.open_connection("127.0.0.1", self.service.rest.port)


def as_dict(message: Message) -> dict[str, Any]:
    """The fields of a message under their own names, those that are zero or empty among them."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def comparable(value: Any) -> Any:
    """The reply without what differs from call to call, and 64-bit numbers as numbers."""
    if isinstance(value, dict):
        left_out = ("request_id", "timing_ms", "latency_ms", "probability", "batch_size", "status")
        return {key: comparable(item) for key, item in value.items() if key not in left_out and item not in (None, "")}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return int(value) if isinstance(value, str) and value.isdecimal() else value


@asynccontextmanager
async def busy(running: Running, engine: FakeEngine) -> AsyncIterator[Batcher[Sample, Probabilities]]:
    """The batcher of `tiny` while its engine is busy with an image, which is answered at the end of the block."""
    engine.gate.clear()
    batcher = (await running.data_plane.repository.get("tiny")).batcher
    first = asyncio.create_task(running.http.post("/predict", content=png(1), headers=PNG))
    await reached(lambda: batcher.in_flight == 1)
    try:
        yield batcher
    finally:
        engine.gate.set()
        assert (await first).status_code == 200


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

    It answers under any host name. `open_engine` opens what it runs on otherwise than settings do.
    """
    values = {"models": ("tiny",), "port": 0, "grpc_port": 0, "cpus": 2, "drain_s": 5.0, "recover_s": 0.05, **settings}
    folders = {"artifacts": artifacts, "cache": artifacts.parent / "cache"}
    given = Settings.model_validate({"allowed_hosts": "*", **folders, **values})
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
            yield Running(http, data_plane, service, channel, ClassifierStub(channel))  # type: ignore[no-untyped-call]
    finally:
        await service.stop(asyncio.Event())
