"""deploy/nginx.conf in front of a whole service: what reaches the service, and what ends at nginx."""

import asyncio
import io
import json
import re
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from PIL import Image

from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from tests.compose.docker import free_port
from tests.conftest import noise, png
from tests.fakes import FakeEngine, reached
from tests.server.test_tls import issue
from tests.serving import PNG, Running, comparable, serving

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
]

CONF = Path(__file__).resolve().parents[2] / "deploy" / "nginx.conf"
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n"
PLACES = 32  # of an address


def noise_png(side: int) -> bytes:
    """A PNG of about three bytes a pixel."""
    file = io.BytesIO()
    Image.fromarray(noise(side, side)).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True, slots=True)
class Nginx:
    """nginx on free ports; those of TLS are in comments of its file."""

    rest: int
    grpc: int
    rest_tls: int
    grpc_tls: int

    def http(self, address: str = "127.0.0.1", **options: Any) -> httpx.AsyncClient:
        """A client of REST with that address of its own."""
        transport = httpx.AsyncHTTPTransport(local_address=address, **options)
        return httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{self.rest}", timeout=30)

    async def connect(self, address: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to REST from that address."""
        return await asyncio.open_connection("127.0.0.1", self.rest, local_addr=(address, 0))


def configured(folder: Path, nginx: Nginx, rest: int, rpc: int, *, tls: bool) -> Path:
    """A copy of the file with other addresses and, if asked for, its lines for TLS with certificates of the folder."""
    text = CONF.read_text()
    for old, new in {
        " topfive:8000;": f" 127.0.0.1:{rest};",
        " topfive:8001;": f" 127.0.0.1:{rpc};",
        " listen 8080;": f" listen 127.0.0.1:{nginx.rest};",
        " listen 8081 ": f" listen 127.0.0.1:{nginx.grpc} ",
        "# listen 8443 ": f"listen 127.0.0.1:{nginx.rest_tls} " if tls else "#",
        "# listen 8444 ": f"listen 127.0.0.1:{nginx.grpc_tls} " if tls else "#",
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    if tls:
        text = text.replace("# ssl_certificate", "ssl_certificate").replace("/etc/nginx/tls", str(folder))
    copy = folder / "nginx.conf"
    copy.write_text(text)
    return copy


@asynccontextmanager
async def started(folder: Path, rest: int, rpc: int = 9, *, tls: bool = False) -> AsyncIterator[Nginx]:
    """nginx in front of these ports of this machine."""
    nginx = Nginx(free_port(), free_port(), free_port(), free_port())
    conf = configured(folder, nginx, rest, rpc, tls=tls)
    command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(conf), "-g", "daemon off; user root root;"]
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(30):
            while True:
                assert process.returncode is None, (folder / "log").read_text()
                try:
                    (await nginx.connect())[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.01)
        yield nginx
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def behind(running: Running, folder: Path, *, tls: bool = False) -> AsyncIterator[Nginx]:
    """nginx in front of a service."""
    async with started(folder, running.service.rest.port, running.service.rpc.port, tls=tls) as nginx:
        yield nginx


async def test_answers(exported: Path, tmp_path: Path) -> None:
    """REST and gRPC answer as without nginx: a photo of 5 MB, a stream, and an error of the service."""
    image = noise_png(1300)
    assert len(image) > 5_000_000
    async with (
        serving(exported) as running,
        behind(running, tmp_path) as nginx,
        nginx.http() as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{nginx.grpc}") as channel,
    ):
        direct = await running.rest("/predict", image)
        answer = (await http.post("/predict", files={"image": image})).json()
        refused = await http.post("/predict", content=b"no image", headers=PNG)
        stub = ClassifierStub(channel)  # type: ignore[no-untyped-call]
        reply = await stub.Classify(pb.ClassifyRequest(image=image))
        rows = [row async for row in stub.ClassifyStream(iter([pb.ClassifyRequest(image=png(n)) for n in range(200)]))]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Classify(pb.ClassifyRequest(image=b"no image"))

    assert comparable(answer) == comparable(direct)
    assert reply.predictions[0].label == direct["predictions"][0]["label"]
    assert len([row for row in rows if row.HasField("reply")]) == 200
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_image")
    assert dict(failed.value.trailing_metadata() or ())["topfive-code"] == "bad_image"


async def test_client_address(exported: Path, tmp_path: Path) -> None:
    """The service shares its memory among the clients of nginx, not with nginx: each address has a share of its own."""
    image, engine = noise_png(60), FakeEngine()
    one, other = "127.0.0.2", "127.0.0.3"
    limit = round(len(image) * 2.3)
    async with (
        serving(exported, engine, max_upload_bytes=limit, forwarded_allow_ips="127.0.0.1") as running,
        behind(running, tmp_path) as nginx,
        nginx.http(one) as first,
        nginx.http(other) as second,
    ):
        batcher = (await running.data_plane.repository.get("tiny")).batcher
        engine.gate.clear()
        held = [asyncio.create_task(first.post("/predict", content=image, headers=PNG))]
        await reached(lambda: batcher.in_flight == 1)
        forged = await first.post("/predict", content=image, headers=PNG | {"X-Forwarded-For": other})
        held.append(asyncio.create_task(second.post("/predict", content=image, headers=PNG)))
        await reached(lambda: batcher.depth == 1)
        engine.gate.set()
        answers = [(await one).status_code for one in held]

    assert (forged.status_code, answers) == (429, [200, 200])


async def test_prefix_and_tls(exported: Path, tmp_path: Path) -> None:
    """`/docs` works under the prefix of the service, over TLS too; what a client says of proxies is not believed."""
    authority = issue(tmp_path).ca
    roots = grpc.ssl_channel_credentials(authority.read_bytes())
    forged = {"X-Forwarded-Prefix": "/evil", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    async with (
        serving(exported, FakeEngine(), root_path="/vision", forwarded_allow_ips="127.0.0.1") as running,
        behind(running, tmp_path, tls=True) as nginx,
        nginx.http(verify=ssl.create_default_context(cafile=authority)) as http,
        grpc.aio.secure_channel(f"localhost:{nginx.grpc_tls}", roots) as channel,
    ):
        url = f"https://localhost:{nginx.rest_tls}/vision"
        page = (await http.get("/vision/docs")).text
        script = await http.get(f"{url}/static-offline-docs/swagger-ui-bundle.js")
        document = await http.get(f"{url}/openapi.json")
        refused = (await http.post(f"{url}/predict", headers=forged)).json()
        metrics = await http.get(f"{url}/metrics")
        reply = await ClassifierStub(channel).Classify(pb.ClassifyRequest(image=png(3)))  # type: ignore[no-untyped-call]

    assert "'/vision/openapi.json'" in page
    assert (script.status_code, document.json()["servers"]) == (200, [{"url": "/vision"}])
    assert f"curl -F image=@cat.jpg '{url}/predict'" in refused["detail"]
    assert metrics.status_code == 404
    assert reply.predictions[0].rank == 1


async def answered(nginx: Nginx, request: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and JSON of the answer to these bytes."""
    reader, writer = await nginx.connect()
    writer.write(request)
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body: dict[str, Any] = json.loads(await reader.readexactly(int(headers["content-length"])))
    writer.close()
    return int(status.split()[1]), headers, body


GET = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        pytest.param(HEAD + b"Content-Length: 34603009\r\n\r\n", 413, "too_large", id="a body of 33 MiB and a byte"),
        pytest.param(b"garbage\r\n\r\n", 400, "bad_request", id="no HTTP"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request", id="no host"),
        pytest.param(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "bad_request", id="two lengths"),
        pytest.param(GET % (b"/ HTTP/1.1\r\nX: " + b"x" * 40_000), 431, "bad_request", id="a large header"),
        pytest.param(GET % (b"/" + b"x" * 40_000), 414, "bad_request", id="a long path"),
        pytest.param(GET % b"/metrics", 404, "not_found", id="metrics"),
        pytest.param(GET % b"/%6Detrics?x", 404, "not_found", id="metrics, escaped"),
        pytest.param(GET % b"/x/..//metrics/", 404, "not_found", id="metrics, by a detour"),
        pytest.param(GET % b"/problem", 404, "not_found", id="a path of nginx"),
        pytest.param(GET % b"/readyz", 503, "not_ready", id="no service"),
    ],
)
async def test_problems(tmp_path: Path, request_: bytes, status: int, code: str) -> None:
    """The errors of nginx are problem details as the service's are."""
    async with started(tmp_path, free_port()) as nginx:
        found, headers, body = await answered(nginx, request_)

    assert (found, body["status"], body["code"]) == (status, status, code)
    assert set(body) == {"type", "title", "status", "code", "detail", "request_id"}
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == body["request_id"]
    assert ("retry-after" in headers) == (status == 503)


async def test_slow_clients(tmp_path: Path) -> None:
    """A head or a body that stops is ended by nginx, and the service sees no connection for it."""
    connections = 0

    async def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    async def stops(nginx: Nginx, sent: bytes) -> bytes:
        reader, writer = await nginx.connect()
        writer.write(sent)
        async with asyncio.timeout(25):
            received = await reader.read()
        writer.close()
        return received

    service = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with service, started(tmp_path, service.sockets[0].getsockname()[1]) as nginx:
        plain = HEAD.replace(b"Expect: 100-continue\r\n", b"")
        ends = await asyncio.gather(
            stops(nginx, plain),
            stops(nginx, plain + b"Content-Length: 100000\r\n\r\n" + b"x" * 99_999),
        )
        stopped = connections
        await answered(nginx, plain + b"Content-Length: 1\r\n\r\nx")

    assert set(ends) == {b""}
    assert (stopped, connections) == (0, 1)


async def test_many_connections(running: Running, tmp_path: Path) -> None:
    """An address with 32 unfinished uploads is refused a further request, and other addresses are answered."""
    async with (
        behind(running, tmp_path) as nginx,
        nginx.http("127.0.0.2") as same,
        nginx.http("127.0.0.3") as other,
    ):
        held = [await nginx.connect("127.0.0.2") for _ in range(PLACES)]
        for reader, writer in held:
            writer.write(HEAD + b"Content-Length: 1000\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        refused = await same.post("/predict", content=png(), headers=PNG)
        answer = await other.post("/predict", content=png(), headers=PNG)
        for _, writer in held:
            writer.close()

    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (429, "overloaded", "1")
    assert answer.status_code == 200


async def test_many_requests(running: Running, tmp_path: Path) -> None:
    """An address that exceeds its rate gets 429 for what is too much, in gRPC UNAVAILABLE; others are answered."""
    async with (
        behind(running, tmp_path) as nginx,
        nginx.http("127.0.0.3") as other,
        grpc.aio.insecure_channel(f"127.0.0.1:{nginx.grpc}") as channel,
    ):
        reader, writer = await nginx.connect()
        livez = GET % b"/livez"
        writer.write(livez * 400 + livez.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        received = await reader.read(-1)
        writer.close()
        statuses = re.findall(rb"HTTP/1.1 (\d+)", received)
        stub = ClassifierStub(channel)  # type: ignore[no-untyped-call]
        codes = await asyncio.gather(*(stub.ListModels(pb.ListModelsRequest()).code() for _ in range(600)))
        answer = await other.get("/livez")

    assert (len(statuses), set(statuses)) == (401, {b"200", b"429"})
    assert statuses.count(b"200") > 100  # the burst
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert answer.status_code == 200
