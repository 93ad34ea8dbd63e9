"""TorchServe's paths: only where they are asked for, with its answers and errors."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.labels import imagenet_labels
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio

PREDICT = "/predictions/tiny"
CLASSES = [label.label for label in imagenet_labels()]


@pytest.fixture(scope="module")
async def compatible(exported: Path) -> AsyncIterator[Running]:
    """A service with the paths of TorchServe."""
    async with serving(exported, FakeEngine(), torchserve_compatible=True) as running:
        yield running


async def test_predict(compatible: Running) -> None:
    """A body, whatever its type, and a form have five labels with their probabilities, best first."""
    for method, version in (("POST", ""), ("PUT", ""), ("POST", "/1")):
        reply = (await compatible.http.request(method, PREDICT + version, content=png(9))).json()
        assert list(reply) == [CLASSES[n] for n in (9, 0, 1, 2, 3)]
        assert reply["ostrich"] == 0.5
    for field in ("data", "body"):
        reply = (await compatible.http.post(PREDICT, files={field: ("a.png", png(4))})).json()
        assert next(iter(reply)) == CLASSES[4]


async def test_ping(compatible: Running, exported: Path) -> None:
    """A ping says whether the server is ready."""
    assert (await compatible.http.get("/ping")).json() == {"status": "Healthy"}
    async with serving(exported, FakeEngine(), load=False, torchserve_compatible=True) as unready:
        ping = await unready.http.get("/ping")
        assert (ping.status_code, ping.json()) == (500, {"status": "Unhealthy"})


async def test_only_where_asked_for(running: Running) -> None:
    """Without the setting there are no such paths."""
    assert (await running.http.get("/ping")).status_code == 404
    refused = await running.http.post(PREDICT, content=png(9))
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "kind"),
    [
        ("POST", PREDICT, b"bad", 422, "BadRequestException"),
        ("POST", PREDICT, b"", 422, "BadRequestException"),
        ("POST", "/predictions/nobody", png(1), 404, "ModelNotFoundException"),
        ("POST", f"{PREDICT}/9", png(1), 404, "ModelNotFoundException"),
        ("POST", f"{PREDICT}/x", png(1), 400, "BadRequestException"),
        ("POST", f"{PREDICT}/1/more", png(1), 404, "ModelNotFoundException"),
        ("POST", PREDICT, bytes(35_000_000), 413, "BadRequestException"),
        ("GET", PREDICT, b"", 405, "MethodNotAllowedException"),
    ],
)
async def test_errors(compatible: Running, method: str, path: str, content: bytes, status: int, kind: str) -> None:
    """Each error has TorchServe's shape; the next good request is answered."""
    refused = await compatible.http.request(method, path, content=content)
    body = refused.json()

    assert (refused.status_code, body["code"], body["type"]) == (status, status, kind)
    assert body["message"]
    assert refused.headers.get("allow") == ("POST, PUT" if status == 405 else None)
    assert (await compatible.http.post(PREDICT, content=png(9))).json()["ostrich"] == 0.5


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
async def test_bad_forms(compatible: Running, kind: str) -> None:
    """A form without an image is refused; the next good request is answered."""
    refused = await compatible.http.post(PREDICT, content=b"--x\r\nnothing", headers={"content-type": kind})
    other = await compatible.http.post(PREDICT, files={"other": png(1)})

    assert (refused.status_code, other.status_code) == (400, 400)
    assert "curl -T cat.jpg" in refused.json()["message"]
    assert (await compatible.http.post(PREDICT, content=png(9))).status_code == 200
