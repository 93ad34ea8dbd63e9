"""The health check of containers by HTTP and by gRPC: its answer, its message and its exit status."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from service.server.health_probe import main, probe
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]


async def probed(running: Running) -> list[str | None]:
    """Why REST and gRPC are not ready."""
    ports = running.service.rest.port, running.service.rpc.port
    urls = f"http://127.0.0.1:{ports[0]}/readyz", f"grpc://127.0.0.1:{ports[1]}"
    return [await asyncio.to_thread(probe, url) for url in urls]


async def test_ready_or_not(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is ready for both transports once its models are loaded; before that the probe says why it is not.

    The probe asks the server directly, whatever proxy the environment names.
    """
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with serving(exported, load=False) as running:
        [rest, rpc] = await probed(running)
        await running.service.load()
        assert await probed(running) == [None, None]

    assert rest is not None
    assert rest.startswith("503: ")
    assert "the server is starting" in rest
    assert rpc == "NOT_SERVING"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/readyz", "grpc://127.0.0.1:1"])
async def test_no_server(url: str) -> None:
    """Where no server listens the answer is no, in one line."""
    reason = await asyncio.to_thread(probe, url, 0.5)

    assert reason is not None
    assert reason.startswith("no answer: ")
    assert "\n" not in reason


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:1", "127.0.0.1:8000", "http://127.0.0.1/readyz", "grpc://:8001"])
def test_wrong_address(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An address that cannot be probed ends with status 2, and the message has a right one."""
    assert main([url]) == 2
    assert "http://127.0.0.1:8000/readyz" in capsys.readouterr().err


@pytest.mark.parametrize(("path", "status", "said"), [("/readyz", 0, "ready"), ("/nowhere", 1, "404")])
async def test_exit_status(running: Running, path: str, status: int, said: str) -> None:
    """As a process the probe ends with 0 or 1 and one line."""
    url = f"http://127.0.0.1:{running.service.rest.port}{path}"
    command = [sys.executable, "-m", "service.server.health_probe", url]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, cwd=ROOT, timeout=30)

    assert (done.returncode, done.stdout.count("\n")) == (status, 1)
    assert done.stdout.startswith(f"{url}: {said}")
