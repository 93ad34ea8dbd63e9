"""Images through both transports of a whole service: REST and gRPC give the same answers and the same errors."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from export.gate_images import PHOTOS
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import Code
from service.rest import server
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.fleet import copy_model
from tests.serving import Running, busy, comparable, serving

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def pair(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A service of `tiny` and its copy `twin` on real engines, which the tests share."""
    root = tmp_path_factory.mktemp("pair")
    (root / "tiny").symlink_to(exported / "tiny")
    copy_model(root, "twin")
    async with serving(root, models=("tiny", "twin")) as running:
        yield running


def assert_same(rest: dict[str, Any], rpc: dict[str, Any]) -> None:
    """Both replies say the same, to 1e-6 in the probabilities."""
    assert comparable(rest) == comparable(rpc)
    for left, right in zip(rest["predictions"], rpc["predictions"], strict=True):
        assert math.isclose(left["probability"], right["probability"], abs_tol=1e-6)


GOOD: list[Any] = [
    pytest.param(png(10), None, None, id="the default model and five classes"),
    pytest.param(png(200), "tiny", None, id="a model by name"),
    pytest.param(png(7), "tiny", 1, id="one class"),
    pytest.param(png(7), "tiny", 1000, id="every class"),
    pytest.param((PHOTOS / "bee.jpeg").read_bytes(), "tiny", 3, id="a photo"),
    pytest.param(png((9, 9, 9, 128), mode="RGBA"), "tiny", 5, id="a PNG with alpha"),
    pytest.param(png(1, size=(1, 1)), "tiny", 5, id="one pixel"),
    pytest.param(png(5), "ensemble:tiny+twin", None, id="an ensemble"),
]
BAD: list[Any] = [
    pytest.param(b"", "tiny", None, Code.BAD_IMAGE, id="no bytes"),
    pytest.param(b"this is not a cat", "tiny", None, Code.BAD_IMAGE, id="a text file"),
    pytest.param((PHOTOS / "bee.jpeg").read_bytes()[:3000], "tiny", None, Code.BAD_IMAGE, id="a truncated photo"),
    pytest.param(png(), "tinny", None, Code.MODEL_NOT_FOUND, id="an unknown model"),
    pytest.param(png(), "resnet50", None, Code.MODEL_NOT_FOUND, id="a model not exported"),
    pytest.param(png(), "tiny", 0, Code.BAD_REQUEST, id="no class at all"),
    pytest.param(png(), "tiny", 1001, Code.BAD_REQUEST, id="more classes than there are"),
    pytest.param(png() + bytes(10_000_000), "tiny", None, Code.TOO_LARGE, id="too many bytes"),
    pytest.param(png(size=(1001, 1000)), "tiny", None, Code.TOO_LARGE, id="too many pixels"),
]


@pytest.mark.parametrize(("image", "model", "top_k"), GOOD)
async def test_same_answer(pair: Running, image: bytes, model: str | None, top_k: int | None) -> None:
    """Both transports answer a good request alike, to 1e-6 in the probabilities."""
    rest = await pair.rest("/predict", image, model=model, top_k=top_k)
    rpc = await pair.rpc(pb.ClassifyRequest(image=image, model=model or "", top_k=top_k))

    assert_same(rest, rpc)
    assert len(rest["predictions"]) == (top_k or 5)
    assert rest["batch_size"] == rpc["batch_size"] == 1


@pytest.mark.parametrize(("image", "model", "top_k", "code"), BAD)
async def test_same_error(running: Running, image: bytes, model: str, top_k: int | None, code: Code) -> None:
    """Both transports refuse a bad request, and say so in a comparison, with the same code and the same words."""
    rest = await running.rest("/predict", image, model=model, top_k=top_k)
    rpc = await running.rpc(pb.ClassifyRequest(image=image, model=model, top_k=top_k))
    compared = await running.rest("/compare", image, model=model, top_k=top_k)

    assert rest["code"] == code
    assert rest == rpc
    compared_by_rpc = await running.rpc(pb.CompareRequest(image=image, models=[model], top_k=top_k))
    assert comparable(compared) == comparable(compared_by_rpc)


@pytest.mark.parametrize(
    ("models", "options"),
    [
        ([], {}),
        ([""], {}),
        (["twin", "tiny"], {"top_k": 2}),
        (["tiny", "tinny", "resnet50"], {}),
        (["tiny", "ensemble:tiny+twin"], {"crops": 10}),
        (["ensemble:tiny", "twin", "twin"], {"top_k": 1}),
        (["", " twin "], {}),
        (["ensemble: twin +tiny "], {}),
        (["tiny"], {"top_k": 1001}),
    ],
)
async def test_same_comparison(pair: Running, models: list[str], options: dict[str, Any]) -> None:
    """Both transports give the same rows, agreement, common classes and warnings."""
    rest = await pair.rest("/compare", png(9), model=models, **options)
    rpc = await pair.rpc(pb.CompareRequest(image=png(9), models=models, **options))

    assert comparable(rest) == comparable(rpc)
    asked = [model.replace(" ", "") for model in models if model]
    assert [row["model"] for row in rest["rows"]] == (list(dict.fromkeys(asked)) or ["tiny", "twin"])


async def test_same_version(pair: Running, exported: Path) -> None:
    """Both transports answer with the version that is asked for, and refuse one that is not there in the same words."""
    asked: list[tuple[str, int | None]] = [("tiny", 1), ("tiny", 2), ("ensemble:tiny+twin", 1), ("tiny", None)]
    for model, version in asked:
        rest = await pair.rest("/predict", png(9), model=model, version=version)
        rpc = await pair.rpc(pb.ClassifyRequest(image=png(9), model=model, version=version))
        assert comparable(rest) == comparable(rpc)
        if "code" in rest:
            assert (rest["code"], version) in (("model_not_found", 2), ("bad_request", 1))
        else:
            assert rest["model"]["version"] == 1
    for path, message in (("", pb.GetModelRequest), ("/layers", pb.GetLayersRequest)):
        known = await pair.rest(f"/models/tiny{path}", version=1)
        assert known == await pair.rest(f"/models/tiny{path}")
        absent = await pair.rest(f"/models/tiny{path}", version=7)
        assert absent == await pair.rpc(message(name="tiny", version=7))
        assert "the exported versions are: 1" in absent["detail"]
    assert (await pair.rest("/compare?version=1", png(9)))["code"] == Code.BAD_REQUEST


@pytest.mark.parametrize("plus", ["+", "%2B", "%20+%20"])
async def test_a_plus_in_an_address(pair: Running, plus: str) -> None:
    """`?model=ensemble:a+b` as a user types it, where `+` means a blank, names the same ensemble as the encoded one."""
    answer = await pair.rest(f"/predict?model=ensemble:tiny{plus}twin", png(5))
    comparison = await pair.rest(f"/compare?model=ensemble:tiny{plus}twin", png(5))

    assert answer["model"]["name"] == "ensemble:tiny+twin"
    assert [(row["model"], row["error"]) for row in comparison["rows"]] == [("ensemble:tiny+twin", None)]


async def test_engine_failure(exported: Path) -> None:
    """A failing engine is an internal error in both transports, and no reply tells the client its cause."""
    engine = FakeEngine()
    async with serving(exported, engine) as running:
        engine.script = [RuntimeError("secret path /etc/engine") for _ in range(3)]
        rest = await running.rest("/predict", png())
        rpc = await running.rpc(pb.ClassifyRequest(image=png()))
        compared = await running.rest("/compare", png())

    assert rest["code"] == rpc["code"] == compared["rows"][0]["error"]["code"] == Code.INTERNAL
    assert "secret" not in json.dumps([rest, rpc, compared])


@pytest.mark.parametrize("identity", ["order-7", "bestellung-ä", "a\nb", "a b\tc", "x" * 200])
async def test_request_id(running: Running, identity: str) -> None:
    """Both transports keep the id of a client, also in errors; they replace one that does not fit a header or a log."""
    headers = {b"X-Request-Id": identity.encode("latin-1").replace(b"\n", b"\t")}
    rest = await running.http.post("/predict", files={"image": b"no"}, headers=headers)
    rpc = await running.stub.Classify(pb.ClassifyRequest(image=png(), request_id=identity), timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Classify(pb.ClassifyRequest(image=b"no", request_id=identity), timeout=5)

    ids = [rest.json()["request_id"], rpc.request_id, str(dict(caught.value.trailing_metadata())["x-request-id"])]
    assert rest.headers["x-request-id"] == ids[0]
    if identity == "order-7":
        assert ids == [identity] * 3
    else:
        assert [len(one) for one in ids] == [32] * 3
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_overloaded(exported: Path) -> None:
    """At capacity both transports refuse at once and say when to come back; the accepted request is answered."""
    engine = FakeEngine()
    async with serving(exported, engine, capacity=1) as running, busy(running, engine):
        rest = await running.http.post("/predict", files={"image": png()})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Classify(pb.ClassifyRequest(image=png()))

    assert rest.status_code == 429
    assert int(rest.headers["retry-after"]) >= 1
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(str(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"])) > 0


async def test_latency_bound(exported: Path) -> None:
    """Both transports refuse at once what would miss the latency bound; the request on an idle server is answered."""
    engine = FakeEngine()
    async with serving(exported, engine, slo_ms=1) as running:
        async with busy(running, engine):
            refused = [await running.rest("/predict", png()), await running.rpc(pb.ClassifyRequest(image=png()))]
        metrics = (await running.http.get("/metrics")).text

    assert [one["code"] for one in refused] == [Code.OVERLOADED] * 2
    assert all("within the 1 ms of --slo-ms" in one["detail"] for one in refused)
    assert 'topfive_slo_total{model="tiny",result="over"} 1.0' in metrics
    assert 'topfive_slo_total{model="tiny",result="refused"} 2.0' in metrics


async def test_open_connections_do_not_delay_the_stop(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A health watcher, an idle connection and a silent one are no reason to wait for the drain limit."""
    monkeypatch.setattr(server, "_FIRST_REQUEST_S", 0.05)
    async with serving(exported, FakeEngine(), drain_s=600) as running:
        stub: Any = health_pb2_grpc.HealthStub(running.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        await running.http.get("/livez")
        _, silent = await running.connect()
        async with asyncio.timeout(60):
            await running.service.stop(asyncio.Event())
        silent.close()
        watch.cancel()
        await watch.code()  # so that nothing of it is left for the next test's loop


async def test_keep_alive(exported: Path) -> None:
    """A connection takes further requests, and is closed once it was idle for the time of the setting."""
    async with serving(exported, FakeEngine(), keep_alive_s=0.3) as running, asyncio.timeout(20):
        reader, writer = await running.connect()
        for _ in range(2):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert (await reader.read()).count(b"HTTP/1.1") == 0
        writer.close()


@pytest.mark.parametrize(("device", "batches"), [("cpu", [1, 4, 5]), ("cuda:0", [2, 8])])
async def test_slots_of_a_cpu_divide_what_waits(exported: Path, device: str, batches: list[int]) -> None:
    """Ten crops go to two idle slots of a CPU in parts; on a card, which all slots share, in the fullest batches."""
    engine = FakeEngine(slots=2, max_batch=8, device=device)
    async with serving(exported, engine) as running:
        engine.batches.clear()
        await running.rest("/predict", png(7), crops=10)
    assert sorted(engine.batches) == batches


async def test_trained_answers(trained: Path, shared_data: Path) -> None:
    """With trained weights both transports name every labelled photo rightly."""
    rows = [line.split(",") for line in (shared_data / "photos" / "labels.csv").read_text().splitlines()[1:]]
    async with serving(trained, models=("squeezenet1_1",)) as running:
        for file, class_id, *_ in rows:
            image = (shared_data / "photos" / file).read_bytes()
            rest = await running.rest("/predict", image)

            assert_same(rest, await running.rpc(pb.ClassifyRequest(image=image)))
            assert rest["predictions"][0]["class_id"] == int(class_id)
    assert len(rows) == 10
