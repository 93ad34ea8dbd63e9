"""The health check of containers: by HTTP and by gRPC, ready or not, and what it says."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from service.server.health_probe import main, probe
from tests.serving import serving

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]


async def test_ready_or_not(artifacts: Path) -> None:
    """A server is ready for both transports once its models are loaded, and before that each says why not."""
    async with serving(artifacts, load=False) as running:
        rest = f"http://127.0.0.1:{running.service.rest.port}/readyz"
        rpc = f"grpc://127.0.0.1:{running.service.rpc.port}"
        before = [await asyncio.to_thread(probe, url) for url in (rest, rpc)]
        await running.service.load()
        after = [await asyncio.to_thread(probe, url) for url in (rest, rpc)]

    assert before[0] is not None
    assert before[0].startswith("503: ")
    assert "the server is starting" in before[0]
    assert before[1] == "NOT_SERVING"
    assert after == [None, None]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/readyz", "grpc://127.0.0.1:1"])
async def test_nobody_there(url: str) -> None:
    """Where nothing listens the answer is no, in one line."""
    reason = await asyncio.to_thread(probe, url, 0.5)

    assert reason is not None
    assert reason.startswith("no answer: ")
    assert "\n" not in reason


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:1", "127.0.0.1:8000", "http://127.0.0.1/readyz", "grpc://:8001"])
def test_no_such_question(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An address that cannot be asked is a mistake of the caller, with a right one in the message."""
    assert main([url]) == 2
    assert "http://127.0.0.1:8000/readyz" in capsys.readouterr().err


async def test_no_proxy_between(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is asked directly, whatever proxy a container is given for the way out."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with serving(artifacts) as running:
        for url in (
            f"http://127.0.0.1:{running.service.rest.port}/readyz",
            f"grpc://127.0.0.1:{running.service.rpc.port}",
        ):
            assert await asyncio.to_thread(probe, url) is None


async def test_exit_status(artifacts: Path) -> None:
    """As a process it ends with 0 or 1 and one line."""

    def asked(url: str) -> tuple[int, list[str]]:
        command = [sys.executable, "-m", "service.server.health_probe", url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=30)
        return done.returncode, done.stdout.splitlines()

    async with serving(artifacts) as running:
        url = f"http://127.0.0.1:{running.service.rest.port}"
        good = await asyncio.to_thread(asked, f"{url}/readyz")
        bad = await asyncio.to_thread(asked, f"{url}/nowhere")

    assert good == (0, [f"{url}/readyz: ready"])
    assert bad[0] == 1
    assert len(bad[1]) == 1
    assert "404" in bad[1][0]
