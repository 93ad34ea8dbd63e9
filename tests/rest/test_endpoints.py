"""What only REST has: ways to send an image, problem details, headers, health, the documentation page."""

import socket
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

import pytest

from export.gate_images import PHOTOS
from service.common.types import ItemOutcome
from tests.conftest import png
from tests.exposition import value
from tests.fakes import FakeEngine, reached
from tests.serving import PNG, Running, busy, serving

pytestmark = pytest.mark.anyio


async def test_reply(running: Running) -> None:
    """A reply has every documented part, and the Server-Timing header says what its timing_ms says."""
    response = await running.http.post("/predict", files={"image": png()})
    body = response.json()

    parts = "request_id predictions model engine preprocessing timing_ms batch_size warnings members"
    model = "name version family parameters macs input_size weights acc1 acc5 acc_dataset latency_ms"
    assert list(body) == parts.split()
    assert list(body["model"]) == model.split()
    assert set(body["engine"]) == {"runtime", "device", "precision", "version"}
    assert set(body["preprocessing"]) == {"decoder", "scale", "recipe"}
    assert [prediction["rank"] for prediction in body["predictions"]] == [1, 2, 3, 4, 5]
    assert set(body["predictions"][0]) == {"rank", "class_id", "wnid", "label", "probability"}
    probabilities = [prediction["probability"] for prediction in body["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    timing = body["timing_ms"]
    assert response.headers["server-timing"] == ", ".join(f"{step};dur={timing[step]:.3f}" for step in timing)
    assert timing["decode"] + timing["queue"] + timing["inference"] <= timing["total"]


async def test_comparison(running: Running) -> None:
    """A comparison takes names with commas or repeated, and a raw body; it has its id and its times as headers too."""
    headers = {**PNG, "X-Request-Id": "order-7"}
    response = await running.http.post("/compare?model=tiny,resnet50&model=alexnet", content=png(5), headers=headers)

    body = response.json()
    timing = body["timing_ms"]
    assert body["request_id"] == response.headers["x-request-id"] == "order-7"
    assert [row["model"] for row in body["rows"]] == ["tiny", "resnet50", "alexnet"]
    assert response.headers["server-timing"] == f"decode;dur={timing['decode']:.3f}, total;dur={timing['total']:.3f}"


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream", "IMAGE/PNG; charset=binary"])
async def test_raw_body(running: Running, kind: str) -> None:
    """The image may be the body itself under any image content type; its bytes say which format it has."""
    response = await running.http.post("/predict", content=png(42), headers={"content-type": kind})

    assert response.json()["predictions"][0]["class_id"] == 42


async def test_chunked_body(running: Running) -> None:
    """The server counts a body without a Content-Length as it comes, and cuts it off at the limit."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(1_000_000)

    response = await running.http.post("/predict", content=endless(), headers=PNG)

    assert response.status_code == 413


@pytest.mark.parametrize(
    ("request_kwargs", "expected"),
    [
        ({}, "no image"),
        ({"content": b"abc", "headers": {"content-type": "text/plain"}}, "no image"),
        ({"data": {"image": "cat.jpg"}}, "no image"),
        ({"files": {"picture": b"abc"}}, "no field 'image' (fields: picture)"),
        ({"content": b"abc", "headers": {"content-type": "multipart/form-data; boundary=x"}}, "cannot be read"),
    ],
)
async def test_no_image(running: Running, request_kwargs: dict[str, object], expected: str) -> None:
    """A request without an image is a bad request whose detail shows the right curl line."""
    response = await running.http.post("/predict?model=tiny", **request_kwargs)  # type: ignore[arg-type]

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert expected in response.json()["detail"]
    assert f"curl -F image=@cat.jpg '{running.http.base_url}/predict?model=tiny'" in response.json()["detail"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
async def test_encoded_body(running: Running, encoding: str) -> None:
    """A body with a Content-Encoding is refused by that name; only identity is read."""
    refused = await running.http.post("/predict", content=png(), headers={**PNG, "Content-Encoding": encoding})
    read = await running.http.post("/predict", content=png(), headers={**PNG, "Content-Encoding": "Identity"})

    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")
    assert repr(encoding) in refused.json()["detail"]
    assert refused.headers["accept-encoding"] == "identity"
    assert read.status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/models", "/models/tiny", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"]
)
async def test_head(running: Running, path: str) -> None:
    """HEAD answers as GET does, without the body."""
    get, head = await running.http.get(path), await running.http.head(path)

    assert (get.status_code, head.status_code) == (200, 200)
    assert (head.headers["content-type"], head.content) == (get.headers["content-type"], b"")
    assert get.content


async def test_root(running: Running) -> None:
    """The root says what answers, and the paths of the documentation, which exist."""
    about = (await running.http.get("/")).json()

    assert (about["name"], about["version"]) == ("topfive", version("topfive"))
    assert [(await running.http.get(about[key])).status_code for key in ("docs", "openapi")] == [200, 200]


@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "DELETE"])
async def test_wrong_method(running: Running, method: str) -> None:
    """Another method than POST with an image gets the right curl line and the method that is allowed."""
    response = await running.http.request(method, "/predict?model=tiny")

    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert f"curl -F image=@cat.jpg '{running.http.base_url}/predict?model=tiny'" in response.json()["detail"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/predict?modle=tiny", "there is no parameter 'modle'; there are model, top_k, crops"),
        ("/compare?modle=tiny", "there is no parameter 'modle'; there are model, top_k, crops"),
        ("/compare?model=tiny&topk=3", "there is no parameter 'topk'"),
        ("/predict?model=tiny&crops=1&crops=10", "crops is given 2 times; give it once"),
        ("/compare?model=tiny&crops=1&crops=10", "crops is given 2 times; give it once"),
        ("/predict?model=tiny&model=resnet50", "model is given 2 times; give it once"),
        ("/compare?crops=1e1", "crops: "),
        (f"/predict?{'x' * 500}", f"there is no parameter '{'x' * 60}';"),
    ],
)
async def test_wrong_parameters(running: Running, address: str, words: str) -> None:
    """The server refuses a parameter that nothing reads, or that is given twice, rather than ignore it."""
    problem = await running.rest(address, png())

    assert problem["code"] == "bad_request"
    assert words in problem["detail"]
    assert len(problem["detail"]) < 200


async def test_problem_details(running: Running) -> None:
    """Errors are application/problem+json with title, status, code, detail and the request's id, routing errors too."""
    missing = await running.http.get("/nowhere")
    method = await running.http.get("/predict")
    unknown = await running.http.post("/predict?model=tinny", files={"image": png()})
    typed = await running.http.post("/predict?top_k=many", files={"image": png()})

    statuses = [(r.status_code, r.json()["code"]) for r in (missing, method, unknown, typed)]
    assert statuses == [(404, "not_found"), (405, "method_not_allowed"), (404, "model_not_found"), (400, "bad_request")]
    for response in (missing, method, unknown, typed):
        problem = response.json()
        assert response.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "code", "detail", "request_id"} == set(problem)
        assert problem["status"] == response.status_code
        assert problem["request_id"] == response.headers["x-request-id"]
    assert "tiny" in unknown.json()["detail"]


async def test_slow_upload(exported: Path) -> None:
    """A body that does not come within the time allowed ends in 504, and gives back what it took of the memory."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9000\r\n"
    async with serving(exported, FakeEngine(), max_upload_bytes=10_000) as running:
        reader, writer = await running.connect()
        writer.write(head + b"X-Request-Timeout: 0.3\r\n\r\n" + bytes(8000))
        status = await reader.readline()
        writer.close()
        image = (PHOTOS / "bee.jpeg").read_bytes()
        after = await running.http.post("/predict", content=image, headers=PNG)

    assert b" 504 " in status
    assert 2000 < len(image) < 10_000
    assert after.status_code == 200


async def test_upload_budget(exported: Path) -> None:
    """The server refuses bodies with 429 while they come in where they would fill the memory together."""
    image = png(1)
    engine = FakeEngine()
    async with serving(exported, engine, max_upload_bytes=len(image)) as running:
        async with busy(running, engine):
            refused = await running.http.post("/predict", content=image, headers=PNG)
        again = await running.http.post("/predict", content=image, headers=PNG)

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert again.status_code == 200


@pytest.mark.parametrize(
    ("size", "header", "sent", "stays"),
    [(9000, b"", 9000, True), (10 << 20, b"", 0, False), (9000, b"Expect: 100-continue\r\n", 0, False)],
    ids=["small", "large", "not sent"],
)
async def test_full_before_the_body(exported: Path, size: int, header: bytes, sent: int, stays: bool) -> None:
    """At capacity 429 comes before the image is read. The connection stays open only if dropping the body is cheap."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n" % size
    engine = FakeEngine()
    async with serving(exported, engine, capacity=1, max_upload_bytes=1 << 30) as running, busy(running, engine):
        reader, writer = await running.connect()
        writer.write(head + header + b"\r\n" + bytes(sent))
        answer = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(answer.lower().partition(b"content-length: ")[2].split()[0]))
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        after = await reader.readline()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 429 ")
    assert (b"connection: close" in answer.lower(), after) == (
        (False, b"HTTP/1.1 200 OK\r\n") if stays else (True, b"")
    )
    assert value(running.data_plane.metrics, "topfive_requests_total", model="tiny", code="overloaded") == 1


async def test_timeout(exported: Path) -> None:
    """X-Request-Timeout bounds the wait for an engine that is busy."""
    engine = FakeEngine()
    async with serving(exported, engine) as running, busy(running, engine):
        response = await running.http.post("/predict", files={"image": png()}, headers={"X-Request-Timeout": "0.05"})

    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


async def test_disconnect_frees_the_place(exported: Path) -> None:
    """A client that hangs up while its image waits frees its place, and the image is never run."""
    engine = FakeEngine(max_batch=1)
    async with serving(exported, engine) as running:
        async with busy(running, engine) as batcher:
            ran, image = len(engine.batches), png(2)
            with socket.create_connection(("127.0.0.1", running.service.rest.port)) as leaver:
                head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: "
                leaver.sendall(f"{head}{len(image)}\r\n\r\n".encode() + image)
                await reached(lambda: batcher.depth == 1)
            await reached(lambda: batcher.depth == 0 and batcher.admitted == 1)
        outcome = {"model": "tiny", "outcome": ItemOutcome.CANCELLED.value}
        assert value(running.data_plane.metrics, "topfive_items_total", **outcome) == 1

    assert len(engine.batches) == ran + 1


async def test_health(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server whose engine fails is alive and not ready, until a run succeeds, for which it needs no requests."""
    engine = FakeEngine()
    async with serving(exported, engine) as running:
        engine.script = [RuntimeError("broken card")] * 4
        failures = [await running.rest("/predict", png()) for _ in range(3)]
        failing, alive = await running.http.get("/readyz"), await running.http.get("/livez")
        await running.http.get("/readyz")
        assert caplog.text.count("not_ready: tiny fails") == 1, "the second probe is no news"
        await reached(lambda: running.data_plane.repository.ready)  # the first try fails
        recovered = await running.http.get("/readyz")

    assert [failure["code"] for failure in failures] == ["internal"] * 3
    assert (failing.status_code, failing.json()["code"], failing.json()["detail"]) == (503, "not_ready", "tiny fails")
    assert (alive.status_code, recovered.status_code) == (200, 200)
    assert not engine.script


async def test_metrics(exported: Path) -> None:
    """The Prometheus page counts answers by model and code, those refused before classifying included."""
    async with serving(exported, FakeEngine()) as running:
        await running.http.post("/predict", files={"image": png()})
        await running.http.post("/predict", files={"image": b"no image"})
        await running.http.post("/predict?model=mine", files={"image": png()})
        for address in ("/predict", "/compare?crops=1e1", "/predict?modle=tiny"):
            await running.http.post(address, files={"other": b"x"})
        response = await running.http.get("/metrics")

    lines = response.text.splitlines()
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert [line for line in lines if line.startswith("topfive_requests_total")] == [
        'topfive_requests_total{code="ok",model="tiny"} 1.0',
        'topfive_requests_total{code="bad_image",model="tiny"} 1.0',
        'topfive_requests_total{code="model_not_found",model="unknown"} 1.0',
        'topfive_requests_total{code="bad_request",model="unknown"} 3.0',
    ]
    assert not any('"mine"' in line for line in lines)


async def test_documentation(running: Running) -> None:
    """/docs loads nothing from elsewhere, and the OpenAPI document knows both ways to send an image and every error."""
    page = await running.http.get("/docs")
    script = await running.http.get("/static-offline-docs/swagger-ui-bundle.js")
    document = (await running.http.get("/openapi.json")).json()

    assert "https://" not in page.text
    assert script.status_code == 200
    for name in ("predict", "compare"):
        operation = document["paths"][f"/{name}"]["post"]
        assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
        assert {"200", "400", "404", "413", "422", "429", "500", "503", "504"} <= set(operation["responses"])
        assert operation["requestBody"]["content"]["multipart/form-data"]["schema"]["additionalProperties"] is False
        reply = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert reply == {"$ref": f"#/components/schemas/{name.title()}Reply"}
    assert "members" in document["components"]["schemas"]["PredictReply"]["properties"]


async def test_document_of_errors_and_parameters(running: Running) -> None:
    """The OpenAPI document has problem details for every error, and allows no value of a parameter that is refused."""
    document = (await running.http.get("/openapi.json")).json()
    operations = [(path, one) for path, methods in document["paths"].items() for one in methods.values()]

    errors = [list(one["content"]) for _, op in operations for at, one in op["responses"].items() if at >= "400"]
    assert errors
    assert all(kinds == ["application/problem+json"] for kinds in errors)
    schemas = {
        (path, parameter["name"]): parameter["schema"]
        for path, op in operations
        for parameter in op.get("parameters", ())
    }
    assert {path for path, name in schemas if name == "x-request-timeout"} == {"/predict", "/compare"}
    expected = {"x-request-timeout": ("exclusiveMinimum", 0), "top_k": ("minimum", 1), "crops": ("enum", [1, 10])}
    assert {schema["maximum"] for (_, name), schema in schemas.items() if name == "top_k"} == {1000}
    for (_, name), schema in schemas.items():
        assert "null" not in str(schema)
        assert name not in expected or expected[name] in schema.items()
