"""`topfive bench` in a process of its own, against scripted servers and against the service."""

import asyncio
import csv
import io
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
from tests.fakes import reached
from tests.loadgen.http_server import SILENCE, Script, ScriptedServer, Send, always, reply, serving_script
from tests.serving import serving

pytestmark = pytest.mark.anyio

PROGRAM = (sys.executable, "-c", "from service.cli.main import main; main()", "bench")
QUICK = ("--seconds", "0.3", "--warm-up", "0.05")
RAW = (*QUICK, "--api", "raw", "--path", "/predict")


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The end of a command; `report` is None if it wrote none."""

    status: int
    output: str
    report: Any

    @property
    def point(self) -> Any:
        """The only load level of the report."""
        (point,) = self.report["points"]
        return point


async def bench(folder: Path, *words: str) -> BenchResult:
    """Run the command."""
    file = folder / "report.json"
    process = await asyncio.create_subprocess_exec(
        *(*PROGRAM, *words, "--json", str(file)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 25)  # less than the default of --timeout
    assert process.returncode is not None
    return BenchResult(process.returncode, output.decode(), json.loads(file.read_text()) if file.exists() else None)


async def bench_script(script: Script, folder: Path, *words: str) -> tuple[BenchResult, ScriptedServer]:
    """Run the command against one scripted server."""
    async with serving_script(script) as server:
        return await bench(folder, server.url, *RAW, *words), server


async def test_closed_loop(tmp_path: Path) -> None:
    """A good server gives status 0, and a report whose figures fit each other and what the server got.

    A request of 100 kB costs the generator less than 0.3 ms of CPU.
    """
    done, server = await bench_script(always(reply()), tmp_path, "--connections", "3")

    point = done.point
    assert done.status == 0, done.output
    assert (point["connections"], point["rate"], point["errors"], point["unanswered"]) == (3, None, {}, 0)
    assert 0 < point["requests"] < len(server.requests)
    assert point["requests_per_second"] == pytest.approx(point["requests"] / point["seconds"])
    assert sum(window["requests"] for window in point["windows"]) == point["requests"]
    times = [point["latency_ms"][name] for name in ("p50", "p90", "p95", "p99", "max")]
    assert 0 < times[0] <= times[-1]
    assert times == sorted(times)
    assert point["bytes_sent"] >= point["requests"] * done.report["images"][0]["bytes"]
    assert 0 < point["cpu_s"] / point["requests"] < 0.3e-3
    assert server.connections == 4  # one more for the check
    assert {one.path for one in server.requests} == {"/predict"}


async def test_rate(tmp_path: Path) -> None:
    """With --rate requests arrive at that rate, not as fast as servers answer; two URLs share the connections."""
    async with serving_script(always(reply())) as one, serving_script(always(reply())) as other:
        done = await bench(tmp_path, one.url, other.url, *RAW, "--rate", "100")
        one.connections = other.connections = 0
        closed = await bench(tmp_path, one.url, other.url, *RAW, "--connections", "4")

    assert (done.status, done.point["rate"], done.point["connections"]) == (0, 100, None)
    assert 0 < done.point["requests"] < 60
    assert closed.point["requests"] > 2 * done.point["requests"]
    assert (one.connections, other.connections) == (3, 3)  # one of each for the check


@pytest.mark.parametrize(
    ("failing", "kind", "example"),
    [(reply(b"full", "503 Service Unavailable"), "status 503", "full"), (SILENCE, "timeout", "")],
    ids=["503", "silence"],
)
async def test_errors(failing: Send, kind: str, example: str, tmp_path: Path) -> None:
    """After a good first response, errors are counted by kind with an example, and the status is 1."""
    done, _ = await bench_script(lambda number: failing if number else reply(), tmp_path, "--timeout", "0.3")

    assert done.status == 1
    assert done.point["errors"].keys() == done.point["error_examples"].keys() == {kind}
    assert done.point["error_examples"][kind] == example
    assert (done.point["requests"], done.point["valid"]) == (0, False)


@pytest.mark.parametrize("words", [(), ("--allow-errors",)])
async def test_first_request_fails(words: tuple[str, ...], tmp_path: Path) -> None:
    """If the first request fails, nothing is measured, unless errors are allowed; the status is 1 in both cases."""
    done, server = await bench_script(always(reply(b"no such model", "404 Not Found")), tmp_path, *words)

    assert done.status == 1
    assert "answers 404: no such model; --allow-errors measures it" in done.output
    if words:
        assert (done.point["requests"], done.point["valid"]) == (0, False)
        assert done.point["latency_ms"]["p99"] is None
    else:
        assert (done.report, len(server.requests), len(done.output.splitlines())) == (None, 1, 1)


async def test_sweep_and_files(tmp_path: Path) -> None:
    """A sweep has a point for each load; the CSV has perf_analyzer's columns, by rising throughput, in microseconds.

    The plot is a page with a chart.
    """
    timing = "Server-Timing: decode;dur=0.002, queue;dur=0.001, inference;dur=0.003, total;dur=0.006"
    file, plot = tmp_path / "out.csv", tmp_path / "plot.html"

    words = ("--connections", "1,2", "--csv", str(file), "--plot", str(plot))
    done, _ = await bench_script(always(reply(b"{}", "200 OK", timing)), tmp_path, *words)

    assert "<svg" in plot.read_text()
    assert [point["connections"] for point in done.report["points"]] == [1, 2]
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert sorted(row["Concurrency"] for row in rows) == ["1", "2"]
    assert float(rows[0]["Inferences/Second"]) <= float(rows[1]["Inferences/Second"])
    assert [rows[0][f"Server {name}"] for name in ("Queue", "Compute Input", "Compute Infer")] == ["1", "2", "3"]
    by_load = {str(point["connections"]): point for point in done.report["points"]}
    for row in rows:
        latency = by_load[row["Concurrency"]]["latency_ms"]
        assert int(row["p99 latency"]) == round(latency["p99"] * 1000)
        assert int(row["Network+Server Send/Recv"]) == pytest.approx(latency["mean"] * 1000 - 6, abs=1)


async def test_stopped_before_the_first_response() -> None:
    """Ctrl-C ends the wait for the first response at once."""
    async with serving_script(always(SILENCE)) as server:
        process = await asyncio.create_subprocess_exec(*PROGRAM, server.url, stderr=asyncio.subprocess.PIPE)
        await reached(lambda: len(server.requests) == 1)
        process.send_signal(signal.SIGINT)
        _, output = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 1
    assert output.decode() == "Error: stopped before anything was measured\n"


@pytest.mark.parametrize("api", ["topfive", "multipart", "grpc"])
async def test_topfive(api: str, artifacts: Path, tmp_path: Path) -> None:
    """Each API of the service is measured; the output has its first response, the report the time of its steps."""
    async with serving(artifacts) as running:
        ports = running.service.rest.port, running.service.rpc.port
        url = f"grpc://127.0.0.1:{ports[1]}" if api == "grpc" else f"http://127.0.0.1:{ports[0]}"
        done = await bench(tmp_path, url, "--api", api, "--connections", "2", *QUICK)

    assert done.status == 0, done.output
    assert "tiny on " in done.output.splitlines()[0]
    assert done.point["requests"] > 0
    server = done.point["server_ms"]
    assert 0 < server["input"] < server["total"] <= done.point["latency_ms"]["mean"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end a measurement; its results are written, and the status names the signal."""
    async with serving_script(always(reply())) as server:
        file = tmp_path / "report.json"
        process = await asyncio.create_subprocess_exec(
            *(*PROGRAM, server.url, "--api", "raw", "--seconds", "600", "--warm-up", "0", "--json", str(file)),
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        await reached(lambda: len(server.requests) > 100)
        process.send_signal(number)
        status = await asyncio.wait_for(process.wait(), 30)

    (point,) = json.loads(file.read_text())["points"]
    assert status == 128 + number
    assert point["requests"] > 0
    assert any("stopped early" in note for note in point["notes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--connections", "1,x"), "'1,x' is no number and no list such as 1,4,16"),
        (("--connections", "0"), "each must be above 0"),
        (("--rate", "inf"), "each must be above 0"),
        (("--seconds", "nan"), "nan is not a finite number"),
        (("--seconds", "inf"), "inf is not a finite number"),
        (("--json", "/dev/null/no/x.json"), "/dev/null/no is no folder; make it first"),
        (("--api", "v2"), "'v2' is not one of 'topfive', 'multipart', 'raw', 'grpc'"),
        (("--api", "grpc", "--path", "/x"), "--path has no use with --api grpc; it is for multipart, raw,"),
        (("--api", "raw", "--model", "x"), "--model has no use with --api raw"),
        (("--field", "x"), "--field has no use with --api topfive; it is for multipart"),
        (("--rate", "5", "--connections", "5"), "give --rate or --connections, not both"),
        (("--max-windows", "5"), "--max-windows has no use without --windows"),
        (("--plot", "plot.png"), "plot.png should end in .html"),
        (("--api", "grpc"), "http://127.0.0.1:9/x is no gRPC address; give HOST:PORT, such as localhost:50051"),
    ],
)
def test_options_without_a_use(words: tuple[str, ...], message: str) -> None:
    """An option without a use is an error that names it, before any request is sent."""
    result = CliRunner().invoke(main, ["bench", "http://127.0.0.1:9/x", *words], env={"COLUMNS": "200"})

    assert result.exit_code == (2 if "Usage" in result.output else 1)
    assert message in result.output


async def test_more_connections_than_files() -> None:
    """More connections than the hard limit of open files are an error; the soft limit is raised as needed."""
    async with serving_script(always(reply())) as server:
        command = shlex.join([*PROGRAM, server.url, "--api", "raw", "--seconds", "0.3", "--warm-up", "0"])
        many, some = [
            await asyncio.create_subprocess_exec(
                *("sh", "-c", f"ulimit -Sn 90; ulimit -Hn 400; exec {command} --connections {count}"),
                stderr=asyncio.subprocess.PIPE,
            )
            for count in (350, 85)
        ]
        output = (await many.communicate())[1].decode()
        await some.communicate()

    assert (many.returncode, some.returncode) == (1, 0)
    assert "350 connections need 414 open files, but this process may have 400: raise `ulimit -Hn`" in output
    assert server.connections >= 85


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
        refused = await bench(tmp_path, server.url, *RAW)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        done = await bench(tmp_path, server.url, *RAW, "--connections", "2")

    assert refused.status == 1
    assert "certificate" in refused.output
    assert len(refused.output.splitlines()) == 1
    assert done.status == 0, done.output
    assert done.point["requests"] > 0
