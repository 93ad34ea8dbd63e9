"""REST behind a proxy, and asked by web pages: path prefix, X-Forwarded-* headers, host names, CORS."""

from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.rest.proxies import ProxyHeaders
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.serving import PNG, serving

pytestmark = pytest.mark.anyio

PREFIX = {"X-Forwarded-Prefix": "/vision/"}
HOST = {"X-Forwarded-Host": "a.example, b.example", "X-Forwarded-Proto": "https"}


@pytest.mark.parametrize("strips", [True, False])
async def test_root_path(exported: Path, *, strips: bool) -> None:
    """Under a prefix all paths are answered, whether the proxy strips it or not, and all links have it."""
    before = "" if strips else "/vision"
    async with serving(exported, FakeEngine(), root_path="/vision") as running:
        page = (await running.http.get(f"{before}/docs")).text
        script = await running.http.get(f"{before}/static-offline-docs/swagger-ui-bundle.js")
        document = (await running.http.get(f"{before}/openapi.json")).json()
        about = (await running.http.get(f"{before}/")).json()
        refused = (await running.http.post(f"{before}/predict?top_k=1")).json()
        answered = await running.http.post(f"{before}/predict", content=png(), headers=PNG)

    assert "'/vision/openapi.json'" in page
    assert '"/vision/static-offline-docs/swagger-ui-bundle.js"' in page
    assert document["servers"] == [{"url": "/vision"}]
    assert (about["docs"], about["openapi"]) == ("/vision/docs", "/vision/openapi.json")
    assert f"curl -F image=@cat.jpg '{running.http.base_url}/vision/predict?top_k=1'" in refused["detail"]
    assert (script.status_code, answered.status_code) == (200, 200)


async def test_forwarded(exported: Path) -> None:
    """The prefix, scheme and host that a trusted proxy tells are those of links; host names are checked after that."""
    trusted, host = "127.0.0.0/8", "a.example"
    async with serving(exported, FakeEngine(), forwarded_allow_ips=trusted, allowed_hosts=host) as running:
        refused = await running.http.post("/predict", headers=PREFIX | HOST)
        other = await running.http.post("/predict", headers=PREFIX)

    assert "curl -F image=@cat.jpg 'https://a.example/vision/predict'" in refused.json()["detail"]
    assert (other.status_code, other.text) == (400, "Invalid host header")


async def test_a_proxy_on_this_machine(exported: Path) -> None:
    """The proxies of the setting are trusted, also one that tells the client; others are not, even on this machine."""
    headers = PREFIX | HOST | {"X-Forwarded-For": "192.0.2.1"}
    async with serving(exported, FakeEngine(), forwarded_allow_ips="127.0.0.1") as running:
        trusted = await running.http.post("/predict", headers=headers)
    async with serving(exported, FakeEngine()) as running:
        stranger = await running.http.post("/predict", headers=headers)

    assert "'https://a.example/vision/predict'" in trusted.json()["detail"]
    assert f"'{running.http.base_url}/predict'" in stranger.json()["detail"]


async def test_strangers_are_not_trusted(exported: Path) -> None:
    """X-Forwarded-Prefix and -Host of any other client change nothing."""
    async with serving(exported, FakeEngine(), forwarded_allow_ips="10.0.0.1") as running:
        refused = await running.http.post("/predict", headers=PREFIX | {"X-Forwarded-Host": "a.example"})

    assert f"'{running.http.base_url}/predict'" in refused.json()["detail"]


async def told(headers: list[tuple[bytes, bytes]], root_path: str = "/own") -> str:
    """The client, prefix and path of a request for /docs by the proxy 127.0.0.1, which is trusted."""

    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(f"{scope['client'][0]} {scope['root_path']} {scope['path']}")(scope, receive, send)

    transport = httpx.ASGITransport(ProxyHeaders(tell, root_path, "127.0.0.1"))
    async with httpx.AsyncClient(transport=transport) as client:
        return (await client.get("http://test/docs", headers=headers)).text


@pytest.mark.parametrize("prefix", ["//evil.example", "/a//b", "vision", "/a\"'", "/고", "/", ""])
async def test_wrong_prefix(prefix: str) -> None:
    """A prefix that is not a plain path is passed over: it could make links of the documentation name another host."""
    assert await told([(b"X-Forwarded-Prefix", prefix.encode())]) == "127.0.0.1 /own /own/docs"


async def test_forwarded_client() -> None:
    """The address of the client, which the proxy tells as well, does not take its trust away."""
    headers = [(b"X-Forwarded-Prefix", b"/vision"), (b"X-Forwarded-For", b"192.0.2.1")]

    assert await told(headers) == "192.0.2.1 /vision /vision/docs"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", ""])
async def test_dns_rebinding(exported: Path, host: str) -> None:
    """A server on localhost answers to names of this machine alone, so no web page reaches it under its own name."""
    async with serving(exported, FakeEngine(), allowed_hosts=()) as running:
        refused = await running.http.get("/models", headers={"Host": host})
        answered = [
            (await running.http.get("/models", headers={"Host": own})).status_code
            for own in ("localhost", "LocalHost:8000", "127.0.0.1:80", "[::1]:8000")
        ]

    assert refused.status_code == 400
    assert answered == [200] * 4


async def test_cors(exported: Path) -> None:
    """Only pages of the given origins may read answers and send images; without the setting no page may."""
    page = {"Origin": "https://a.example"}
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-request-timeout"}
    allowed = "access-control-allow-origin"
    async with serving(exported, FakeEngine(), cors_origin=("https://a.example", "https://b.example")) as running:
        preflight = await running.http.options("/predict", headers=page | ask)
        answer = await running.http.post("/predict", content=png(), headers=page | PNG)
        refused = await running.http.post("/predict", headers=page)
        stranger = await running.http.get("/models", headers={"Origin": "https://evil.example"})
    async with serving(exported, FakeEngine()) as running:
        off = await running.http.options("/predict", headers=page | ask)

    assert preflight.status_code == 200
    assert [one.headers[allowed] for one in (preflight, answer, refused)] == ["https://a.example"] * 3
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    assert allowed not in stranger.headers
    assert (off.status_code, allowed in off.headers) == (405, False)
