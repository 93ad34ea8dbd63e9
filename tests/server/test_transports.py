"""One table of cases through both transports: REST and gRPC give the same answers and the same errors."""

import asyncio
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from export.gate_images import PHOTOS
from models.artifact.artifact import load
from models.artifact.engine_plan import EnginePlan
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import TABLE, Code
from service.common.request_id import current_request_id
from service.common.types import Classification, Layout, Precision
from service.engines.selection.compatibility import Source, judge
from service.engines.selection.opening import Choice
from service.inference.dataplane import ClassifyOptions
from tests.conftest import png
from tests.engines.test_compatibility import ADA, TURING, machine
from tests.fakes import FakeEngine, reached
from tests.models.test_plan import record
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client of either transport got: the reply as a dictionary, or the code and detail of the error."""

    reply: dict[str, Any] | None
    code: str = ""
    detail: str = ""


async def by_rest(running: Running, image: bytes, model: str | None, top_k: int | None) -> Answer:
    query = {key: value for key, value in {"model": model, "top_k": top_k}.items() if value is not None}
    response = await running.http.post("/predict", params=query, files={"image": ("a.jpg", image)})
    body = response.json()
    if response.status_code == 200:
        return Answer(body)
    assert response.status_code == TABLE[Code(body["code"])].http
    return Answer(None, body["code"], body["detail"])


async def by_grpc(running: Running, image: bytes, model: str | None, top_k: int | None) -> Answer:
    try:
        reply = await running.stub.Classify(pb.ClassifyRequest(image=image, model=model or "", top_k=top_k))
    except grpc.aio.AioRpcError as error:
        code = dict(error.trailing_metadata())["topfive-code"]
        if error.code().name != TABLE[Code(str(code))].grpc:
            pytest.fail(f"{code} came as {error.code()}")
        return Answer(None, str(code), error.details() or "")
    return Answer(MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))


def comparable(value: Any) -> Any:
    """The reply without what differs from call to call, and 64-bit numbers as numbers."""
    if isinstance(value, dict):
        left_out = ("request_id", "timing_ms", "latency_ms", "probability")
        return {key: comparable(item) for key, item in value.items() if key not in left_out and item not in (None, "")}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def assert_same(rest: Answer, rpc: Answer) -> None:
    """Both replies say the same, to 1e-6 in the probabilities."""
    assert rest.reply is not None
    assert rpc.reply is not None
    assert comparable(rest.reply) == comparable(rpc.reply)
    for left, right in zip(rest.reply["predictions"], rpc.reply["predictions"], strict=True):
        assert math.isclose(left["probability"], right["probability"], abs_tol=1e-6)


GOOD: list[tuple[str, bytes, str | None, int | None]] = [
    ("the default model and five classes", png(10), None, None),
    ("a model by name", png(200), "tiny", None),
    ("one class", png(7), "tiny", 1),
    ("every class", png(7), "tiny", 1000),
    ("a photo", (PHOTOS / "bee.jpeg").read_bytes(), "tiny", 3),
    ("a PNG with alpha", png((9, 9, 9, 128), mode="RGBA"), "tiny", 5),
    ("one pixel", png(1, size=(1, 1)), "tiny", 5),
]
BAD: list[tuple[str, bytes, str | None, int | None, Code]] = [
    ("no bytes", b"", "tiny", None, Code.BAD_IMAGE),
    ("a text file", b"this is not a cat", "tiny", None, Code.BAD_IMAGE),
    ("a truncated photo", (PHOTOS / "bee.jpeg").read_bytes()[:3000], "tiny", None, Code.BAD_IMAGE),
    ("an unknown model", png(), "tinny", None, Code.MODEL_NOT_FOUND),
    ("a model not exported", png(), "resnet50", None, Code.MODEL_NOT_FOUND),
    ("no class at all", png(), "tiny", 0, Code.BAD_REQUEST),
    ("more classes than there are", png(), "tiny", 1001, Code.BAD_REQUEST),
    ("too many bytes", png() + bytes(200_000), "tiny", None, Code.TOO_LARGE),
    ("too many pixels", png(size=(1001, 1000)), "tiny", None, Code.TOO_LARGE),
]


@pytest.mark.parametrize(("image", "model", "top_k"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
async def test_same_answer(artifacts: Path, image: bytes, model: str | None, top_k: int | None) -> None:
    """Both transports answer a good request alike, to 1e-6 in the probabilities."""
    async with serving(artifacts) as running:
        rest = await by_rest(running, image, model, top_k)
        rpc = await by_grpc(running, image, model, top_k)

    assert_same(rest, rpc)
    assert rest.reply is not None
    assert len(rest.reply["predictions"]) == (top_k or 5)


@pytest.mark.parametrize(("image", "model", "top_k", "code"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
async def test_same_error(artifacts: Path, image: bytes, model: str | None, top_k: int | None, code: Code) -> None:
    """Both transports refuse a bad request with the same code and the same words."""
    async with serving(artifacts, FakeEngine(), max_image_bytes=100_000, max_image_pixels=1_000_000) as running:
        rest = await by_rest(running, image, model, top_k)
        rpc = await by_grpc(running, image, model, top_k)

    assert rest.code == code
    assert (rest.code, rest.detail) == (rpc.code, rpc.detail)


@pytest.mark.parametrize("identity", ["bestellung-ä", "a\nb", "x" * 200])
async def test_unusable_request_id(artifacts: Path, identity: str) -> None:
    """An id that does not fit a header or a log line is replaced in both transports, and errors still arrive."""
    async with serving(artifacts, FakeEngine()) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Classify(pb.ClassifyRequest(image=b"no", request_id=identity), timeout=5)
        good = await running.stub.Classify(pb.ClassifyRequest(image=png(), request_id=identity), timeout=5)
        headers = {b"X-Request-Id": identity.encode("latin-1").replace(b"\n", b"\t")}
        rest = await running.http.post("/predict", files={"image": b"no"}, headers=headers)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert good.request_id != identity
    assert rest.status_code == 422
    assert len(rest.json()["request_id"]) == len(good.request_id) == 32


async def test_current_request_id(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a request is answered its id is the current one in both transports, for whatever logs."""
    seen = []
    async with serving(artifacts, FakeEngine()) as running:
        classify = running.data_plane.classify

        async def noted(image: bytes, model: str | None, options: ClassifyOptions) -> Classification:
            seen.append(current_request_id.get())
            return await classify(image, model, options)

        monkeypatch.setattr(running.data_plane, "classify", noted)
        await running.http.post("/predict", files={"image": png()}, headers={"X-Request-Id": "order-1"})
        await running.stub.Classify(pb.ClassifyRequest(image=png(), request_id="order-2"))
        await running.stub.ClassifyStream(iter([pb.ClassifyRequest(image=png(), request_id="order-3")])).read()
    assert seen == ["order-1", "order-2", "order-3"]


async def test_damaged_manifest(artifacts: Path) -> None:
    """An unreadable manifest of a model outside the catalog does not take the list with it, and is named."""
    (artifacts / "mine" / "1").mkdir(parents=True)
    (artifacts / "mine" / "1" / "manifest.json").write_text("{")
    async with serving(artifacts, FakeEngine()) as running:
        rest = await running.http.get("/models")
        rpc = await running.stub.ListModels(pb.ListModelsRequest())
        page = await running.http.get("/models/mine")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.GetModel(pb.GetModelRequest(name="mine"))

    assert [row["name"] for row in rest.json()["models"]] == [row.model.name for row in rpc.models]
    assert "mine" not in [row.model.name for row in rpc.models]
    assert (page.status_code, page.json()["code"]) == (503, "not_ready")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_list_before_the_start(artifacts: Path) -> None:
    """Before a default model is known the lists are not ready, with the same code in both transports."""
    async with serving(artifacts, FakeEngine(), load=False) as running:
        rest = await running.http.get("/models")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.ListModels(pb.ListModelsRequest())

    assert (rest.status_code, rest.json()["code"]) == (503, "not_ready")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(caught.value.trailing_metadata())["topfive-code"] == "not_ready"


async def test_engine_failure(artifacts: Path) -> None:
    """A failing engine is an internal error in both transports, and neither tells the client its cause."""
    engine = FakeEngine()
    async with serving(artifacts, engine) as running:
        engine.script = [RuntimeError("secret path /etc/engine"), RuntimeError("secret path /etc/engine")]
        rest = await by_rest(running, png(), "tiny", None)
        rpc = await by_grpc(running, png(), "tiny", None)

    assert rest.code == rpc.code == Code.INTERNAL
    assert "secret" not in rest.detail + rpc.detail


async def test_same_model_list(artifacts: Path) -> None:
    """Both transports know the same models in the same states, with the same facts."""
    async with serving(artifacts) as running:
        rest = (await running.http.get("/models")).json()
        rpc = await running.stub.ListModels(pb.ListModelsRequest())
        pages = [(await running.http.get(f"/models/{row['name']}")).json() for row in rest["models"]]
        details = [await running.stub.GetModel(pb.GetModelRequest(name=page["name"])) for page in pages]

    assert rest["default"] == rpc.default_model == "tiny"
    facts = ("name", "family", "parameters", "macs", "input_size")
    for row, info in zip(rest["models"], rpc.models, strict=True):
        assert [row[fact] for fact in facts] == [getattr(info.model, fact) for fact in facts]
        assert (row["state"], row["year"], row["classes"]) == (info.state, info.year, info.classes)
        assert (row["version"] or 0, row["weights"] or "") == (info.model.version, info.model.weights)
        assert row["acc1"] == (info.model.acc1 if info.model.HasField("acc1") else None)
        assert row["warnings"] == list(info.warnings)
    for page, detail in zip(pages, details, strict=True):
        assert page["input"]["resize"] == detail.input.resize
        reports = [MessageToDict(report, preserving_proto_field_name=True) for report in detail.parity]
        assert page["parity"] == reports
        assert [weights["tag"] for weights in page["published"]] == [weights.tag for weights in detail.published]
        assert bool(page["weights_file"]) == detail.HasField("weights")


async def test_same_engines(artifacts: Path) -> None:
    """Both transports say alike which engines are built, which fit, what was passed over and how the check ended."""
    tiny = load(artifacts, "tiny")
    report = tiny.manifest.parity[0].model_copy(update={"runtime": "tensorrt-rtx", "precision": "fp16"})
    source = Source.of(tiny)
    made = record(graph_sha256=source.graph_sha256)
    fits = [judge(EnginePlan(Path("some.plan"), made), source, machine(card), Precision.AUTO) for card in (ADA, TURING)]
    layout = Layout(2, 1, 8, "tuned on 2026-11-22")
    choice = Choice(("tensorrt-rtx does not run tiny; fake in f32 serves instead",), tuple(fits), (report,), layout)
    async with serving(artifacts, FakeEngine(), choice=choice) as running:
        [row] = [one for one in (await running.http.get("/models")).json()["models"] if one["name"] == "tiny"]
        [info] = [
            one for one in (await running.stub.ListModels(pb.ListModelsRequest())).models if one.model.name == "tiny"
        ]
        page = (await running.http.get("/models/tiny")).json()
        detail = await running.stub.GetModel(pb.GetModelRequest(name="tiny"))

    message = MessageToDict(detail, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    assert row["passed_over"] == list(info.passed_over) == page["passed_over"] == list(choice.passed_over)
    assert row["layout"] == page["layout"] == MessageToDict(info.layout, preserving_proto_field_name=True)
    assert row["layout"] == {"slots": 2, "threads": 1, "max_batch": 8, "origin": "tuned on 2026-11-22"}
    assert comparable(page["engines"]) == comparable(message["engines"])
    assert [(engine["fits"], engine["card"]) for engine in page["engines"]] == [(True, None), (False, None)]
    assert page["engines"][0]["reason"] == page["engines"][0]["remedy"] == ""
    assert "built for sm86, sm89" in page["engines"][1]["reason"]
    assert page["engines"][1]["remedy"].startswith("topfive export tiny --engine tensorrt-rtx")
    assert page["parity"][-1]["runtime"] == detail.parity[-1].runtime == "tensorrt-rtx"


async def test_same_layers(artifacts: Path) -> None:
    """Both transports give the same table of layers, of a model that is not loaded, with totals as in the list."""
    async with serving(artifacts, FakeEngine(), load=False) as running:
        rest = await running.http.get("/models/tiny/layers")
        rpc = await running.stub.GetLayers(pb.GetLayersRequest(name="tiny"))
        states = [entry.state for entry in running.data_plane.repository.entries() if entry.name == "tiny"]

    message = MessageToDict(rpc, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    body = rest.json()
    for row in (*body["layers"], *body["stages"]):  # no size is null there and empty here
        row.update({size: [] for size, value in row.items() if value is None and size != "groups"})
    assert rest.status_code == 200
    assert comparable(body) == comparable(message)
    assert (body["model"], body["version"], body["input_shape"]) == ("tiny", 1, [3, 32, 32])
    assert (body["parameters"], body["macs"]) == (20_752, 181_888)
    assert [stage["name"] for stage in body["stages"]] == ["features.0", "features.1", "features.2", "classifier"]
    assert body["layers"][0]["share"] == pytest.approx(100 * 55_296 / 181_888)
    assert states == ["exported"]


@pytest.mark.parametrize(
    ("name", "code", "detail"),
    [
        ("tinny", Code.MODEL_NOT_FOUND, "did you mean tiny"),
        ("resnet50@IMAGENET1K_V1", Code.MODEL_NOT_FOUND, "topfive export resnet50@IMAGENET1K_V1"),
        ("old", Code.MODEL_NOT_FOUND, "version 1 of old has no layers.json"),
        ("tiny", Code.NOT_READY, "layers.json differs from its manifest"),
    ],
)
async def test_no_layers(artifacts: Path, name: str, code: Code, detail: str) -> None:
    """Where there is no table both transports say why in the same words, and what to do."""
    shutil.copytree(artifacts / "tiny", artifacts / "old")
    manifest = json.loads((artifacts / "old" / "1" / "manifest.json").read_text())
    del manifest["files"]["layers.json"]
    (artifacts / "old" / "1" / "manifest.json").write_text(json.dumps(manifest | {"name": "old"}))
    (artifacts / "tiny" / "1" / "layers.json").write_text("{}")
    async with serving(artifacts, FakeEngine(), load=False) as running:
        rest = await running.http.get(f"/models/{name}/layers")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.GetLayers(pb.GetLayersRequest(name=name))

    assert (rest.status_code, rest.json()["code"]) == (TABLE[code].http, code)
    assert detail in rest.json()["detail"]
    assert caught.value.code().name == TABLE[code].grpc
    assert caught.value.details() == rest.json()["detail"]


async def test_trained_answers(trained: Path, shared_data: Path) -> None:
    """With trained weights both transports name every labelled photo rightly."""
    rows = [line.split(",") for line in (shared_data / "photos" / "labels.csv").read_text().splitlines()[1:]]
    async with serving(trained, models=("squeezenet1_1",)) as running:
        for file, class_id, *_ in rows:
            image = (shared_data / "photos" / file).read_bytes()
            rest = await by_rest(running, image, "squeezenet1_1", None)
            rpc = await by_grpc(running, image, "squeezenet1_1", None)

            assert_same(rest, rpc)
            assert rest.reply is not None
            assert rest.reply["predictions"][0]["class_id"] == int(class_id)
    assert len(rows) == 10


async def test_a_bound_refuses_early_over_both(artifacts: Path) -> None:
    """The lone request of an idle server is answered, late or not; who would come behind it is told so at once."""
    engine = FakeEngine()
    async with serving(artifacts, engine, slo_ms=1) as running:
        engine.gate.clear()
        lone = asyncio.create_task(by_rest(running, png(3), None, None))
        model = await running.data_plane.repository.get("tiny")
        await reached(lambda: model.batcher.in_flight == 1)
        refused = [await by_rest(running, png(), None, None), await by_grpc(running, png(), None, None)]
        engine.gate.set()
        answer = await lone
        metrics = (await running.http.get("/metrics")).text

    assert answer.reply is not None
    assert [one.code for one in refused] == ["overloaded", "overloaded"]
    assert all("within the 1 ms of --slo-ms" in one.detail for one in refused)
    assert 'topfive_slo_total{model="tiny",result="over"} 1.0' in metrics
    assert 'topfive_slo_total{model="tiny",result="refused"} 2.0' in metrics
