"""What only REST has: ways to send an image, problem details, headers, health, the documentation page."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from export.gate_images import PHOTOS
from service.common.types import ItemOutcome
from service.rest import http_protocol
from service.rest.image_request import requested_timeout
from tests.conftest import png
from tests.exposition import value
from tests.fakes import FakeEngine
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio

REPLY = {
    *("request_id", "predictions", "model", "engine", "preprocessing", "timing_ms", "batch_size", "warnings"),
    "members",
}
MODEL = {
    "name",
    "version",
    "family",
    "parameters",
    "macs",
    "input_size",
    "weights",
    "acc1",
    "acc5",
    "acc_dataset",
    "latency_ms",
}


def items(running: Running, outcome: ItemOutcome) -> float:
    """How many images of `tiny` ended so."""
    labels = {"model": "tiny", "outcome": outcome.value}
    return value(running.data_plane.metrics, "topfive_items_total", **labels) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another task or thread is about to do."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what it waits for happens in code that knows no test
            await asyncio.sleep(0.005)


async def test_reply(artifacts: Path) -> None:
    """A reply has every documented part, and the Server-Timing header says what its timing_ms says."""
    async with serving(artifacts) as running:
        response = await running.http.post("/predict", files={"image": png()})
        body = response.json()

    assert set(body) == REPLY
    assert set(body["model"]) == MODEL
    assert set(body["engine"]) == {"runtime", "device", "precision", "version"}
    assert set(body["preprocessing"]) == {"decoder", "scale", "recipe"}
    assert [prediction["rank"] for prediction in body["predictions"]] == [1, 2, 3, 4, 5]
    assert set(body["predictions"][0]) == {"rank", "class_id", "wnid", "label", "probability"}
    probabilities = [prediction["probability"] for prediction in body["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert body["model"]["latency_ms"]["count"] == 1
    timing = body["timing_ms"]
    assert response.headers["server-timing"] == ", ".join(f"{step};dur={timing[step]:.3f}" for step in timing)
    assert timing["decode"] + timing["queue"] + timing["inference"] <= timing["total"]


async def test_untrained_says_so(artifacts: Path) -> None:
    """A model with untrained weights says so in every reply and in the list, and claims no accuracy."""
    async with serving(artifacts) as running:
        reply = (await running.http.post("/predict", files={"image": png()})).json()
        listed = (await running.http.get("/models/tiny")).json()

    assert reply["model"]["weights"] == listed["weights"] == "untrained"
    assert "mean nothing" in reply["warnings"][0]
    assert reply["warnings"] == listed["warnings"]
    assert reply["model"]["acc1"] is None


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream", "IMAGE/PNG; charset=binary"])
async def test_raw_body(artifacts: Path, kind: str) -> None:
    """The image may be the body itself under any image content type; what it is, its bytes say."""
    async with serving(artifacts, FakeEngine()) as running:
        response = await running.http.post("/predict", content=png(42), headers={"content-type": kind})

    assert response.json()["predictions"][0]["class_id"] == 42


async def test_chunked_body(artifacts: Path) -> None:
    """A body without a Content-Length is counted as it comes, and cut off at the limit."""

    async def endless(chunks: int) -> AsyncIterator[bytes]:
        for _ in range(chunks):
            yield bytes(10_000)

    async with serving(artifacts, FakeEngine(), max_image_bytes=100_000) as running:
        response = await running.http.post("/predict", content=endless(200), headers={"content-type": "image/png"})

    assert response.status_code == 413


@pytest.mark.parametrize(
    ("request_kwargs", "expected"),
    [
        ({}, "no image"),
        ({"content": b"abc", "headers": {"content-type": "text/plain"}}, "no image"),
        ({"data": {"image": "cat.jpg"}}, "no image"),
        ({"files": {"picture": b"abc"}}, "no field 'image' (fields: picture)"),
        ({"data": {"image": "cat.jpg"}, "files": {"other": b"x"}}, "is the @ missing?"),
        ({"files": [("image", b"abc"), ("image", b"def")]}, "send one image a request"),
        ({"content": b"abc", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        ({"content": b"abc", "headers": {"content-type": "multipart/form-data; boundary=x"}}, "cannot be read"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data; boundary=" + 300 * "x"}}, "300 bytes"),
    ],
)
async def test_no_image(artifacts: Path, request_kwargs: dict[str, object], expected: str) -> None:
    """A request without an image is a bad request whose detail shows the right curl line."""
    async with serving(artifacts, FakeEngine()) as running:
        response = await running.http.post("/predict?model=tiny", **request_kwargs)  # type: ignore[arg-type]

    assert response.status_code == 400
    problem = response.json()
    assert problem["code"] == "bad_request"
    assert expected in problem["detail"]
    address = f"{str(running.http.base_url).rstrip('/')}/predict?model=tiny"
    assert f"curl -F image=@cat.jpg '{address}'" in problem["detail"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("modle=tiny", "there is no parameter 'modle'; there are model, top_k, crops"),
        ("model=tiny&topk=3", "there is no parameter 'topk'"),
        ("model=tiny&crops=1&crops=10", "crops is given 2 times; give it once"),
        ("models=tiny", "there is no parameter 'models'"),
        ("x" * 500, f"there is no parameter '{'x' * 60}';"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/compare"])
async def test_no_such_parameter(artifacts: Path, path: str, query: str, words: str) -> None:
    """A parameter that nothing reads, or that is given twice, is refused and counted rather than left out."""
    engine = FakeEngine()
    async with serving(artifacts, engine) as running:
        response = await running.http.post(f"{path}?{query}", files={"image": png()})
        metrics = (await running.http.get("/metrics")).text

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert words in response.json()["detail"]
    assert len(response.json()["detail"]) < 200
    assert 'topfive_requests_total{code="bad_request",model="unknown"} 1.0' in metrics
    assert engine.batches == []


async def test_one_model_for_predict(artifacts: Path) -> None:
    """predict answers for one model: two are refused, where compare has a row for each."""
    async with serving(artifacts, FakeEngine()) as running:
        predicted = await running.http.post("/predict?model=tiny&model=resnet50", files={"image": png()})
        compared = await running.http.post("/compare?model=tiny&model=resnet50", files={"image": png()})

    assert predicted.status_code == 400
    assert "model is given 2 times" in predicted.json()["detail"]
    assert [row["model"] for row in compared.json()["rows"]] == ["tiny", "resnet50"]


@pytest.mark.parametrize("extra", [{"data": {"model": "resnet50"}}, {"files": [("image", b"abc"), ("second", b"def")]}])
async def test_a_field_that_nothing_reads(artifacts: Path, extra: dict[str, Any]) -> None:
    """Parameters in the form, or a second file, are refused with where they belong, not passed over."""
    async with serving(artifacts, FakeEngine()) as running:
        response = await running.http.post("/predict", **{"files": {"image": png()}, **extra})

    assert response.status_code == 400
    assert "/predict?model=NAME&top_k=3" in response.json()["detail"]


async def test_unreadable_parameters_are_counted(artifacts: Path) -> None:
    """A parameter of the wrong type is a bad request like any other, also for the counters."""
    async with serving(artifacts, FakeEngine()) as running:
        response = await running.http.post("/compare?crops=1e1", files={"image": png()})
        metrics = (await running.http.get("/metrics")).text

    assert response.json()["code"] == "bad_request"
    assert 'topfive_requests_total{code="bad_request",model="unknown"} 1.0' in metrics


async def test_problem_details(artifacts: Path) -> None:
    """Errors are application/problem+json with title, status, code, detail and the request's id, routing errors too."""
    async with serving(artifacts, FakeEngine()) as running:
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


async def test_request_id(artifacts: Path) -> None:
    """The caller's own id comes back; one that could break a log line is replaced."""
    async with serving(artifacts, FakeEngine()) as running:
        own = await running.http.post("/predict", files={"image": png()}, headers={"X-Request-Id": "order-7"})
        odd = await running.http.post("/predict", files={"image": png()}, headers={"X-Request-Id": "a b\tc"})

    assert own.json()["request_id"] == own.headers["x-request-id"] == "order-7"
    assert odd.json()["request_id"] == odd.headers["x-request-id"] != "a b\tc"


async def test_overloaded(artifacts: Path) -> None:
    """At capacity a request is refused at once with 429 and Retry-After; those accepted are all answered."""
    engine = FakeEngine()
    async with serving(artifacts, engine, capacity=3) as running:
        engine.gate.clear()
        accepted = [asyncio.create_task(running.http.post("/predict", files={"image": png(i)})) for i in range(3)]
        model = await running.data_plane.repository.get("tiny")
        await until(lambda: model.batcher.admitted == 3)
        refused = await running.http.post("/predict", files={"image": png()})
        engine.gate.set()
        answers = await asyncio.gather(*accepted)

    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert [answer.json()["predictions"][0]["class_id"] for answer in answers] == [0, 1, 2]


async def test_slow_upload(artifacts: Path) -> None:
    """A body that does not come within the time allowed ends in 504, and what it took of the memory is given back."""
    async with serving(artifacts, FakeEngine(), timeout_s=0.3, max_upload_bytes=10_000) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.service.rest.port)
        writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9000\r\n\r\n")
        writer.write(bytes(8000))
        status = await reader.readline()
        writer.close()
        image = (PHOTOS / "bee.jpeg").read_bytes()
        after = await running.http.post("/predict", content=image, headers={"content-type": "image/png"})

    assert b" 504 " in status
    assert 2000 < len(image) < 10_000
    assert after.status_code == 200


async def test_upload_budget(artifacts: Path) -> None:
    """Bodies that would fill the memory together are refused with 429 while they come in, and only those."""
    image = png()
    headers = {"content-type": "image/png"}
    engine = FakeEngine()
    async with serving(artifacts, engine, max_upload_bytes=2 * len(image)) as running:
        engine.gate.clear()
        model = await running.data_plane.repository.get("tiny")
        held = [asyncio.create_task(running.http.post("/predict", content=image, headers=headers)) for _ in range(2)]
        await until(lambda: model.batcher.admitted == 2)
        refused = await running.http.post("/predict", content=image, headers=headers)
        engine.gate.set()
        answers = await asyncio.gather(*held)
        again = await running.http.post("/predict", content=image, headers=headers)

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert [answer.status_code for answer in (*answers, again)] == [200, 200, 200]


async def test_timeout(artifacts: Path) -> None:
    """X-Request-Timeout bounds the wait; an answer that comes later is not waited for."""
    engine = FakeEngine()
    async with serving(artifacts, engine) as running:
        engine.gate.clear()
        response = await running.http.post("/predict", files={"image": png()}, headers={"X-Request-Timeout": "0.05"})
        model = await running.data_plane.repository.get("tiny")
        waited = model.batcher.in_flight
        engine.gate.set()

    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    assert waited == 1  # the engine was not back yet


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "0", "-1", ""])
async def test_bad_timeout(artifacts: Path, value: str) -> None:
    """A timeout that is no positive number is refused rather than ignored."""
    async with serving(artifacts, FakeEngine()) as running:
        response = await running.http.post("/predict", files={"image": png()}, headers={"X-Request-Timeout": value})

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


def test_timeout_is_capped() -> None:
    """A caller gets at most the server's own limit."""
    assert requested_timeout("3600", 30.0) == 30.0
    assert requested_timeout("0.5", 30.0) == 0.5
    assert requested_timeout(None, 30.0) == 30.0


async def test_disconnect_frees_the_place(artifacts: Path) -> None:
    """A client that hangs up while its image waits frees its place, and the image is never run."""
    engine = FakeEngine(max_batch=1)
    async with serving(artifacts, engine) as running:
        engine.gate.clear()
        model = await running.data_plane.repository.get("tiny")
        first = asyncio.create_task(running.http.post("/predict", files={"image": png(1)}))
        await until(lambda: model.batcher.in_flight == 1)
        ran = len(engine.batches)
        leaver = socket.create_connection(("127.0.0.1", running.service.rest.port))
        image = png(2)
        leaver.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n%s"
            % (len(image), image)
        )
        await until(lambda: model.batcher.depth == 1)
        leaver.close()
        await until(lambda: model.batcher.depth == 0 and model.batcher.admitted == 1)
        engine.gate.set()
        assert (await first).status_code == 200

        assert len(engine.batches) == ran + 1
        assert items(running, ItemOutcome.CANCELLED) == 1


async def test_health(artifacts: Path) -> None:
    """Alive from the start; ready only when loaded, and again not when the engine's real runs fail."""
    engine = FakeEngine()
    async with serving(artifacts, engine, load=False) as running:
        before = [(await running.http.get(path)).status_code for path in ("/livez", "/readyz")]
        await running.service.load()
        loaded = (await running.http.get("/readyz")).status_code
        engine.script = [RuntimeError("broken card")] * 4
        failures = [(await running.http.post("/predict", files={"image": png()})).status_code for _ in range(3)]
        failing = await running.http.get("/readyz")
        alive = (await running.http.get("/livez")).status_code
        await until(lambda: running.data_plane.repository.ready)  # tried again without traffic, first in vain
        recovered = (await running.http.get("/readyz")).status_code

    assert before == [200, 503]
    assert loaded == 200
    assert failures == [500, 500, 500]
    assert (failing.status_code, failing.json()["code"], failing.json()["detail"]) == (503, "not_ready", "tiny fails")
    assert (alive, recovered) == (200, 200)
    assert not engine.script


async def test_metrics(artifacts: Path) -> None:
    """The Prometheus page counts answers by model and code, those refused before classifying included."""
    async with serving(artifacts, FakeEngine()) as running:
        await running.http.post("/predict", files={"image": png()})
        await running.http.post("/predict", files={"image": b"no image"})
        await running.http.post("/predict?model=mine", files={"image": png()})
        await running.http.post("/predict")
        response = await running.http.get("/metrics")

    lines = response.text.splitlines()
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'topfive_requests_total{code="ok",model="tiny"} 1.0' in lines
    assert 'topfive_requests_total{code="bad_image",model="tiny"} 1.0' in lines
    assert 'topfive_requests_total{code="model_not_found",model="unknown"} 1.0' in lines
    assert 'topfive_requests_total{code="bad_request",model="unknown"} 1.0' in lines
    assert not any('"mine"' in line for line in lines)


async def test_documentation(artifacts: Path) -> None:
    """/docs loads nothing from elsewhere, and the OpenAPI document knows both ways to send an image and every error."""
    async with serving(artifacts, FakeEngine()) as running:
        page = await running.http.get("/docs")
        script = await running.http.get("/static-offline-docs/swagger-ui-bundle.js")
        document = (await running.http.get("/openapi.json")).json()

    assert "https://" not in page.text
    assert script.status_code == 200
    operation = document["paths"]["/predict"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert {"200", "400", "404", "413", "422", "429", "500", "503", "504"} <= set(operation["responses"])


async def raw(running: Running, *pieces: bytes) -> bytes:
    """What comes back for these bytes until the server closes or is silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.service.rest.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return answer


async def test_endless_head(artifacts: Path) -> None:
    """A request whose head does not end is told 431 and cut off; one with a large body and a short head is not."""
    async with serving(artifacts, FakeEngine()) as running:
        refused = await raw(running, b"GET /livez HTTP/1.1\r\n", b"a:\r\n" * 20_000)
        taken = await running.http.post("/predict", content=bytes(300_000), headers={"content-type": "image/png"})
        many = [(await running.http.get("/livez", headers={"x-long": "y" * 30_000})).status_code for _ in range(5)]

    assert refused.startswith(b"HTTP/1.1 431 ")
    assert taken.status_code == 422
    assert many == [200] * 5


async def test_silent_connection(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that sends no whole head in time is closed, in the first request and in a half one."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    async with serving(artifacts, FakeEngine()) as running:
        for start in (b"", b"GET /livez HTTP/1.1\r\nHos"):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.service.rest.port)
            writer.write(start)
            async with asyncio.timeout(10):
                assert await reader.read() == b""
            writer.close()
        assert (await running.http.get("/livez")).status_code == 200


async def test_offer_of_http2(artifacts: Path) -> None:
    """A client that offers to change to HTTP/2 is answered in HTTP/1.1, and its image is not lost."""
    image = png(77)
    head = (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQ\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(image)
    )
    async with serving(artifacts, FakeEngine()) as running:
        together = await raw(running, head + image)
        apart = await raw(running, head, image)

    assert together.startswith(b"HTTP/1.1 200 ")
    assert apart.startswith(b"HTTP/1.1 200 ")


async def test_many_at_once(artifacts: Path) -> None:
    """Two hundred images at once each get their own answer, in batches, and none is lost or mixed up."""
    engine = FakeEngine()
    async with serving(artifacts, engine) as running:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=running.http.base_url, limits=limits, timeout=60) as client:
            shades = [index % 250 for index in range(200)]
            answers = await asyncio.gather(*(client.post("/predict", files={"image": png(s)}) for s in shades))

    assert [answer.json()["predictions"][0]["class_id"] for answer in answers] == shades
    assert sum(engine.batches) == 200
    assert max(answer.json()["batch_size"] for answer in answers) == max(engine.batches)


@pytest.mark.parametrize(("device", "batches"), [("cpu", [1, 4, 5]), ("cuda:0", [2, 8])])
async def test_slots_of_a_cpu_divide_what_waits(exported: Path, device: str, batches: list[int]) -> None:
    """Ten crops go to two idle slots of a CPU in parts; on a card, which all slots share, in the fullest batches."""
    engine = FakeEngine(slots=2, max_batch=8, device=device)
    async with serving(exported, engine) as running:
        engine.batches.clear()
        reply = await running.http.post("/predict?crops=10", content=png(7), headers={"content-type": "image/png"})
    assert reply.status_code == 200
    assert sorted(engine.batches) == batches
