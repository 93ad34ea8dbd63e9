"""`topfive bench` in a process of its own, against scripted servers and against the service."""

import asyncio
import json
import shlex
import shutil
import signal
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli.main import main
from tests.fakes import FakeEngine, reached
from tests.loadgen.http_server import SILENCE, Script, ScriptedServer, Send, always, reply, serving_script
from tests.serving import serving

pytestmark = pytest.mark.anyio

PROGRAM = (sys.executable, "-c", "from service.cli.main import main; main()", "bench")
QUICK = ("--seconds", "0.3", "--warm-up", "0.05")


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The end of a command; `loads` is empty if it measured none."""

    status: int
    errors: str
    loads: list[Any]

    @property
    def load(self) -> Any:
        """The only load."""
        (load,) = self.loads
        return load


async def bench(*words: str) -> BenchResult:
    """Run the command."""
    process = await asyncio.create_subprocess_exec(
        *(*PROGRAM, *words, *QUICK, "--json"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 25)  # less than the default of --timeout
    assert process.returncode is not None
    return BenchResult(process.returncode, errors.decode(), json.loads(output or "[]"))


async def bench_script(script: Script, *words: str) -> tuple[BenchResult, ScriptedServer]:
    """Run the command against one scripted server."""
    async with serving_script(script) as server:
        return await bench(server.url, *words), server


async def test_closed_loop() -> None:
    """A good server gives status 0, and figures that fit each other and what the server got.

    A request of 100 kB costs the generator less than 0.3 ms of CPU.
    """
    done, server = await bench_script(always(reply()), "--connections", "3")

    load = done.load
    assert done.status == 0, done.errors
    assert (load["connections"], load["rate"], load["errors"]) == (3, None, {})
    assert 0 < load["requests"] < len(server.requests)
    times = [load["latency_ms"][name] for name in ("p50", "p90", "p95", "p99", "max")]
    assert 0 < times[0] <= times[-1]
    assert times == sorted(times)
    assert 0 < load["cpu_s"] / load["requests"] < 0.3e-3
    assert server.connections == 4  # one more for the check
    assert {one.path for one in server.requests} == {"/predict"}


async def test_rate() -> None:
    """With --rate requests arrive at that rate, not as fast as servers answer; two URLs share the connections."""
    async with serving_script(always(reply())) as one, serving_script(always(reply())) as other:
        done = await bench(one.url, other.url, "--rate", "100")
        one.connections = other.connections = 0
        closed = await bench(one.url, other.url, "--connections", "4")

    assert (done.status, done.load["rate"], done.load["connections"]) == (0, 100, None)
    assert 0 < done.load["requests"] < 60
    assert closed.load["requests"] > 2 * done.load["requests"]
    assert (one.connections, other.connections) == (3, 3)  # one of each for the check


@pytest.mark.parametrize(
    ("failing", "kind", "example"),
    [(reply(b"full", "503 Service Unavailable"), "status 503", "full"), (SILENCE, "timeout", "")],
    ids=["503", "silence"],
)
async def test_errors(failing: Send, kind: str, example: str) -> None:
    """After a good first response, errors are counted by kind with an example, and the status is 1."""
    done, _ = await bench_script(lambda number: failing if number else reply(), "--timeout", "0.3")

    assert done.status == 1
    assert done.load["errors"].keys() == done.load["error_examples"].keys() == {kind}
    assert done.load["error_examples"][kind] == example
    assert (done.load["requests"], done.load["latency_ms"]) == (0, {})


async def test_first_request_fails() -> None:
    """If the first request fails, nothing is measured, and the status is 1."""
    done, server = await bench_script(always(reply(b"no such model", "404 Not Found")))

    assert (done.status, done.loads, len(server.requests)) == (1, [], 1)
    assert done.errors == f"Error: the first request to {server.url} failed: status 404: no such model\n"


async def test_table() -> None:
    """A sweep has a row for each load, in 80 columns; below are the errors."""
    full = reply(b"full", "429 Too Many Requests")
    async with serving_script(lambda number: full if number % 50 == 49 else reply()) as server:
        process = await asyncio.create_subprocess_exec(
            *(*PROGRAM, server.url, "--connections", "1,2", *QUICK), stdout=asyncio.subprocess.PIPE
        )
        lines = (await asyncio.wait_for(process.communicate(), 25))[0].decode().splitlines()

    assert process.returncode == 1
    assert [line.split()[:2] for line in lines[2:4]] == [["1", "connection"], ["2", "connections"]]
    assert max(map(len, lines)) <= 80
    assert "x status 429: full" in lines[-1]


@pytest.mark.parametrize("api", ["raw", "multipart", "grpc"])
async def test_topfive(api: str, artifacts: Path) -> None:
    """Each API of the service is measured."""
    async with serving(artifacts) as running:
        ports = running.service.rest.port, running.service.rpc.port
        url = f"grpc://127.0.0.1:{ports[1]}" if api == "grpc" else f"http://127.0.0.1:{ports[0]}"
        done = await bench(url, "--api", api, "--model", "tiny", "--connections", "2")

    assert done.status == 0, done.errors
    assert done.load["requests"] > 0


@pytest.mark.parametrize("script", [SILENCE, reply()])
async def test_interrupted(script: Send) -> None:
    """Ctrl-C ends the wait for the first response, and a measurement, at once."""
    async with serving_script(always(script)) as server:
        process = await asyncio.create_subprocess_exec(
            *(*PROGRAM, server.url, "--seconds", "600"), stderr=asyncio.subprocess.PIPE
        )
        await reached(lambda: len(server.requests) > (0 if script is SILENCE else 100))
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 1
    assert errors.decode().splitlines()[-1] == "Aborted!"
    assert b"Traceback" not in errors


@pytest.mark.parametrize("tensor", [(), ("--tensor", "image:UINT8:2,32,32,3")])
async def test_inference_protocol(exported: Path, tensor: tuple[str, ...]) -> None:
    """Every form of the protocol is measured: each request has an image, or the two of a tensor."""
    engine = FakeEngine()
    async with serving(exported, engine) as running:
        rest, rpc = str(running.http.base_url), f"127.0.0.1:{running.service.rpc.port}"
        for api in ("v2-json", "v2-binary", "v2-grpc", *(() if tensor else ("v2-raw",))):
            inputs = sum(engine.batches)
            result = await bench(
                rpc if api == "v2-grpc" else rest, "--api", api, "--model", "tiny", "--connections", "2", *tensor
            )
            assert result.status == 0, result.errors
            assert result.load["errors"] == {}
            assert sum(engine.batches) - inputs >= result.load["requests"] * (2 if tensor else 1) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--api", "v2-raw"), "the protocol has no default model; name it by --model"),
        (("--tensor", "image:UINT8:1"), "--tensor needs --api v2-raw, v2-json, v2-binary, v2-grpc"),
        (("--api", "v2-grpc", "--tensor", "image"), "'image' is no tensor"),
        (("--connections", "1,x"), "'1,x' is no number and no list such as 1,4,16"),
        (("--connections", "0"), "each must be above 0"),
        (("--rate", "inf"), "each must be above 0"),
        (("--api", "v2"), "'v2' is not one of 'raw', 'multipart', 'grpc'"),
        (("--rate", "5", "--connections", "5"), "give --rate or --connections, not both"),
        (("--api", "grpc"), "http://127.0.0.1:9/x is no gRPC address; give HOST:PORT, such as localhost:50051"),
        ((), "the first request to http://127.0.0.1:9/x failed: connection refused"),
    ],
)
def test_what_cannot_be_measured(words: tuple[str, ...], message: str) -> None:
    """An option that does not fit, and a server that is not there, are errors that say so."""
    result = CliRunner().invoke(main, ["bench", "http://127.0.0.1:9/x", *words], env={"COLUMNS": "200"})

    assert result.exit_code == (2 if "Usage" in result.output else 1)
    assert message in result.output


async def test_more_connections_than_files() -> None:
    """The soft limit of open files is raised to the hard one."""
    async with serving_script(always(reply())) as server:
        command = shlex.join([*PROGRAM, server.url, *QUICK, "--connections", "85"])
        process = await asyncio.create_subprocess_exec("sh", "-c", f"ulimit -Sn 90; ulimit -Hn 400; exec {command}")
        await process.communicate()

    assert process.returncode == 0
    assert server.connections == 86


async def test_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with TLS is measured if the machine trusts its certificate; otherwise the command is an error."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the command openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = await asyncio.create_subprocess_exec(
        *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(key), "-out", str(certificate)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    async with serving_script(always(reply()), tls) as server:
        refused = await bench(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        done = await bench(server.url, "--connections", "2")

    assert refused.status == 1
    assert "certificate" in refused.errors
    assert len(refused.errors.splitlines()) == 1
    assert done.status == 0, done.errors
    assert done.load["requests"] > 0
