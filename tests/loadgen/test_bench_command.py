"""`topfive bench` as a user runs it, in a process of its own, against scripted servers and against the service."""

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
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli.main import main
from tests.fakes import reached
from tests.load_server import SILENCE, Script, Scripted, reply, scripted
from tests.serving import serving

pytestmark = pytest.mark.anyio

QUICK = ("--seconds", "0.3", "--warm-up", "0.05")
ANY = (*QUICK, "--api", "raw", "--path", "/predict")
"""Of a server that answers as nobody else does."""


@dataclass(frozen=True, slots=True)
class Done:
    """How the command ended."""

    status: int
    said: str
    report: Any

    @property
    def point(self) -> Any:
        """The only point."""
        (point,) = self.report["points"]
        return point


async def bench(folder: Path, *words: str) -> Done:
    """Run the command; its report where it wrote one."""
    file = folder / "report.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from service.cli.main import main; main()", "bench", *words, "--json", str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Done(process.returncode, said.decode(), json.loads(file.read_text()) if file.exists() else None)


async def against(script: Script, folder: Path, *words: str) -> tuple[Done, Scripted]:
    """Run the command against one scripted server."""
    async with scripted(script) as server:
        return await bench(folder, server.url, *ANY, *words), server


async def test_closed_loop(tmp_path: Path) -> None:
    """A good server gives status 0, and a report whose figures fit each other and what the server saw."""
    done, server = await against(lambda _number, _asked: reply(), tmp_path, "--connections", "3")

    point = done.point
    assert done.status == 0, done.said
    assert (point["connections"], point["rate"], point["errors"], point["unanswered"]) == (3, None, {}, 0)
    assert 0 < point["requests"] < len(server.asked)
    assert point["requests_per_second"] == pytest.approx(point["requests"] / point["seconds"])
    assert sum(window["requests"] for window in point["windows"]) == point["requests"]
    times = [point["latency_ms"][name] for name in ("p50", "p90", "p95", "p99", "max")]
    assert times[0] > 0
    assert all(before <= after for before, after in pairwise(times))
    assert point["bytes_sent"] >= point["requests"] * done.report["images"][0]["bytes"]
    assert point["cpu_s"] > 0
    assert server.connections == 4  # one more to look at what comes back
    assert {asked.path for asked in server.asked} == {"/predict"}


async def test_the_generator_costs_little(tmp_path: Path) -> None:
    """A request of 100 kB costs the generator a small part of a millisecond of CPU, or it would measure itself."""
    done, _ = await against(lambda _number, _asked: reply(), tmp_path, "--seconds", "1", "--connections", "4")

    assert done.point["requests"] > 200
    assert done.point["cpu_s"] / done.point["requests"] < 0.3e-3


async def test_errors_give_the_status(tmp_path: Path) -> None:
    """Errors are counted by kind with what the server said, and the status is 1."""
    done, _ = await against(
        lambda number, _asked: reply(b"full", "503 Service Unavailable") if number % 2 else reply(), tmp_path
    )

    assert done.status == 1
    assert done.point["errors"]["status 503"] > 0
    assert done.point["error_examples"] == {"status 503": "full"}
    assert done.point["requests"] > 0


async def test_sweep_and_csv(tmp_path: Path) -> None:
    """A sweep has a point for each load; the CSV has perf_analyzer's columns, by rising throughput, in microseconds."""
    timing = "Server-Timing: decode;dur=0.002, queue;dur=0.001, inference;dur=0.003, total;dur=0.006"
    file = tmp_path / "out.csv"

    done, _ = await against(
        lambda _number, _asked: reply(b"{}", "200 OK", timing), tmp_path, "--connections", "1,2", "--csv", str(file)
    )

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


@pytest.mark.parametrize(
    ("status", "header", "said"),
    [
        ("404 Not Found", "X-A: b", "answers 404: no such model; --allow-errors measures it"),
        ("307 Temporary Redirect", "Location: http://other/predict", "redirects (307) to http://other/predict"),
    ],
)
async def test_an_error_is_not_measured(status: str, header: str, said: str, tmp_path: Path) -> None:
    """Where the first request fails nothing is measured: one request, one line, status 1."""
    done, server = await against(lambda _number, _asked: reply(b"no such model", status, header), tmp_path)

    assert (done.status, done.report, len(server.asked)) == (1, None, 1)
    assert said in done.said
    assert len(done.said.splitlines()) == 1


async def test_another_api_is_not_measured(tmp_path: Path) -> None:
    """A good status with what this project never says is no answer of this project."""
    done, server = await against(lambda _number, _asked: reply(b"<html>Hello"), tmp_path, "--api", "topfive")

    assert (done.status, len(server.asked)) == (1, 1)
    assert "answers 200, but not as --api topfive would: <html>Hello" in done.said


async def test_silence(tmp_path: Path) -> None:
    """A server that falls silent once it was looked at gives timeouts, no figures, and status 1."""
    done, _ = await against(
        lambda number, _asked: SILENCE if number else reply(), tmp_path, "--timeout", "0.5", "--connections", "2"
    )

    assert done.status == 1
    assert done.point["errors"]["timeout"] >= 2
    assert (done.point["requests"], done.point["valid"]) == (0, False)


async def test_stopped_while_it_asks(tmp_path: Path) -> None:
    """Ctrl-C while the first answer is awaited ends it at once."""
    async with scripted(lambda _number, _asked: SILENCE) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from service.cli.main import main; main()", "bench", server.url),
            stderr=asyncio.subprocess.PIPE,
        )
        await reached(lambda: len(server.asked) == 1)
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 1
    assert said.decode() == "Error: stopped before anything was measured\n"


async def test_errors_on_request(tmp_path: Path) -> None:
    """--allow-errors measures them all the same."""
    done, _ = await against(lambda _number, _asked: reply(b"", "404 Not Found"), tmp_path, "--allow-errors")

    assert done.status == 1
    assert done.point["requests"] == 0
    assert done.point["valid"] is False
    assert done.point["latency_ms"]["p99"] is None


async def test_nobody_there(tmp_path: Path) -> None:
    """A server that is not there is said in a line."""
    async with scripted(lambda _number, _asked: reply()) as server:
        url = server.url

    done = await bench(tmp_path, url, *ANY)

    assert (done.status, done.said) == (1, f"Error: {url} refuses connections; is the server running there?\n")


async def test_connections_are_spread(tmp_path: Path) -> None:
    """With two URLs each has half of the connections."""
    async with scripted(lambda _number, _asked: reply()) as one, scripted(lambda _number, _asked: reply()) as other:
        done = await bench(tmp_path, one.url, other.url, *ANY, "--connections", "4")

    assert done.status == 0
    assert (one.connections, other.connections) == (3, 3)  # each was looked at before


@pytest.mark.parametrize("api", ["topfive", "multipart"])
async def test_the_service_itself(api: str, artifacts: Path, tmp_path: Path) -> None:
    """The service is measured by either body; what it answers first is shown, and what it says of its steps is kept."""
    async with serving(artifacts) as running:
        url = f"http://127.0.0.1:{running.service.rest.port}"
        done = await bench(tmp_path, url, "--api", api, "--connections", "2", "--seconds", "1", "--warm-up", "0.2")

    assert done.status == 0, done.said
    assert "tiny on " in done.said.splitlines()[0]
    assert done.point["requests"] > 0
    server = done.point["server_ms"]
    assert 0 < server["input"] < server["total"] <= done.point["latency_ms"]["mean"]


async def test_plot(tmp_path: Path) -> None:
    """The plot is one page with the picture in it; another name than .html is refused before anything is asked."""
    file = tmp_path / "plot.html"

    done, _ = await against(lambda _number, _asked: reply(), tmp_path, "--plot", str(file))
    refused, server = await against(lambda _number, _asked: reply(), tmp_path, "--plot", "plot.png")

    assert done.status == 0
    assert "<svg" in file.read_text()
    assert refused.status == 2
    assert "plot.png should end in .html" in refused.said
    assert server.asked == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end a long measurement with its figures, and the status says by which."""
    async with scripted(lambda _number, _asked: reply()) as server:
        file = tmp_path / "report.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from service.cli.main import main; main()", "bench", server.url, "--api", "raw"),
            *("--seconds", "600", "--warm-up", "0", "--json", str(file)),
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        await reached(lambda: len(server.asked) > 100)
        process.send_signal(number)
        status = await asyncio.wait_for(process.wait(), 30)

    (point,) = json.loads(file.read_text())["points"]
    assert status == 128 + number
    assert point["requests"] > 0
    assert any("stopped early" in note for note in point["notes"])


@pytest.mark.parametrize(
    ("words", "said"),
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
    ],
)
def test_what_cannot_be(words: tuple[str, ...], said: str) -> None:
    """Options that make no sense are refused by name, before anything is asked."""
    result = CliRunner().invoke(main, ["bench", "http://127.0.0.1:9/x", *words], env={"COLUMNS": "200"})

    assert result.exit_code == 2
    assert said in result.output


async def test_more_connections_than_files(tmp_path: Path) -> None:
    """Connections beyond what a process may open are refused; those within are opened, though the limit was lower."""
    program = shlex.join([sys.executable, "-c", "from service.cli.main import main; main()"])
    async with scripted(lambda _number, _asked: reply()) as server:
        command = f"ulimit -Sn 90; ulimit -Hn 400; exec {program} bench {server.url} --api raw --seconds 0.3"
        many, some = [
            await asyncio.create_subprocess_exec(
                "sh", "-c", f"{command} --warm-up 0 --connections {count}", stderr=asyncio.subprocess.PIPE
            )
            for count in (350, 85)
        ]
        said = (await many.communicate())[1].decode()
        await some.communicate()

    assert (many.returncode, some.returncode) == (1, 0)
    assert "350 connections need 414 open files, but this process may have 400: raise `ulimit -Hn`" in said
    assert server.connections >= 85


async def test_no_grpc_address(tmp_path: Path) -> None:
    """A URL of HTTP is no address of gRPC."""
    done = await bench(tmp_path, "http://127.0.0.1:9/x", "--api", "grpc")

    assert (done.status, done.said) == (
        1,
        "Error: http://127.0.0.1:9/x is no gRPC address; give HOST:PORT, such as localhost:50051\n",
    )


async def test_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is measured over TLS where the machine trusts its certificate, and refused where it does not."""
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

    async with scripted(lambda _number, _asked: reply(), tls) as server:
        refused = await bench(tmp_path, server.url, *ANY)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        done = await bench(tmp_path, server.url, *ANY, "--connections", "2")

    assert refused.status == 1
    assert "certificate" in refused.said
    assert len(refused.said.splitlines()) == 1
    assert done.status == 0, done.said
    assert done.point["requests"] > 0
