"""`topfive serve` as a process: start, signals, drain, exit status."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from models.artifact.artifact import MANIFEST
from tests.conftest import png
from tests.fakes import reached
from tests.fleet import copy_model
from tests.serving import PNG

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
TOPFIVE = Path(sys.executable).with_name("topfive")


@dataclass
class Server:
    """A running `topfive serve` and what it has logged."""

    process: asyncio.subprocess.Process
    url: str
    log: list[str]

    @property
    def grpc_port(self) -> int:
        """The port of gRPC."""
        return int("".join(self.log).partition("gRPC on 127.0.0.1:")[2].split()[0])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the port of REST."""
        return await asyncio.open_connection(*self.url.removeprefix("http://").split(":"))

    def logged(self, words: str) -> list[str]:
        """The lines of the log with these words."""
        return [line for line in self.log if words in line]

    async def stopping(self) -> None:
        """Send SIGTERM, and wait until the server knows."""
        self.process.send_signal(signal.SIGTERM)
        await reached(lambda: bool(self.logged("stopping")))

    async def ended(self) -> int:
        """The exit status."""
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def server(artifacts: Path, *options: str) -> AsyncIterator[Server]:
    """`topfive serve` on free ports, ready. It logs no error."""
    command = ["serve", "--models", "tiny", "--artifacts", str(artifacts), "--port", "0", "--grpc-port", "0", *options]
    async with started(str(TOPFIVE), *command) as running:
        yield running
    assert running.logged("ERROR") + running.logged("Traceback") == []


@asynccontextmanager
async def started(*command: str, until: str = ": ready") -> AsyncIterator[Server]:
    """A process that serves, once it has logged `until`."""
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, cwd=ROOT)
    stderr = process.stderr
    assert stderr is not None
    log: list[str] = []

    async def listen() -> None:
        async for line in stderr:
            log.append(line.decode())

    listening = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(60):
            while not (any(until in line for line in log) and any("REST on" in line for line in log)):
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


SCRIPTED = """
import sys, threading, service.server.app as app, service.repository.device_discovery as devices
from service.engines.base import CardLostError, EngineUnavailableError
from tests.fakes import FakeEngine, opener

lost = CardLostError("cudaEventSynchronize on GPU 0: cudaErrorIllegalAddress")

class Scripted(FakeEngine):
    def run(self, batch):
        if batch[0].max() == 7:
            raise lost
        if batch[0].max() == 8:
            threading.Event().wait()
        return super().run(batch)

def open_engine(artifact, options):
    if artifact.manifest.name == "lost":
        raise EngineUnavailableError("its engine failed") from lost
    if artifact.manifest.name == "endless":
        threading.Event().wait()
    return opener(Scripted())(artifact)

devices.open_engine = open_engine
sys.exit(app.run(app.Settings.model_validate_json(sys.argv[1])))
"""


def scripted(artifacts: Path, model: str, drain_s: float) -> list[str]:
    """The command of a server on an engine that loses its card at an image of 7 and never returns from one of 8.

    It loses the card while it opens the model `lost`, and never has opened the model `endless`.
    """
    settings = {"models": [model], "artifacts": str(artifacts), "port": 0, "grpc_port": 0, "drain_s": drain_s}
    return [sys.executable, "-c", SCRIPTED, json.dumps(settings)]


async def test_answers_what_was_accepted(exported: Path) -> None:
    """Stopped in the middle of 100 requests, every connection it had accepted gets its answer, and it exits with 0.

    A connection that comes later is refused as a whole, which its client can see and try elsewhere. Each request has
    one of its own: on one that is idle a request may cross with the server's close, whatever the server does.
    """
    photo = png(7, size=(900, 900))
    limits = httpx.Limits(max_connections=100)
    async with server(exported) as running:
        async with httpx.AsyncClient(base_url=running.url, limits=limits, timeout=30) as client:

            async def ask() -> httpx.Response:
                return await client.post("/predict", files={"image": photo}, headers={"connection": "close"})

            requests = [asyncio.create_task(ask()) for _ in range(100)]
            while sum(task.done() for task in requests) < 10:
                await asyncio.wait(requests, timeout=0.002, return_when=asyncio.FIRST_COMPLETED)
            before = sum(task.done() for task in requests)
            running.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*requests, return_exceptions=True)
        assert await running.ended() == 0
    answered = [answer for answer in answers if isinstance(answer, httpx.Response)]
    lost = [answer for answer in answers if not isinstance(answer, (httpx.Response, httpx.ConnectError))]
    assert {answer.status_code for answer in answered} == {200}
    assert len(answered) > before
    assert lost == []


async def test_pre_stop(exported: Path) -> None:
    """After SIGTERM readiness is off while new connections are still served; a second signal ends that time."""
    async with server(exported, "--pre-stop-s", "60") as running:
        await running.stopping()
        async with httpx.AsyncClient(base_url=running.url) as client:
            ready, alive = await client.get("/readyz"), await client.get("/livez")
            answer = await client.post("/predict", files={"image": png()})
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
    assert (ready.status_code, ready.json()["code"]) == (503, "shutting_down")
    assert alive.status_code == answer.status_code == 200


async def test_stalled_upload_ends_at_the_limit(exported: Path) -> None:
    """After Ctrl-C a client whose body never ends is told 503 at the drain limit, and the process ends."""
    async with server(exported, "--drain-s", "1") as running:
        reader, writer = await running.connect()
        writer.write(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 900\r\n\r\nabc"
        )
        await writer.drain()
        running.process.send_signal(signal.SIGINT)
        assert b" 503 " in await reader.readline()
        assert await running.ended() == 0
        writer.close()


@pytest.mark.parametrize("asked", [True, False])
async def test_access_log(exported: Path, asked: bool) -> None:
    """With --access-log a good answer has a line with its id, model and time; a refused one has its own as ever."""
    async with server(exported, "--access-log", str(asked)) as running, httpx.AsyncClient() as client:
        for body, identity in ((png(), "order-7"), (b"no image", "order-8")):
            await client.post(f"{running.url}/predict", content=body, headers={**PNG, "X-Request-Id": identity})
        await running.stopping()
        assert await running.ended() == 0

    assert len(running.logged("order-7: tiny in ")) == asked
    assert len(running.logged("order-8: bad_image: ")) == 1


async def test_says_that_it_closes(exported: Path) -> None:
    """An answer that a stopping server gives says that its connection closes, so that no client uses it again."""
    async with server(exported) as running:
        reader, writer = await running.connect()
        body = png()
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: "
        writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body[:10])
        await writer.drain()
        await running.stopping()
        writer.write(body[10:])
        answer = await reader.read()
        assert await running.ended() == 0
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.partition(b"\r\n\r\n")[0].lower()


async def test_stuck_engine(exported: Path) -> None:
    """An engine that never returns does not keep the process: its request gets 503 at the drain limit, status 0."""
    async with started(*scripted(exported, "tiny", drain_s=0.5)) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            request = asyncio.create_task(client.post("/predict", files={"image": png(8)}))
            while 'topfive_in_flight{model="tiny",version="1"} 1.0' not in (await client.get("/metrics")).text:
                assert not request.done()
            running.process.send_signal(signal.SIGTERM)
            answer = await request
        assert await running.ended() == 0
    assert (answer.status_code, answer.json()["code"]) == (503, "shutting_down")
    assert running.logged("did not return")


async def test_stop_while_loading(artifacts: Path) -> None:
    """A load that never ends does not keep the process."""
    copy_model(artifacts, "endless")
    async with started(*scripted(artifacts, "endless", drain_s=0.5), until="REST on") as running:
        async with httpx.AsyncClient(base_url=running.url) as client:
            assert (await client.get("/readyz")).json()["detail"] == "endless is being loaded"
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0


@pytest.mark.parametrize("signals", [1, 2])
async def test_hanging_disk(artifacts: Path, signals: int) -> None:
    """A disk that does not answer keeps no other answer, and not the process: it ends at the drain limit, or at once.

    A pipe that nobody writes stands for the disk. What describes models waits for it, as does a load.
    """
    manifest = artifacts / "hanging" / "1" / MANIFEST
    manifest.parent.mkdir(parents=True)
    os.mkfifo(manifest)
    async with started(*scripted(artifacts, "tiny", drain_s=1 if signals == 1 else 60)) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            lists = [asyncio.create_task(client.get("/models")) for _ in range(13)]
            loads = [
                asyncio.create_task(client.post("/predict", params={"model": name}, files={"image": png(3)}))
                for name in ("hanging", "unknown")
            ]
            large = await client.post("/predict", files={"image": png(3, size=(3000, 2000))})
            metrics = await client.get("/metrics")
            assert not any(task.done() for task in lists)
            for _ in range(signals):
                running.process.send_signal(signal.SIGTERM)
                await reached(lambda: bool(running.logged("stopping")))
            answers = await asyncio.gather(*lists, *loads)
        assert await running.ended() == 0
    assert (large.status_code, metrics.status_code) == (200, 200)
    assert {answer.status_code for answer in answers} <= {503, 404}
    assert running.logged("did not return")


@pytest.mark.parametrize(("model", "shade", "status"), [("tiny", 7, 500), ("lost", 5, 503)], ids=["batch", "load"])
async def test_lost_card(artifacts: Path, model: str, shade: int, status: int) -> None:
    """A card that is lost in a batch or in a load ends the process with status 1 after every answer, and says why."""
    copy_model(artifacts, "lost")
    async with started(*scripted(artifacts, "tiny", drain_s=120)) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            good = await client.post("/predict", files={"image": png(5)})
            answer = await client.post("/predict", params={"model": model}, files={"image": png(shade)})
        assert await running.ended() == 1
    assert (good.status_code, answer.status_code) == (200, status)
    [said] = running.logged("CRITICAL")
    assert "a new process" in said
    assert "cudaErrorIllegalAddress" in said


def test_failed_start(exported: Path, tmp_path: Path) -> None:
    """A port that is taken or a model that is not exported ends the start with status 1 and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for artifacts, port, advice in (
            (exported, taken.getsockname()[1], "--port"),
            (tmp_path, 0, f"topfive export tiny --artifacts {tmp_path}"),
        ):
            options = ["--models", "tiny", "--artifacts", str(artifacts), "--port", str(port), "--grpc-port", "0"]
            done = subprocess.run([TOPFIVE, "serve", *options], capture_output=True, text=True, timeout=60)
            assert done.returncode == 1
            assert advice in done.stderr
            assert "Traceback" not in done.stderr


SERVERS = """
import asyncio, gc, os, resource, signal, sys, threading
from service.common.thread_pool import ThreadPool
from service.common.settings import Settings
from service.server.process import run_until_stopped

class Large:
    async def start(self):
        pass

    async def load(self):
        self.loaded = [[number] for number in range(100_000)]
        asyncio.get_running_loop().call_later(0.05, self.tell)

    def tell(self):
        print(len(gc.get_objects()) < 10_000, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    async def stop(self, hurry):
        pass

class Failing:
    async def start(self):
        ThreadPool(1, "left-open").run(threading.Event().wait)
        raise RuntimeError("a bug")

class Descriptors:
    async def start(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        print(soft == hard > 128, flush=True)
        raise RuntimeError("enough")

resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
raise SystemExit(run_until_stopped(lambda fatal: globals()[sys.argv[1]](), Settings()))
"""


def test_loaded_objects_are_no_garbage() -> None:
    """Once a server is loaded, the garbage collector passes over all its objects: it would stop every request."""
    command = [sys.executable, "-c", SERVERS, "Large"]

    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "True\n"


def test_descriptors() -> None:
    """A server may open as many descriptors as the system lets it, whatever the shell's limit is."""
    ended = subprocess.run([sys.executable, "-c", SERVERS, "Descriptors"], cwd=ROOT, capture_output=True, text=True)

    assert ended.stdout == "True\n"


def test_a_bug_ends_the_process() -> None:
    """A server that fails unexpectedly logs why and ends with status 1, although its threads are still at work."""
    command = [sys.executable, "-c", SERVERS, "Failing"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert ended.returncode == 1
    assert "RuntimeError: a bug" in ended.stderr
    assert "left-open_0 did not return" in ended.stderr
