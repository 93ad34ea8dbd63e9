"""The event loop answers everybody, so nothing may keep it: no turn takes more than two milliseconds of CPU time."""

import asyncio
import hashlib
import json
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import httpx
import pytest

from loadgen.http_connection import ServerAddress
from loadgen.images import EncodedImage
from loadgen.target import RequestFormat, ServerApi, image_request
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.serving import serving
from tests.watchdog import LONGEST_S, longest

pytestmark = pytest.mark.anyio

MODELS = 35
DEEPEST = 1000
LARGE = png(3) + bytes(30_000_000)


@dataclass(frozen=True, slots=True)
class Client:
    """Both transports from another thread, so that only the server's work is on the event loop."""

    http: httpx.Client
    stub: ClassifierStub
    port: int

    def send(self, request: bytes) -> bytes:
        """A whole HTTP request as it stands, and the start of its answer."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(request)
            return connection.recv(64)


def photo_request(api: ServerApi) -> bytes:
    """A whole HTTP request that sends the large photo."""
    return image_request(
        RequestFormat(api), ServerAddress.parse("localhost"), EncodedImage("photo.png", LARGE, None, "image/png")
    )


@pytest.fixture
def many(artifacts: Path) -> Path:
    """As many exported models as the catalog has: copies of `tiny` under other names."""
    for number in range(MODELS - 1):
        folder = artifacts / f"copy{number}"
        shutil.copytree(artifacts / "tiny", folder)
        manifest = folder / "1" / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "name": folder.name}))
    _deepen(artifacts / "copy0")
    return artifacts


def _deepen(folder: Path) -> None:
    """Give that exported model more layers than any of the catalog has."""
    table = folder / "1" / "layers.json"
    known = json.loads(table.read_text())
    table.write_text(json.dumps({**known, "layers": known["layers"] * (DEEPEST // len(known["layers"]))}))
    manifest = folder / "1" / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"][table.name] = hashlib.sha256(table.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(facts))


@pytest.fixture
async def client(many: Path) -> AsyncIterator[Client]:
    """Of a service of many models, of which one is loaded and one is deep."""
    async with serving(many, FakeEngine(), models=("tiny",)) as running:
        with (
            httpx.Client(base_url=running.http.base_url, timeout=30) as http,
            grpc.insecure_channel(f"127.0.0.1:{running.service.rpc.port}") as channel,
        ):
            yield Client(http, ClassifierStub(channel), running.service.rest.port)  # type: ignore[no-untyped-call]


async def test_the_watchdog_sees() -> None:
    """Work on the loop is found and named, waiting is not work."""

    async def work() -> None:
        end = time.thread_time() + 2 * LONGEST_S
        while time.thread_time() < end:
            pass

    found = await longest(work)

    assert found.longest_s >= 2 * LONGEST_S


REQUESTS: dict[str, Callable[[Client], object]] = {
    "multipart": lambda to: to.http.post("/predict", files={"image": png(1)}).raise_for_status(),
    "raw": lambda to: to.http.post("/predict", content=png(1), headers={"content-type": "image/png"}),
    "30 MB multipart": lambda to: to.send(photo_request(ServerApi.MULTIPART)),
    "30 MB raw": lambda to: to.send(photo_request(ServerApi.TOPFIVE)),
    "not an image": lambda to: to.http.post("/predict", files={"image": b"no"}),
    "no such model": lambda to: to.http.post("/predict?model=nothing", files={"image": png(1)}),
    "a model to load": lambda to: to.http.post("/predict?model=copy3", files={"image": png(1)}).raise_for_status(),
    "an ensemble": lambda to: to.http.post("/predict?model=ensemble:copy1%2Bcopy2", files={"image": png(1)}),
    "ten crops": lambda to: to.http.post("/predict?crops=10", files={"image": png(1)}).raise_for_status(),
    "compare": lambda to: to.http.post("/compare?model=tiny,copy1,copy2,nothing", files={"image": png(1)}),
    "models": lambda to: to.http.get("/models").raise_for_status(),
    "a loaded model": lambda to: to.http.get("/models/tiny").raise_for_status(),
    "another model": lambda to: to.http.get("/models/copy20").raise_for_status(),
    "layers": lambda to: to.http.get("/models/tiny/layers").raise_for_status(),
    "many layers": lambda to: to.http.get("/models/copy0/layers").raise_for_status(),
    "metrics": lambda to: to.http.get("/metrics").raise_for_status(),
    "health": lambda to: (to.http.get("/livez"), to.http.get("/readyz").raise_for_status()),
    "documentation": lambda to: (to.http.get("/docs"), to.http.get("/openapi.json").raise_for_status()),
    "gRPC": lambda to: to.stub.Classify(pb.ClassifyRequest(image=png(1))),
    "gRPC, 500 kB": lambda to: to.stub.Classify(pb.ClassifyRequest(image=LARGE[:500_000])),
    "gRPC, compare": lambda to: to.stub.Compare(pb.CompareRequest(image=png(1), models=["tiny", "copy1"])),
    "gRPC, models": lambda to: to.stub.ListModels(pb.ListModelsRequest()),
    "gRPC, a model": lambda to: to.stub.GetModel(pb.GetModelRequest(name="copy20")),
    "gRPC, layers": lambda to: to.stub.GetLayers(pb.GetLayersRequest(name="tiny")),
    "gRPC, many layers": lambda to: to.stub.GetLayers(pb.GetLayersRequest(name="copy0")),
}


async def test_no_long_turn(client: Client) -> None:
    """Whatever is asked, of however large an image or however many models."""
    long = {}
    for name, request in REQUESTS.items():
        found = await longest(partial(asyncio.to_thread, request, client))
        if found.longest_s > LONGEST_S:
            long[name] = f"{found.longest_s * 1000:.1f} ms: {found.what}"

    assert long == {}
