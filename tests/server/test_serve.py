"""`topfive serve` as a process: start, signals, drain, exit status."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import png
from tests.fakes import reached

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
TOPFIVE = Path(sys.executable).with_name("topfive")


@dataclass
class Server:
    """A running `topfive serve` and what it has said."""

    process: asyncio.subprocess.Process
    url: str
    log: list[str]

    async def ended(self) -> int:
        """The exit status."""
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def server(artifacts: Path, *options: str) -> AsyncIterator[Server]:
    """`topfive serve` on free ports, ready."""
    command = ["serve", "--models", "tiny", "--artifacts", str(artifacts), "--port", "0", "--grpc-port", "0", *options]
    async with started(str(TOPFIVE), *command) as running:
        yield running


@asynccontextmanager
async def started(*command: str) -> AsyncIterator[Server]:
    """A process that serves, ready."""
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stderr is not None
    log: list[str] = []

    async def listen() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            log.append(line.decode())

    listening = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(60):
            while not (any(": ready" in line for line in log) and any("REST on" in line for line in log)):
                assert process.returncode is None, "".join(log)
                await asyncio.sleep(0.02)
        address = re.search(r"REST on (http://\S+),", "".join(log))
        assert address is not None
        yield Server(process, address[1], log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await listening


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`topfive` to its end."""
    return subprocess.run(
        [TOPFIVE, *command], capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})}, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stops_cleanly(artifacts: Path, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C end an idle server with status 0, and nothing is logged as an error."""
    async with server(artifacts) as running:
        running.process.send_signal(number)
        assert await running.ended() == 0
    assert not [line for line in running.log if "ERROR" in line or "Traceback" in line]


async def test_answers_what_was_accepted(artifacts: Path) -> None:
    """Stopped in the middle of 200 requests, every connection it had accepted gets its answer, and it exits with 0.

    A connection that comes later is refused as a whole, which its client can see and try elsewhere. Each request has
    one of its own: on one that is idle a request may cross with the server's close, whatever the server does.
    """
    photo = png(7, size=(900, 900))
    alone = {"connection": "close"}
    async with server(artifacts) as running:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=running.url, limits=limits, timeout=30) as client:
            warm = await client.post("/predict", files={"image": photo}, headers=alone)
            requests = [
                asyncio.create_task(client.post("/predict", files={"image": photo}, headers=alone)) for _ in range(200)
            ]
            while sum(task.done() for task in requests) < 20:
                await asyncio.wait(requests, timeout=0.002, return_when=asyncio.FIRST_COMPLETED)
            before = sum(task.done() for task in requests)
            running.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*requests, return_exceptions=True)
        assert await running.ended() == 0
    answered = [answer for answer in answers if isinstance(answer, httpx.Response)]
    lost = [answer for answer in answers if not isinstance(answer, (httpx.Response, httpx.ConnectError))]
    assert warm.status_code == 200
    assert {answer.status_code for answer in answered} == {200}
    assert len(answered) > before
    assert lost == []


async def test_pre_stop(artifacts: Path) -> None:
    """After SIGTERM readiness is off while new connections are still served; a second signal ends that time."""
    async with server(artifacts, "--pre-stop-s", "60") as running:
        running.process.send_signal(signal.SIGTERM)
        await reached(lambda: any("stopping" in line for line in running.log))
        async with httpx.AsyncClient(base_url=running.url) as client:
            ready, alive = await client.get("/readyz"), await client.get("/livez")
            answer = await client.post("/predict", files={"image": png()})
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
    assert ready.status_code == 503
    assert ready.json()["code"] == "shutting_down"
    assert alive.status_code == answer.status_code == 200


async def test_idle_connections_do_not_delay_the_stop(artifacts: Path) -> None:
    """A client that keeps its connection open and silent does not hold the server up."""
    async with server(artifacts, "--drain-s", "20") as running, httpx.AsyncClient(base_url=running.url) as client:
        await client.get("/livez")
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
        assert time.monotonic() - began < 10


async def test_stuck_engine(artifacts: Path) -> None:
    """An engine that never returns does not keep the process: its request gets 503 at the drain limit, status 0."""
    script = (
        "import sys, threading, service.server.app as app, service.repository.device_discovery as devices\n"
        "from tests.fakes import FakeEngine, opener\n"
        "class Stuck(FakeEngine):\n"
        "    def run(self, batch): threading.Event().wait()\n"
        "devices.open_engine = lambda artifact, options: opener(Stuck())(artifact)\n"
        "sys.exit(app.run(app.Settings.model_validate_json(sys.argv[1])))\n"
    )
    settings = {"models": ["tiny"], "artifacts": str(artifacts), "port": 0, "grpc_port": 0, "drain_s": 0.5}
    async with started(sys.executable, "-c", script, json.dumps(settings)) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            request = asyncio.create_task(client.post("/predict", files={"image": png()}))
            while 'topfive_in_flight{model="tiny"} 1.0' not in (await client.get("/metrics")).text:
                assert not request.done()
            running.process.send_signal(signal.SIGTERM)
            answer = await request
        assert await running.ended() == 0
    assert (answer.status_code, answer.json()["code"]) == (503, "shutting_down")
    assert any("did not return" in line for line in running.log)


LOST_CARD = """
import sys, service.server.app as app, service.repository.device_discovery as devices
from service.engines.base import CardLostError, EngineUnavailableError
from tests.fakes import FakeEngine, opener

reason = "cudaEventSynchronize on card 0: cudaErrorIllegalAddress"

class Lost(FakeEngine):
    def run(self, batch):
        if batch[0].max() == 7:
            raise CardLostError(reason)
        return super().run(batch)

def open_engine(artifact, options):
    if artifact.manifest.name == "tiny":
        return opener(Lost())(artifact)
    raise EngineUnavailableError("its engine failed") from CardLostError(reason)

devices.open_engine = open_engine
sys.exit(app.run(app.Settings.model_validate_json(sys.argv[1])))
"""


async def test_lost_card(artifacts: Path) -> None:
    """A card that is lost in a batch ends the process with status 1, its reason in the log, after every answer."""
    settings = {"models": ["tiny"], "artifacts": str(artifacts), "port": 0, "grpc_port": 0, "drain_s": 20}
    async with started(sys.executable, "-c", LOST_CARD, json.dumps(settings)) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            good = await client.post("/predict", files={"image": png(5)})
            began = time.monotonic()
            answer = await client.post("/predict", files={"image": png(7)})
        assert await running.ended() == 1
        assert time.monotonic() - began < 10
    assert good.status_code == 200
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    (said,) = [line for line in running.log if "CRITICAL" in line]
    assert "a new process" in said
    assert "cudaErrorIllegalAddress" in said


async def test_lost_card_in_a_load(artifacts: Path) -> None:
    """A card that is lost while a further model is loaded ends the process as well."""
    shutil.copytree(artifacts / "tiny", artifacts / "other")
    for manifest in (artifacts / "other").rglob("manifest.json"):
        manifest.write_text(manifest.read_text().replace('"name": "tiny"', '"name": "other"', 1))
    settings = {"models": ["tiny"], "artifacts": str(artifacts), "port": 0, "grpc_port": 0, "drain_s": 20}
    async with started(sys.executable, "-c", LOST_CARD, json.dumps(settings)) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            answer = await client.post("/predict", params={"model": "other"}, files={"image": png()})
        assert await running.ended() == 1
    assert answer.status_code == 503
    assert len([line for line in running.log if "CRITICAL" in line]) == 1


async def test_open_calls_do_not_delay_the_stop(artifacts: Path) -> None:
    """A health watcher, an idle stream and a silent connection are no reason to wait for the drain limit."""
    async with server(artifacts, "--drain-s", "20") as running:
        port = int("".join(running.log).partition("gRPC on 127.0.0.1:")[2].split()[0])
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            health: Any = health_pb2_grpc.HealthStub(cast("Any", channel))
            watch = health.Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            _, silent = await asyncio.open_connection(*running.url.removeprefix("http://").split(":"))
            began = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            assert await running.ended() == 0
            took_s = time.monotonic() - began
            silent.close()
            watch.cancel()
            await watch.code()  # so that nothing of it is left for the next test's loop
    assert took_s < 10


async def test_stalled_upload_ends_at_the_limit(artifacts: Path) -> None:
    """A body that never comes is told 503 at the drain limit, and the process ends in time without a traceback."""
    async with server(artifacts, "--drain-s", "1.5") as running:
        reader, writer = await asyncio.open_connection(*running.url.removeprefix("http://").split(":"))
        writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 900\r\n\r\nabc")
        await writer.drain()
        running.process.send_signal(signal.SIGTERM)
        status = await reader.readline()
        assert await running.ended() == 0
        writer.close()
    assert b" 503 " in status
    assert not [line for line in running.log if "Traceback" in line]


async def test_stop_while_loading(artifacts: Path) -> None:
    """A load that never ends does not keep the process."""
    script = (
        "import sys, threading, service.server.app as app, service.repository.device_discovery as devices\n"
        "devices.open_engine = lambda _artifact, options: threading.Event().wait()\n"
        "print(': ready', file=sys.stderr, flush=True)\n"
        "sys.exit(app.run(app.Settings.model_validate_json(sys.argv[1])))\n"
    )
    settings = {"models": ["tiny"], "artifacts": str(artifacts), "port": 0, "grpc_port": 0, "drain_s": 1.0}
    async with started(sys.executable, "-c", script, json.dumps(settings)) as running:
        async with httpx.AsyncClient(base_url=running.url) as client:
            assert (await client.get("/readyz")).json()["detail"] == "tiny is being loaded"
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0


async def test_missing_model(tmp_path: Path) -> None:
    """A configured model that is not exported ends the start with status 1 and the command that exports it."""
    done = await asyncio.to_thread(
        run, "serve", "--models", "tiny", "--artifacts", str(tmp_path), "--port", "0", "--grpc-port", "0"
    )
    assert done.returncode == 1
    assert f"topfive export tiny --artifacts {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr


async def test_port_taken(artifacts: Path) -> None:
    """A port that is taken ends the start with status 1 and the option that changes it."""
    async with server(artifacts) as running:
        port = running.url.rpartition(":")[2]
        done = await asyncio.to_thread(run, "serve", "--artifacts", str(artifacts), "--port", port, "--grpc-port", "0")
    assert done.returncode == 1
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


async def test_environment(artifacts: Path) -> None:
    """Every option has a variable; a bad value is a usage error that names the option."""
    done = await asyncio.to_thread(run, "serve", env={"TOPFIVE_MAX_BATCH": "-1"})
    assert done.returncode == 2
    assert "--max-batch" in done.stderr
    done = await asyncio.to_thread(run, "serve", env={"TOPFIVE_RUNTIME": "abacus"})
    assert done.returncode == 2
    assert "--runtime" in done.stderr


async def test_says_that_it_closes(artifacts: Path) -> None:
    """An answer that is given while the server stops says that its connection closes, so that nobody uses it again."""
    async with server(artifacts) as running, httpx.AsyncClient(base_url=running.url) as client:
        before = await client.post("/predict", files={"image": png()})
        reader, writer = await asyncio.open_connection(*running.url.removeprefix("http://").split(":"))
        body = png()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:10])
        await writer.drain()
        running.process.send_signal(signal.SIGTERM)
        await reached(lambda: any("stopping" in line for line in running.log))
        writer.write(body[10:])
        answer = await reader.read()
        assert await running.ended() == 0
        writer.close()
    assert before.headers.get("connection") is None
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.partition(b"\r\n\r\n")[0].lower()
