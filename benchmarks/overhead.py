"""CPU time that the server itself costs for each request: `python -m benchmarks.overhead`.

The real server runs in a process of its own over a decoder and an engine that do nothing. Beside it run uvicorn and
grpc.aio alone, whose handlers answer a few bytes at once: they read no form, use no threads, and encode no answer. The
same libraries run a third time with these steps. Rounds are interleaved. CPU time is used because on a shared machine
it is steadier than throughput.
"""

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from itertools import product
from pathlib import Path

import click
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.load import send_requests
from benchmarks.overhead_server import OverheadServer
from benchmarks.report import BenchmarkReport, Measurement, ReportRow, page
from benchmarks.server_under_test import ServerUnderTest
from benchmarks.servers import ServerSpec
from export.gate_images import PHOTOS
from loadgen.connection import Connect
from loadgen.grpc_connection import GrpcConnection, grpc_request
from loadgen.http_connection import HttpAddress, HttpConnection, multipart_request, raw_request
from loadgen.images import EncodedImage

_ROUNDS = 7
_BODY_BYTES = 100_000
_CONNECTIONS = (1, 16)


class RequestKind(StrEnum):
    """How the photo is sent."""

    RAW = "raw body"
    MULTIPART = "multipart"
    GRPC = "gRPC"


def overhead_server(kind: OverheadServer, model: str, artifacts: Path) -> ServerSpec:
    """A server to measure; its ports are those of REST and of gRPC."""
    program = (sys.executable, "-m", "benchmarks.overhead_server", "--port", "{port}", "--kind", kind.value)
    return ServerSpec(kind.value, (*program, "--model", model, "--artifacts", str(artifacts.resolve())))


def connect_by(kind: RequestKind, port: int, photo: bytes) -> Connect:
    """Connections that send the photo to the server at `port`; gRPC is at the next port."""
    image, address = EncodedImage(photo), HttpAddress.parse(f"http://127.0.0.1:{port}")
    if kind is RequestKind.GRPC:
        return lambda _: GrpcConnection(f"127.0.0.1:{port + 1}", [grpc_request(image)])
    request = multipart_request if kind is RequestKind.MULTIPART else raw_request
    return lambda _: HttpConnection(address, [request(address, image)])


async def cpu_ms(kind: RequestKind, server: ServerUnderTest, photo: bytes, *, connections: int, requests: int) -> float:
    """CPU time of the server for each of so many requests, after a few that warm it up. Raises LoadTestError."""
    connect = connect_by(kind, server.ports[0], photo)
    await send_requests(connect, 2 * connections, connections)
    before = server.cpu_s()
    await send_requests(connect, requests, connections)
    return 1000 * (server.cpu_s() - before) / requests


def measure(model: str, artifacts: Path, requests: int) -> Measurement:
    """Measure what a request of each kind costs each server. Raises ServerError and LoadTestError."""
    photo = (PHOTOS / "zebra.jpeg").read_bytes().ljust(_BODY_BYTES, b"\0")  # what follows the end is not read
    rounds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        specs = [overhead_server(kind, model, artifacts) for kind in OverheadServer]
        servers = [stack.enter_context(ServerUnderTest(spec, folder, photo)) for spec in specs]
        for _ in range(_ROUNDS):
            for server, kind, connections in product(servers, RequestKind, _CONNECTIONS):
                one = asyncio.run(cpu_ms(kind, server, photo, connections=connections, requests=requests))
                rounds.setdefault(f"{kind} x {connections}, {server.spec.name}", []).append(one)
    return Measurement(
        title=f"Overhead: a body of {_BODY_BYTES:,} bytes, {_ROUNDS} rounds of {requests} requests",
        heads=("connections, server", "CPU ms", "lowest", "highest"),
        table=[
            [name, *(f"{ms:.3f}" for ms in (statistics.median(each), min(each), max(each)))]
            for name, each in rounds.items()
        ],
        rows=[
            _row("overhead of REST, 100 kB multipart", RequestKind.MULTIPART, rounds, 2.5),
            _row("overhead of gRPC, 100 kB", RequestKind.GRPC, rounds, 1.6),
        ],
    )


def _row(title: str, kind: RequestKind, rounds: Mapping[str, Sequence[float]], at_most: float) -> ReportRow:
    ours, libraries, steps = (rounds[f"{kind} x 16, {server}"] for server in OverheadServer)
    times = [a / b for a, b in zip(ours, libraries, strict=True)]
    beside = statistics.median(a / b for a, b in zip(ours, steps, strict=True))
    ms, libraries_ms = statistics.median(ours), statistics.median(libraries)
    note = f"{ms:.2f} ms, the libraries alone {libraries_ms:.2f}; {beside:.1f} times the libraries with the same steps"
    return ReportRow(title, times, "times the libraries alone", at_most=at_most, note=note)


@click.command()
@click.option("--model", default="googlenet", show_default=True, help="An exported model")
@click.option("--artifacts", type=click.Path(path_type=Path), default="artifacts", envvar="TOPFIVE_ARTIFACTS")
@click.option("--requests", type=click.IntRange(min=1), default=200, show_default=True, help="Of each measurement")
def main(model: str, artifacts: Path, requests: int) -> None:
    """Measure what a request costs beside decoding and inference; of the model the input and the labels count."""
    Console().print(Markdown(page(BenchmarkReport((), "", [measure(model, artifacts, requests)]))))


if __name__ == "__main__":
    main()
