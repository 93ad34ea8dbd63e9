"""Comparisons, ten crops and ensembles through both transports: the same answers and the same errors."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import Code
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.fleet import copy_model
from tests.server.test_transports import comparable
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair(artifacts: Path) -> Path:
    """`tiny` and `twin`."""
    copy_model(artifacts, "twin")
    return artifacts


async def by_rest(running: Running, image: bytes, models: list[str], options: dict[str, int]) -> dict[str, Any]:
    """The reply or the problem."""
    query: dict[str, Any] = {"model": models, **options}
    body: dict[str, Any] = (await running.http.post("/compare", params=query, files={"image": image})).json()
    return body


async def by_grpc(running: Running, image: bytes, models: list[str], options: dict[str, int]) -> dict[str, Any]:
    """The same of gRPC: the reply, or the code and the detail of the error."""
    request = pb.CompareRequest(image=image, models=models, top_k=options.get("top_k"), crops=options.get("crops"))
    try:
        reply = await running.stub.Compare(request)
    except grpc.aio.AioRpcError as error:
        return {"code": dict(error.trailing_metadata())["topfive-code"], "detail": error.details()}
    fields = MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for row in fields["rows"]:
        row.get("error", {}).pop("status", None)
    return fields


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
async def test_same_comparison(pair: Path, models: list[str], options: dict[str, int]) -> None:
    """Both transports give the same rows, agreement, common classes and warnings."""
    async with serving(pair, models=("tiny", "twin")) as running:
        rest = await by_rest(running, png(9), models, options)
        rpc = await by_grpc(running, png(9), models, options)

    def without_batches(value: Any) -> Any:
        for row in value["rows"]:
            row.get("answer", {}).pop("batch_size", None)
        return value

    assert without_batches(comparable(rest)) == without_batches(comparable(rpc))
    asked = [model.replace(" ", "") for model in models if model]
    assert [row["model"] for row in rest["rows"]] == (list(dict.fromkeys(asked)) or ["tiny", "twin"])


@pytest.mark.parametrize(
    ("image", "models", "options", "code"),
    [
        (b"no image", ["tiny"], {}, Code.BAD_IMAGE),
        (png(), ["tiny"], {"crops": 3}, Code.BAD_REQUEST),
        (png(), ["tiny"], {"top_k": 0}, Code.BAD_REQUEST),
        (png(), [f"m{number}" for number in range(65)], {}, Code.BAD_REQUEST),
    ],
)
async def test_same_refusal(
    artifacts: Path, image: bytes, models: list[str], options: dict[str, int], code: Code
) -> None:
    """What is wrong with the request as a whole has the same code and words in both."""
    async with serving(artifacts, FakeEngine()) as running:
        rest = await by_rest(running, image, models, options)
        rpc = await by_grpc(running, image, models, options)

    assert rest["code"] == code
    assert (rest["code"], rest["detail"]) == (rpc["code"], rpc["detail"])


async def test_same_ensemble_and_crops(pair: Path) -> None:
    """One answer of an ensemble with ten crops: the same members and card in both."""
    async with serving(pair) as running:
        query: dict[str, Any] = {"model": "ensemble:tiny+twin", "crops": 10}
        rest = (await running.http.post("/predict", params=query, files={"image": png(5)})).json()
        rpc = await running.stub.Classify(pb.ClassifyRequest(image=png(5), model="ensemble:tiny+twin", crops=10))
        refused = await running.http.post("/predict?crops=3", files={"image": png(5)})

    fields = MessageToDict(rpc, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    assert {**comparable(rest), "batch_size": 0} == {**comparable(fields), "batch_size": 0}
    assert [member["name"] for member in rest["members"]] == ["tiny", "twin"]
    assert next(iter(rest)) == "request_id"
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")


async def test_a_plus_in_an_address(pair: Path) -> None:
    """`?model=ensemble:a+b` as it is typed, where `+` means a blank, names the same ensemble as the encoded one."""
    async with serving(pair) as running:
        asked = [f"ensemble:tiny{plus}twin" for plus in ("+", "%2B", "%20+%20")]
        answers = [await running.http.post(f"/predict?model={name}", files={"image": png(5)}) for name in asked]
        rows = [await running.http.post(f"/compare?model={name}", files={"image": png(5)}) for name in asked]

    assert [answer.json()["model"]["name"] for answer in answers] == ["ensemble:tiny+twin"] * 3
    assert [[row["model"] for row in reply.json()["rows"]] for reply in rows] == [["ensemble:tiny+twin"]] * 3
    assert all(reply.json()["rows"][0]["error"] is None for reply in rows)


async def test_rest_details(pair: Path) -> None:
    """Commas name models too, the times come as a header, a raw body will do, a failing engine tells no cause."""
    engine = FakeEngine()
    async with serving(pair, engine) as running:
        headers = {"Content-Type": "image/png", "X-Request-Id": "order-7"}
        response = await running.http.post("/compare?model=tiny,twin", content=png(5), headers=headers)
        engine.script = [RuntimeError("secret path /etc/engine")]
        failed = (await running.http.post("/compare?model=tiny", files={"image": png()})).json()
        document = (await running.http.get("/openapi.json")).json()

    body = response.json()
    assert body["request_id"] == "order-7"
    assert [row["model"] for row in body["rows"]] == ["tiny", "twin"]
    timing = body["timing_ms"]
    assert response.headers["server-timing"] == f"decode;dur={timing['decode']:.3f}, total;dur={timing['total']:.3f}"
    assert failed["rows"][0]["error"]["code"] == "internal"
    assert "secret" not in json.dumps(failed)
    schema = document["paths"]["/compare"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/CompareReply"}
    assert "members" in document["components"]["schemas"]["PredictReply"]["properties"]
