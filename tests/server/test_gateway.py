"""A gateway in front of inference servers: it answers as they do, and loses nothing when they go and come."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from tests.command_line import topfive
from tests.conftest import png
from tests.exposition import value
from tests.fakes import FakeEngine, reached
from tests.gateway.inference_servers import Inference, RunningGateway, gateway, refusing
from tests.server.test_app import BAD, GOOD
from tests.server.test_process import TOPFIVE, server, started
from tests.serving import PNG, Running, busy, comparable, serving

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def front(running: Running) -> AsyncIterator[RunningGateway]:
    """A gateway in front of `running`, which the tests share."""
    async with gateway(running.service.rpc.port, max_image_bytes=10_000_000) as started:
        yield started


@pytest.mark.parametrize("path", ["/predict", "/compare"])
@pytest.mark.parametrize(
    ("image", "query"),
    [
        *((case.values[0], {"model": case.values[1], "top_k": case.values[2]}) for case in (*GOOD, *BAD)),
        (png(), {"crops": 10}),
        (png(), {"crops": 3}),
        (png(), {"model": "ensemble:tiny"}),
        (png(), {"model": "tiny+"}),
        (png(), {"version": 1}),
        (png(), {"version": 2}),
    ],
)
async def test_same_answers(
    running: Running, front: RunningGateway, path: str, image: bytes, query: dict[str, Any]
) -> None:
    """REST says the same through a gateway: answers, errors, comparisons, ensembles."""
    direct, through = await running.rest(path, image, **query), await front.rest(path, image, **query)

    assert comparable(direct) == comparable(through)


async def test_same_pages(running: Running, front: RunningGateway) -> None:
    """The list of models, the page of each and its layers are the same to the last digit."""
    names = [model["name"] for model in (await running.rest("/models"))["models"]]
    pages = ["/models", *(f"/models/{name}" for name in names), "/models/tiny/layers", "/models/tin"]
    for page in [*pages, "/models/alexnet/layers", "/models/ensemble:tiny", "/models/tiny?version=7"]:
        assert await running.rest(page) == await front.rest(page), page
    assert len(names) > 10


async def test_same_inference(running: Running, front: RunningGateway) -> None:
    """The Open Inference Protocol says the same through a gateway, but for its extensions and the statistics."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": [9] * 3072 + [4] * 3072}
    best = {"name": "probabilities", "parameters": {"classification": 3}}
    path = "/v2/models/tiny/infer"
    bodies: list[dict[str, Any]] = [{"inputs": [tensor]}, {"inputs": [tensor], "outputs": [best]}, {"inputs": []}]
    for body in bodies:
        replies = [await one.http.post(path, json=body) for one in (running, front)]
        assert replies[0].json() == replies[1].json()
        assert replies[0].status_code == replies[1].status_code
    raw = {"Inference-Header-Content-Length": "0"}
    for image in (png(7), b"bad"):
        replies = [await one.http.post(path, content=image, headers=raw) for one in (running, front)]
        assert replies[0].content == replies[1].content
    for page in ("/v2/models/tiny", "/v2/models/tiny/config", "/v2/models/nobody", "/v2/models/tiny/versions/9"):
        assert (await running.http.get(page)).json() == (await front.http.get(page)).json()
    assert "statistics" not in (await front.http.get("/v2")).json()["extensions"]
    assert (await front.http.get("/v2/models/stats")).status_code == 501
    assert value(front.gateway.metrics, "topfive_requests_total", model="tiny", code="ok") or 0 >= 3


async def test_one_id_in_both_logs(front: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    """What an inference server logs of a request has the id that the gateway's reply has, also of several at once."""
    caplog.set_level("INFO", "service.rpc.errors")
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


CLASSES = "send 1 or more, at most the number of the model's classes"


@pytest.mark.parametrize(
    ("name", "number", "detail"),
    [
        ("top_k", 1 << 32, f"top_k is {1 << 32}; {CLASSES}"),
        ("top_k", -1, f"top_k is -1; {CLASSES}"),
        ("crops", 1 << 40, f"crops is {1 << 40}; send 1 or 10"),
        ("crops", -10, "crops is -10; send 1 or 10"),
        ("version", 1 << 32, f"version is {1 << 32}; send a version of the model, as /models/NAME lists them"),
    ],
)
async def test_numbers_that_no_message_holds(front: RunningGateway, name: str, number: int, detail: str) -> None:
    """A number of classes or crops beyond 32 bits or below zero is a bad request, whose detail has the right ones."""
    problem = await front.rest("/predict", png(), **{name: number})

    assert problem == {"code": "bad_request", "detail": detail}


async def test_limits_hold_before_the_call() -> None:
    """The gateway itself refuses what is too large, and gives back the memory of what it has answered."""
    inference = Inference("one")
    async with inference.listening(), gateway(inference.port, max_image_bytes=1000, max_upload_bytes=1500) as front:
        large = await front.http.post("/predict", content=bytes(1001), headers=PNG)
        inference.script = [refusing(grpc.StatusCode.INTERNAL, "broken", ("topfive-code", "internal"))]
        failed = await front.http.post("/predict", content=bytes(900), headers=PNG)
        good = await front.http.post("/predict", content=bytes(900), headers=PNG)
        metrics = front.gateway.metrics

    assert (large.status_code, failed.status_code, good.status_code) == (413, 500, 200)
    assert failed.json()["detail"] == "the server failed; its log has the cause"
    assert inference.calls == 2
    for model, code in [("unknown", "too_large"), ("unknown", "internal"), ("tiny", "ok")]:
        assert value(metrics, "topfive_requests_total", model=model, code=code) == 1


async def test_overloaded_says_when() -> None:
    """The refusal of a server at capacity keeps its Retry-After; the gateway does not call the only server again."""
    inference = Inference("one")
    full = [("topfive-code", "overloaded"), ("grpc-retry-pushback-ms", "6200")]
    async with inference.listening(), gateway(inference.port) as front:
        inference.script = [refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", *full)]
        answer = await front.http.post("/predict", files={"image": png()})

    assert (answer.status_code, answer.headers["retry-after"], inference.calls) == (429, "7", 1)


async def test_readiness() -> None:
    """A gateway is ready while at least one server says it is, and always alive; if not ready, it names its servers."""
    inference = Inference("one")
    async with inference.listening():
        port = inference.port
    async with gateway(port, 1, load=False) as front:

        async def until_status(status: int) -> None:
            async with asyncio.timeout(10):
                while (await front.http.get("/readyz")).status_code != status:
                    pass

        before = await front.http.get("/readyz")
        async with inference.listening():
            await front.gateway.load()
            await until_status(200)
            await inference.set_ready(False)
            await until_status(503)
            await inference.set_ready(True)
            await until_status(200)
        await until_status(503)
        alive = await front.http.get("/livez")

    assert (before.status_code, before.headers["retry-after"]) == (503, "1")
    assert f"127.0.0.1:{port}, 127.0.0.1:1" in before.json()["detail"]
    assert alive.status_code == 200


async def test_a_client_leaves(exported: Path) -> None:
    """A client that hangs up frees its place at the inference server."""
    engine = FakeEngine(max_batch=1)
    async with (
        serving(exported, engine) as running,
        gateway(running.service.rpc.port) as front,
        busy(running, engine) as batcher,
    ):
        left = asyncio.create_task(front.http.post("/predict", files={"image": png()}))
        await reached(lambda: batcher.admitted == 2)
        left.cancel()
        await reached(lambda: batcher.admitted == 1)


async def test_requests_end_with_the_drain() -> None:
    """A gateway that stops while a request waits for a server answers it with 503 at the drain limit."""
    async with gateway(1, load=False, drain_s=0.5) as front:
        waiting = asyncio.create_task(front.rest("/predict", png()))
        await reached(lambda: bool(front.gateway.rest._server.server_state.tasks))
        await front.gateway.stop(asyncio.Event())

        assert (await waiting)["code"] == "shutting_down"


async def test_servers_come_and_go(exported: Path) -> None:
    """Under load with bodies of 5 MB one of two servers is killed and started again: every request is answered.

    Then both are killed at once, which loses what was in flight at most, and one is started. The gateway stops in the
    middle of requests, and answers those it had accepted.
    """
    image = png(7) + bytes(5_000_000)
    headers = {**PNG, "connection": "close"}  # a kept one may be closed while a request is sent
    async with server(exported) as one, server(exported) as two:
        ports = [one.grpc_port, two.grpc_port]
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

            async def more() -> None:
                enough = len(statuses) + 8
                await reached(lambda: len(statuses) >= enough)

            load = [asyncio.create_task(ask()) for _ in range(4)]
            await more()
            one.process.kill()
            await one.process.wait()
            await more()
            async with server(exported, "--grpc-port", str(ports[0])) as again:
                await more()
                assert set(statuses) == {200}
                two.process.kill()
                again.process.kill()
                await asyncio.gather(two.process.wait(), again.process.wait())
            async with server(exported, "--grpc-port", str(ports[1])):
                await more()
                front.process.send_signal(signal.SIGTERM)
                ended = await asyncio.gather(*load, return_exceptions=True)
                assert await front.ended() == 0

    assert set(statuses) <= {200, 503}
    assert statuses.count(503) <= len(load)
    assert {type(end) for end in ended} == {httpx.ConnectError}  # every connection that it took was answered
    assert len(front.logged("no inference server is ready")) == 1
    assert front.logged("ERROR") + front.logged("Traceback") == []


@pytest.mark.parametrize("options", [[], ["--inference", "inference"]])
def test_usage(options: list[str]) -> None:
    """Without a server, or with one that is no address, the command ends with status 2 and names its option."""
    result = topfive("gateway", *options)

    assert result.exit_code == 2
    assert "--inference" in result.output
