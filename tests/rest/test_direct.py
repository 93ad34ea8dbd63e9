"""The short way around FastAPI: it answers as FastAPI would, and only what it is for."""

from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp

from service.common.upload_budget import UploadBudget
from service.rest import endpoints
from service.rest.app import create_app
from service.rest.image_request import Intake
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio

TIMES = {"timing_ms", "request_id"}


def app(running: Running, refused: list[str], *, short: bool) -> ASGIApp:
    """The endpoints of `running` once more, with the short way or all through FastAPI."""
    core = running.core
    intake = Intake(core.settings.limits, UploadBudget(1 << 20), 5.0, core.clock, core.metrics)
    router = endpoints.predictions(core.classifier, intake)
    if not short:
        router.ways = ()
    return create_app(router, refused=refused.append)


def told(response: httpx.Response) -> dict[str, object]:
    """What of a reply does not depend on when it was given."""
    body = {key: value for key, value in response.json().items() if key not in TIMES}
    if "model" in body:
        body["model"].pop("latency_ms")
    for row in body.get("rows", []):
        if row["answer"] is not None:
            row["answer"].pop("timing_ms")
            row["answer"]["model"].pop("latency_ms")
    return {"status": response.status_code, "type": response.headers["content-type"], **body}


@pytest.mark.parametrize("path", ["/predict", "/compare"])
@pytest.mark.parametrize(
    "query",
    [
        "",
        "model=tiny&top_k=3&crops=10",
        "top_k=many",
        "top_k=",
        "crops=1e1",
        "top_k=x&crops=y",
        "top_k=3.0",
        "top_k=%203",
        "crops=",
        "model=",
        "model=tiny&model=lenet5",
        "top_k=1&top_k=2",
        "top_k=2&top_k=x",
        "stray=1",
    ],
)
async def test_as_fastapi(artifacts: Path, path: str, query: str) -> None:
    """Every query gets the same answer, and the same count of refusals, by both ways."""
    answers = []
    async with serving(artifacts, FakeEngine()) as running:
        for short in (True, False):
            refused: list[str] = []
            transport = httpx.ASGITransport(app(running, refused, short=short))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                response = await client.post(f"{path}?{query}", files={"image": png(7)})
            assert response.headers["x-request-id"] == response.json()["request_id"]
            answers.append((told(response), refused))

    assert answers[0] == answers[1]


async def test_what_is_not_short(artifacts: Path) -> None:
    """Other methods and paths are FastAPI's: it refuses a GET, and sends a path with a stroke too many on."""
    async with serving(artifacts, FakeEngine()) as running:
        refused = await running.http.get("/predict")
        sent_on = await running.http.post("/predict/", files={"image": png()})

    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert (sent_on.status_code, sent_on.headers["location"].endswith("/predict")) == (307, True)


async def test_documented(artifacts: Path) -> None:
    """What the short way reads is what the documentation says: the same parameters of the same types."""
    async with serving(artifacts, FakeEngine()) as running:
        document = (await running.http.get("/openapi.json")).json()

    for path, model in (("/predict", "anyOf string null"), ("/compare", "anyOf array null")):
        parameters = {one["name"]: one for one in document["paths"][path]["post"]["parameters"]}
        assert list(parameters) == ["model", "top_k", "crops", "x-request-timeout"]
        types = [one["type"] for one in parameters["model"]["schema"]["anyOf"]]
        assert f"anyOf {' '.join(types)}" == model
        assert parameters["crops"]["schema"]["default"] == 1
        assert all(one["description"] for one in parameters.values())
