"""REST as an ASGI application: its lifespan, its settings, and a server of others that hosts it."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from service.common.errors import ModelNotFound
from service.common.settings import Settings
from service.common.types import Precision
from service.server.asgi import HostedApp, settings_of
from service.server.data_plane import build_data_plane
from tests.compose.docker import free_port, waited
from tests.conftest import png
from tests.fakes import FakeEngine, opener, reached
from tests.serving import PNG

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]


def hosted(artifacts: Path, engine: FakeEngine, models: str = "tiny") -> HostedApp:
    """The application with that model on that engine."""
    settings = settings_of({"TOPFIVE_MODELS": models, "TOPFIVE_ARTIFACTS": str(artifacts)}, cpus=2)
    return HostedApp(settings, build_data_plane(settings, open_engine=opener(engine)))


def client_of(app: HostedApp) -> httpx.AsyncClient:
    """A client that calls the application without a network, by any name of a host."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any.example")


async def test_lifespan(exported: Path) -> None:
    """The application is ready between startup and shutdown; a request in flight at the shutdown is answered."""
    engine = FakeEngine()
    app = hosted(exported, engine)
    async with client_of(app) as client:
        before = await client.get("/readyz")
        async with app.lifespan_context(app):
            ready = await client.get("/readyz")
            engine.gate.clear()
            asked = asyncio.create_task(client.post("/predict", content=png(7), headers=PNG))
            await reached(lambda: engine.running == 1)
            asyncio.get_running_loop().call_later(0.1, engine.gate.set)
        answer = await asked
        after = await client.post("/predict", content=png(7), headers=PNG)

    assert [before.status_code, ready.status_code, answer.status_code, after.status_code] == [503, 200, 200, 503]
    assert answer.json()["predictions"][0]["class_id"] == 7
    assert engine.closed


async def test_failed_startup(exported: Path) -> None:
    """A model that cannot be loaded fails the startup, so that the platform sees it."""
    app = hosted(exported, FakeEngine(), models="tiny,absent")

    with pytest.raises(ModelNotFound, match="absent"):
        async with app.lifespan_context(app):
            pass


def test_settings() -> None:
    """Variables give the settings that the command line gives, but for the addresses, which are the platform's."""
    environment = {
        "TOPFIVE_MODELS": "a,b",
        "TOPFIVE_TIMEOUT_S": "2.5",
        "TOPFIVE_ACCESS_LOG": "true",
        "TOPFIVE_PRECISION": "f32",
        "TOPFIVE_ROOT_PATH": "",
        "TOPFIVE_PORT": "tcp://10.96.0.1:8000",
        "TOPFIVE_CPUS": "7",
    }
    expected = Settings(
        models=("a", "b"), timeout_s=2.5, access_log=True, precision=Precision.F32, cpus=3, allowed_hosts=("*",)
    )

    assert settings_of(environment, cpus=3) == expected
    with pytest.raises(ValidationError, match="capacity"):
        settings_of({"TOPFIVE_CAPACITY": "many"})


def test_a_server_of_others(exported: Path) -> None:
    """Plain uvicorn serves what `create` makes, with the settings of its environment, and ends it."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = ["-m", "uvicorn", "--factory", "service.server.asgi:create", "--port", str(port), "--lifespan", "on"]
    env = {"TOPFIVE_ARTIFACTS": str(exported), "TOPFIVE_MODELS": "tiny", "TOPFIVE_CACHE": "/nonexistent"}
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            waited("uvicorn listens", lambda: reachable(port), 60)
            answer = httpx.post(f"{url}/predict", content=png(7), headers=PNG, timeout=30)
        finally:
            process.terminate()
        _, log = process.communicate(timeout=30)
    assert answer.json()["model"]["name"] == "tiny"
    assert "Application shutdown complete." in log


def reachable(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
