"""API keys through both transports, and through a gateway: who gets in, and what a share of the server is."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from proto.topfive.v1 import classifier_pb2 as pb
from service.gateway.replicas import ReplicaAccess
from tests.conftest import png
from tests.fakes import FakeEngine, reached
from tests.gateway.inference_servers import gateway
from tests.keys import bearer, write_keys
from tests.serving import PNG, Running, serving

pytestmark = pytest.mark.anyio

KEYS: dict[str, dict[str, Any]] = {
    "web": {},
    "admin": {"scopes": ["management"]},
    "all": {"scopes": ["inference", "management"]},
}


@pytest.fixture(scope="module")
async def closed(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A service that knows the keys of `KEYS`."""
    path = write_keys(tmp_path_factory.mktemp("keys") / "keys.toml", **KEYS)
    async with serving(exported, FakeEngine(), api_keys_file=path) as running:
        yield running


async def rpc_code(running: Running, request: Any, name: str | None) -> str:
    """How a call with that key ends: ok, or the code of its error, which its status fits."""
    call = getattr(running.stub, type(request).__name__.removesuffix("Request"))
    started = call(request, metadata=tuple(bearer(name).items()) if name else ())
    status = await started.code()
    code = str(dict(await started.trailing_metadata()).get("topfive-code", "ok"))
    assert status.name == {"ok": "OK"}.get(code, code.upper())
    return code


@pytest.mark.parametrize(
    ("key", "predict", "models"),
    [
        (None, 401, 401),
        ("wrong", 401, 401),
        ("web", 200, 403),
        ("admin", 403, 200),
        ("all", 200, 200),
    ],
)
async def test_scopes(closed: Running, key: str | None, predict: int, models: int) -> None:
    """Both transports let the same keys do the same."""
    headers = bearer(key) if key else {}
    posted = [await closed.http.post(path, content=png(), headers=headers | PNG) for path in ("/predict", "/compare")]
    got = [
        await closed.http.get(path, headers=headers) for path in ("/models", "/models/tiny/layers", "/metrics", "/x")
    ]
    codes = {200: "ok", 401: "unauthenticated", 403: "permission_denied"}

    assert [answer.status_code for answer in posted] == [predict] * 2
    assert [answer.status_code for answer in got] == [models] * 3 + [404 if models == 200 else models]
    for request in (pb.ClassifyRequest(image=png()), pb.CompareRequest(image=png())):
        assert await rpc_code(closed, request, key) == codes[predict]
    for question in (pb.ListModelsRequest(), pb.GetLayersRequest(name="tiny")):
        assert await rpc_code(closed, question, key) == codes[models]


@pytest.mark.parametrize(
    ("key", "infer", "statistics"), [(None, 401, 401), ("web", 200, 403), ("admin", 403, 200), ("all", 200, 200)]
)
async def test_scopes_of_the_inference_protocol(closed: Running, key: str | None, infer: int, statistics: int) -> None:
    """A key for inference reads what its clients ask for, and no statistics; a refusal has the protocol's body."""
    headers = bearer(key) if key else {}
    metadata = tuple(headers.items())
    status = {200: "OK", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}
    raw = {"Inference-Header-Content-Length": "0"}
    sent = await closed.http.post("/v2/models/tiny/infer", content=png(), headers=headers | raw)
    asked = [
        await closed.http.get(f"/v2/models/tiny{path}", headers=headers)
        for path in ("", "/versions/1", "/config", "/ready")
    ]
    asked.append(await closed.http.get("/v1/models/tiny", headers=headers))
    managed = [await closed.http.get(f"/v2/models/{path}stats", headers=headers) for path in ("", "tiny/")]
    managed.append(await closed.http.post("/v2/repository/index", headers=headers))
    for name in ("ModelInfer", "ModelMetadata", "ModelConfig", "ModelReady", "ModelStatistics", "RepositoryIndex"):
        call: Any = closed.channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
        code = await call(b"\n\4tiny" if "Index" not in name else b"", metadata=metadata).code()
        wanted = statistics if name in ("ModelStatistics", "RepositoryIndex") else infer
        assert code.name == ("INVALID_ARGUMENT" if (name, wanted) == ("ModelInfer", 200) else status[wanted]), name

    assert {one.status_code for one in (sent, *asked)} == {infer}
    assert {one.status_code for one in managed} == {statistics}
    for one in (sent, *asked, *managed):
        assert one.status_code == 200 or list(one.json()) == ["error"]


async def test_how_a_refusal_looks(closed: Running, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal says how to send a key, as problem details; no key is in the log or in an answer."""
    caplog.set_level(logging.DEBUG)
    answer = await closed.http.post("/predict", content=png(), headers=PNG | bearer("wrong"))
    allowed = await closed.http.post("/predict", content=png(), headers=PNG | {"X-Api-Key": "web-key"})

    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="topfive"')
    assert answer.json()["code"] == "unauthenticated"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert "Authorization: Bearer" in answer.json()["detail"]
    assert allowed.status_code == 200
    assert "-key" not in caplog.text.replace("--api-keys", "")
    assert "wrong" not in answer.text


async def test_what_is_free(closed: Running) -> None:
    """Health checks and the documentation need no key; reflection does."""
    health_checks = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
    for path in ("/", "/v2", *health_checks, "/docs", "/openapi.json"):
        assert (await closed.http.get(path)).status_code == 200, path
    health: Any = health_pb2_grpc.HealthStub(closed.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    for name in ("ServerLive", "ServerReady", "ServerMetadata"):
        ask: Any = closed.channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
        assert await ask(b"").code() is grpc.StatusCode.OK, name
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(closed.channel)  # type: ignore[arg-type]
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_public_metrics(exported: Path, tmp_path: Path) -> None:
    """By a setting metrics need no key."""
    path = write_keys(tmp_path / "keys.toml", **KEYS)
    async with serving(exported, FakeEngine(), api_keys_file=path, public_metrics=True) as running:
        assert (await running.http.get("/metrics")).status_code == 200
        assert (await running.http.get("/models")).status_code == 401


async def test_a_share_of_the_server(exported: Path, tmp_path: Path) -> None:
    """A key at its share gets 429 with Retry-After, by both transports and in a stream; another key is answered."""
    engine = FakeEngine()
    path = write_keys(tmp_path / "keys.toml", web={"max_in_flight": 2}, other={"max_in_flight": 5})
    async with serving(exported, engine, api_keys_file=path) as running:
        engine.gate.clear()
        batcher = (await running.data_plane.repository.get("tiny")).batcher
        web, other = tuple(bearer("web").items()), tuple(bearer("other").items())
        held = [
            asyncio.create_task(running.http.post("/predict", content=png(1), headers=PNG | bearer("web"))),
            asyncio.create_task(running.stub.Classify(pb.ClassifyRequest(image=png(2)), metadata=web).code()),
        ]
        await reached(lambda: batcher.admitted == 2)
        refused = await running.http.post("/predict", content=png(3), headers=PNG | bearer("web"))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "the key web has 2 requests in flight" in refused.json()["detail"]
        assert await rpc_code_of(running.stub.Classify(pb.ClassifyRequest(image=png(3)), metadata=web)) == "overloaded"
        stream = running.stub.ClassifyStream(iter([pb.ClassifyRequest(image=png(3))]), metadata=web)
        assert (await stream.read()).error.code == "overloaded"
        assert await stream.code() is grpc.StatusCode.OK
        held.append(asyncio.create_task(running.stub.Classify(pb.ClassifyRequest(image=png(4)), metadata=other).code()))
        await reached(lambda: batcher.admitted == 3)
        engine.gate.set()
        answers: list[Any] = await asyncio.gather(*held)
        assert [answers[0].status_code, *answers[1:]] == [200, grpc.StatusCode.OK, grpc.StatusCode.OK]
        again = await running.http.post("/predict", content=png(3), headers=PNG | bearer("web"))
        assert again.status_code == 200


async def test_a_share_of_memory(exported: Path, tmp_path: Path) -> None:
    """Two clients behind one address have the share of two: their keys count."""
    path = write_keys(tmp_path / "keys.toml", web={}, other={})
    async with serving(exported, FakeEngine(), api_keys_file=path, max_upload_bytes=1000) as running:
        _, writer = await running.connect()
        head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\nauthorization: {bearer('web')['authorization']}\r\n"
        writer.write(f"{head}content-type: image/png\r\ncontent-length: 500\r\n\r\n".encode() + bytes(400))
        await writer.drain()

        async def sent(name: str) -> int:
            return (await running.http.post("/predict", content=bytes(400), headers=PNG | bearer(name))).status_code

        async with asyncio.timeout(20):
            while await sent("web") != 429:  # until the server has read what was written
                pass
        assert await sent("other") == 422
        writer.close()
        await writer.wait_closed()


async def test_a_share_of_the_calls(exported: Path, tmp_path: Path) -> None:
    """Calls of a key that never send their message leave half of the places, and half of the streams, to others.

    All keys together have no more places than --max-upload-bytes has room for.
    """
    path = write_keys(tmp_path / "keys.toml", web={}, third={}, other={})
    web, other = tuple(bearer("web").items()), tuple(bearer("other").items())
    limits: dict[str, Any] = {"max_image_bytes": 1 << 20, "max_upload_bytes": 8 << 20}  # four places
    async with serving(exported, FakeEngine(), api_keys_file=path, **limits) as running:
        silent: list[Any] = [
            running.channel.stream_unary("/topfive.v1.Classifier/Classify")(metadata=web) for _ in range(8)
        ]
        streams = [running.stub.ClassifyStream(metadata=web) for _ in range(2)]
        for call in [*silent, *streams]:
            await call.wait_for_connection()
        for call in streams:
            await call.write(pb.ClassifyRequest(image=png(1)))
            await call.read()
        assert await rpc_code_of(running.stub.ClassifyStream(metadata=web)) == "overloaded"
        for _ in range(2):
            answer = await running.stub.Classify(pb.ClassifyRequest(image=png(2)), metadata=other, timeout=20)
            assert answer.predictions[0].class_id == 2
        stream = running.stub.ClassifyStream(iter([pb.ClassifyRequest(image=png(3))]), metadata=other)
        assert (await stream.read()).reply.predictions[0].class_id == 3
        assert await stream.code() is grpc.StatusCode.OK
        silent += [
            running.channel.stream_unary("/topfive.v1.Classifier/Classify")(metadata=tuple(bearer("third").items()))
            for _ in range(2)
        ]
        for call in silent[-2:]:
            await call.wait_for_connection()
        waiting = running.stub.Classify(pb.ClassifyRequest(image=png(2)), metadata=other, timeout=0.2)
        assert await waiting.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        for call in [*silent, *streams]:
            call.cancel()


async def rpc_code_of(call: Any) -> str:
    """The code in the trailing metadata of a call."""
    return str(dict(await call.trailing_metadata())["topfive-code"])


async def test_gateway(closed: Running, tmp_path: Path) -> None:
    """A gateway has its own key for the servers behind it, and keys for its clients. A wrong one is its own fault."""
    path = write_keys(tmp_path / "keys.toml", client={"scopes": ["inference", "management"]})
    port = closed.service.rpc.port
    async with gateway(port, access=ReplicaAccess("all-key"), api_keys_file=path) as front:
        allowed = [
            await front.http.post("/predict", content=png(), headers=PNG | bearer("client")),
            await front.http.get("/models", headers=bearer("client")),
        ]
        refused = await front.http.post("/predict", content=png(), headers=PNG | bearer("all"))
    async with gateway(port, access=ReplicaAccess("wrong-key")) as front:
        misled = await front.http.post("/predict", content=png(), headers=PNG)

    assert [answer.status_code for answer in allowed] == [200, 200]
    assert (refused.status_code, misled.status_code) == (401, 503)
    assert "--replica-api-key-file" in misled.json()["detail"]


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
async def test_warning(exported: Path, caplog: pytest.LogCaptureFixture, host: str, warned: bool) -> None:
    """A server that listens on all addresses without keys says so."""
    async with serving(exported, FakeEngine(), host=host, load=False):
        pass
    assert ("anybody who reaches this machine" in caplog.text) is warned
