"""KServe's first protocol: its answers, and each error in its shape, after which a good request is answered."""

import base64
import json
from typing import Any

import pytest

from tests.conftest import png
from tests.serving import Running

pytestmark = pytest.mark.anyio

PREDICT = "/v1/models/tiny:predict"
CLASS_9 = {"class_id": 9, "label": "ostrich", "probability": 0.5}


def instances(*images: bytes) -> dict[str, Any]:
    """The body of a request with these image files."""
    return {"instances": [{"b64": base64.b64encode(image).decode()} for image in images]}


async def test_predict(running: Running) -> None:
    """Each image has its five best classes, in the order of the request."""
    response = await running.http.post(PREDICT, json=instances(png(9), png(4), png(9)))
    predictions = response.json()["predictions"]

    assert [row[0]["class_id"] for row in predictions] == [9, 4, 9]
    assert predictions[0][0] == CLASS_9
    assert [one["class_id"] for one in predictions[0]] == [9, 0, 1, 2, 3]


async def test_models(running: Running) -> None:
    """A model says whether it is ready; the list has all that are exported."""
    assert (await running.http.get("/v1/models/tiny")).json() == {"name": "tiny", "ready": True}
    assert (await running.http.get("/v1/models/squeezenet1_1")).json() == {"name": "squeezenet1_1", "ready": False}
    assert (await running.http.get("/v1/models")).json() == {"models": ["squeezenet1_1", "tiny"]}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", PREDICT, {}, 400),
        ("POST", PREDICT, {"instances": []}, 400),
        ("POST", PREDICT, {"instances": ["text"]}, 400),
        ("POST", PREDICT, {"instances": [{"b64": "no base64!"}]}, 400),
        ("POST", PREDICT, {"instances": [{"b64": "aaaa"}]}, 422),
        ("POST", PREDICT, "[" * 10_000, 400),
        ("POST", PREDICT, {"instances": [{"b64": ""}] * 200_000}, 413),
        ("POST", "/v1/models/nobody:predict", instances(png(1)), 404),
        ("POST", "/v1/models/tiny", instances(png(1)), 405),
        ("GET", PREDICT, None, 405),
        ("GET", "/v1/models/nobody", None, 404),
        ("GET", "/v1/models/tiny/more", None, 404),
        ("GET", "/v1/other", None, 404),
    ],
)
async def test_errors(running: Running, method: str, path: str, body: Any, status: int) -> None:
    """Each error has its status and the protocol's body; the next good request is answered."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode() if body is not None else None
    refused = await running.http.request(method, path, content=content)
    good = await running.http.post(PREDICT, json=instances(png(9)))

    assert (refused.status_code, refused.headers["content-type"]) == (status, "application/json")
    assert list(refused.json()) == ["error"]
    assert good.json()["predictions"][0][0] == CLASS_9


async def test_many_wrong_instances(running: Running) -> None:
    """The first wrong value ends the reading: an error for each of 100,000 took half a second of the event loop."""
    refused = await running.http.post(PREDICT, json={"instances": [1] * 100_000})

    assert refused.status_code == 400
    assert refused.json() == {"error": "instances.0: Input should be an object"}
