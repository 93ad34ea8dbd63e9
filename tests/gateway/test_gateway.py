"""A gateway in front of inference servers: it answers as they do, and loses nothing when they go and come."""

import asyncio
import io
import signal
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from PIL import Image

from service.common.errors import TABLE
from tests.conftest import noise, png
from tests.exposition import value
from tests.fakes import FakeEngine
from tests.gateway.inference_servers import Inference, gateway, refusing
from tests.rest.test_rest import until
from tests.server.test_serve import TOPFIVE, Server, run, server, started
from tests.server.test_transports import BAD, GOOD, comparable
from tests.serving import serving

pytestmark = pytest.mark.anyio


def grpc_port(running: Server) -> int:
    """The port that a server says it has."""
    return int("".join(running.log).partition("gRPC on 127.0.0.1:")[2].split()[0])


async def both(direct: httpx.AsyncClient, front: httpx.AsyncClient, method: str, url: str, **body: Any) -> list[Any]:
    """Status and comparable body of the server's own REST, and of the gateway's."""
    answers = [await client.request(method, url, **body) for client in (direct, front)]
    return [(answer.status_code, comparable(answer.json())) for answer in answers]


async def test_same_answers(artifacts: Path) -> None:
    """REST says the same through a gateway: answers, errors, comparisons, ensembles."""
    async with (
        serving(artifacts, FakeEngine(), max_image_bytes=100_000, max_image_pixels=1_000_000) as running,
        gateway([running.service.rpc.port], max_image_bytes=100_000) as front,
    ):
        for what, image, model, top_k in [case[:4] for case in (*GOOD, *BAD)]:
            query = {key: value for key, value in {"model": model, "top_k": top_k}.items() if value is not None}
            for url in ("/predict", "/compare"):
                files = {"image": ("a.jpg", image)}
                left, right = await both(running.http, front.http, "POST", url, params=query, files=files)
                assert left == right, (what, url)
        asked: list[dict[str, Any]] = [
            {"crops": 10},
            {"crops": 3},
            {"model": "ensemble:tiny"},
            {"model": "tiny+"},
        ]
        for query in asked:
            left, right = await both(running.http, front.http, "POST", "/predict", params=query, files={"image": png()})
            assert left == right, query


async def test_same_pages(artifacts: Path) -> None:
    """The list of models, the page of each and its layers are the same to the last digit."""
    async with serving(artifacts, FakeEngine()) as running, gateway([running.service.rpc.port]) as front:
        names = [model["name"] for model in (await running.http.get("/models")).json()["models"]]
        pages = ["/models", *(f"/models/{name}" for name in names), "/models/tiny/layers", "/models/tin"]
        pages += ["/models/alexnet/layers", "/models/ensemble:tiny"]
        for page in pages:
            direct, through = await running.http.get(page), await front.http.get(page)
            left, right = direct.json(), through.json()
            left.pop("request_id", None)
            right.pop("request_id", None)
            assert (direct.status_code, left) == (through.status_code, right), page
    assert len(names) > 10


async def test_one_id_in_both_logs(artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What an inference server logs of a request has the id that the gateway's reply has, also of several at once."""
    caplog.set_level("INFO", "service.rpc.errors")
    async with serving(artifacts, FakeEngine()) as running, gateway([running.service.rpc.port]) as front:
        answers = await asyncio.gather(
            front.http.post("/predict", files={"image": png()}, params={"model": "tin"}),
            *(
                front.http.post("/compare", files={"image": png()}, params={"crops": 3}, headers={"X-Request-Id": own})
                for own in ("order-7", "order-8")
            ),
        )
    logged = {record.getMessage().partition(":")[0] for record in caplog.records if record.name == "service.rpc.errors"}
    assert [answer.status_code for answer in answers] == [404, 400, 400]
    assert logged == {answers[0].json()["request_id"], "order-7", "order-8"}


async def test_numbers_that_no_message_holds(artifacts: Path) -> None:
    """A number of classes or crops beyond 32 bits or below zero is a bad request, which says what would be right."""
    classes = "send 1 or more, at most the number of the model's classes"
    async with serving(artifacts, FakeEngine()) as running, gateway([running.service.rpc.port]) as front:
        for name, value, right in (
            ("top_k", 1 << 32, classes),
            ("top_k", -1, classes),
            ("crops", 1 << 40, "send 1 or 10"),
            ("crops", -10, "send 1 or 10"),
        ):
            answer = await front.http.post("/predict", params={name: value}, files={"image": png()})
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
            assert answer.json()["detail"] == f"{name} is {value}; {right}"


async def test_limits_hold_before_the_call() -> None:
    """What is too large, and what would fill the memory, is refused by the gateway itself."""
    inference = Inference("one")
    async with inference.listening(), gateway([inference.port], max_image_bytes=1000, max_upload_bytes=1500) as front:
        headers = {"content-type": "image/png"}
        large = await front.http.post("/predict", content=bytes(1001), headers=headers)
        inference.script = [refusing(grpc.StatusCode.INTERNAL, "broken", ("topfive-code", "internal"))]
        failed = await front.http.post("/predict", content=bytes(900), headers=headers)
        good = await front.http.post("/predict", content=bytes(900), headers=headers)
        metrics = front.gateway.metrics

    assert (large.status_code, failed.status_code, good.status_code) == (413, 500, 200)
    assert failed.json()["detail"] == "the server failed; its log has the cause"
    assert inference.calls == 2
    counted = {
        (model, code): value(metrics, "topfive_requests_total", model=model, code=code)
        for model, code in [("unknown", "too_large"), ("unknown", "internal"), ("tiny", "ok")]
    }
    assert set(counted.values()) == {1.0}


async def test_overloaded_says_when() -> None:
    """The refusal of a server that has no room keeps its Retry-After; the only server is not asked again."""
    inference = Inference("one")
    full = [("topfive-code", "overloaded"), ("grpc-retry-pushback-ms", "6200")]
    async with inference.listening(), gateway([inference.port]) as front:
        inference.script = [refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", *full)]
        answer = await front.http.post("/predict", files={"image": png()})

    assert (answer.status_code, answer.headers["retry-after"], inference.calls) == (429, "7", 1)


async def test_readiness() -> None:
    """Ready while at least one server says it is; alive always; not ready says where it looked."""
    inference = Inference("one")
    async with inference.listening():
        port = inference.port
    async with gateway([port, 1], load=False) as front:

        async def until_status(status: int) -> None:
            async with asyncio.timeout(10):
                while (await front.http.get("/readyz")).status_code != status:
                    pass

        before = await front.http.get("/readyz")
        async with inference.listening():
            await front.gateway.load()
            await until_status(200)
            await inference.serving(False)
            await until_status(503)
            await inference.serving(True)
            await until_status(200)
        await until_status(503)
        alive = await front.http.get("/livez")

    assert (before.status_code, before.headers["retry-after"]) == (503, "1")
    assert f"127.0.0.1:{port}, 127.0.0.1:1" in before.json()["detail"]
    assert alive.status_code == 200


async def test_a_client_leaves(artifacts: Path) -> None:
    """A client that hangs up frees its place at the inference server."""
    engine = FakeEngine(max_batch=1)
    async with serving(artifacts, engine) as running, gateway([running.service.rpc.port]) as front:
        model = await running.data_plane.repository.get("tiny")
        engine.gate.clear()
        kept = asyncio.create_task(front.http.post("/predict", files={"image": png()}))
        await until(lambda: model.batcher.admitted == 1)
        left = asyncio.create_task(front.http.post("/predict", files={"image": png()}))
        await until(lambda: model.batcher.admitted == 2)
        left.cancel()
        await until(lambda: model.batcher.admitted == 1)
        engine.gate.set()
        assert (await kept).status_code == 200


async def test_requests_end_with_the_drain() -> None:
    """A gateway that stops while a request waits for a server tells it so at the drain limit."""
    async with gateway([1], load=False, drain_s=0.5) as front:
        waiting = asyncio.create_task(front.http.post("/predict", files={"image": png()}))
        await until(lambda: bool(front.gateway.rest._server.server_state.tasks))
        await front.gateway.stop(asyncio.Event())
        answer = await waiting

    assert answer.status_code == TABLE[answer.json()["code"]].http == 503
    assert answer.json()["code"] == "shutting_down"


def bmp() -> bytes:
    """An image of 5 MB that is decoded at once."""
    file = io.BytesIO()
    Image.fromarray(noise(1300, 1300)).save(file, "BMP")
    return file.getvalue()


async def test_servers_come_and_go(artifacts: Path) -> None:
    """Under load with bodies of 5 MB one of two servers is killed and started again: every request is answered.

    Then both are killed at once, which loses what was in flight at most, and one is started. The gateway stops in the
    middle of requests, and answers those it had accepted.
    """
    image = bmp()
    headers = {"content-type": "image/bmp", "connection": "close"}  # a kept one may be closed while a request is sent
    async with server(artifacts) as one, server(artifacts) as two:
        ports = [grpc_port(one), grpc_port(two)]
        addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
        async with (
            started(str(TOPFIVE), "gateway", "--inference", addresses, "--port", "0") as front,
            httpx.AsyncClient(base_url=front.url, timeout=60) as client,
        ):
            statuses: list[int] = []

            async def ask() -> None:
                while True:
                    answer = await client.post("/predict", content=image, headers=headers)
                    statuses.append(answer.status_code)

            async def more(count: int) -> None:
                enough = len(statuses) + count
                await until(lambda: len(statuses) >= enough)

            load = [asyncio.create_task(ask()) for _ in range(4)]
            await more(8)
            one.process.kill()
            await one.process.wait()
            await more(8)
            async with server(artifacts, "--grpc-port", str(ports[0])) as again:
                await more(8)
                assert set(statuses) == {200}
                two.process.kill()
                again.process.kill()
                await asyncio.gather(two.process.wait(), again.process.wait())
            async with server(artifacts, "--grpc-port", str(ports[1])):
                await more(8)
                front.process.send_signal(signal.SIGTERM)
                ended = await asyncio.gather(*load, return_exceptions=True)
                assert await front.ended() == 0

    assert set(statuses) <= {200, 503}
    assert statuses.count(503) <= len(load)
    assert {type(end) for end in ended} == {httpx.ConnectError}  # every connection that it took was answered
    assert sum("no inference server is ready" in line for line in front.log) == 1
    assert not [line for line in front.log if "Traceback" in line or " ERROR " in line]


async def test_usage() -> None:
    """Without a server, or with one that is no address, the command says how it is called."""
    for options in ([], ["--inference", "inference"]):
        done = await asyncio.to_thread(run, "gateway", *options)
        assert done.returncode == 2
        assert "--inference" in done.stderr
