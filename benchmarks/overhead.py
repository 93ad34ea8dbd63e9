"""CPU time that the server itself costs for each request: `python -m benchmarks.overhead`.

The real server runs in a process of its own over an engine that does nothing, once with the real decoder, whose own
time is taken off, and once with one that gives constant samples; beside it uvicorn and grpc.aio alone, whose handlers
answer at once. Rounds are interleaved and medians printed. CPU time is used because on a shared machine it is steadier
than throughput.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from enum import StrEnum
from itertools import product
from pathlib import Path

import click

from benchmarks.command import artifacts_option, json_option, model_option, photo_option, print_measurement
from benchmarks.figures import FigureTarget, Measurement, ReportRow
from benchmarks.load import send_requests
from benchmarks.overhead_server import OverheadServer, read_spent
from benchmarks.requests import jpeg
from benchmarks.server_under_test import ServerUnderTest, ready_endpoint
from benchmarks.servers import ServerSpec
from loadgen.grpc_connection import GrpcTarget
from loadgen.target import HttpTarget, LoadTarget, RequestFormat, ServerApi

_ROUNDS = 7
_BODY_BYTES = 100_000
_CONNECTIONS = (1, 16)


class RequestKind(StrEnum):
    """How the photo is sent."""

    RAW = "raw body"
    MULTIPART = "multipart"
    GRPC = "gRPC"


@dataclass(frozen=True, slots=True)
class Overhead:
    """What one request cost the server in one round.

    `cpu_ms` is without decoding and resizing, `loop_ms` is the part of it on the event loop's thread, and `switches`
    counts how often the process gave up the processor.
    """

    cpu_ms: float
    loop_ms: float
    decode_ms: float
    switches: float
    per_second: float


def medians(rounds: Sequence[Overhead]) -> Overhead:
    """The median of each figure over the rounds."""
    return Overhead(*map(statistics.median, zip(*map(astuple, rounds), strict=True)))


def overhead_server(kind: OverheadServer, model: str, artifacts: Path) -> ServerSpec:
    """A server to measure; its ports are those of REST, of gRPC, and of what it has spent."""
    program = (sys.executable, "-m", "benchmarks.overhead_server", "--port", "{port}", "--kind", kind.value)
    return ServerSpec(kind.value, (*program, "--model", model, "--artifacts", str(artifacts.resolve())))


def target_of(kind: RequestKind, port: int, photo: bytes) -> LoadTarget:
    """What sends the photo to the server at `port`; gRPC is at the next port."""
    if kind is RequestKind.GRPC:
        return GrpcTarget([f"127.0.0.1:{port + 1}"], "", [jpeg(photo)])
    api = ServerApi.MULTIPART if kind is RequestKind.MULTIPART else ServerApi.TOPFIVE
    return HttpTarget.of([f"http://127.0.0.1:{port}"], RequestFormat(api), [jpeg(photo)])


async def measure_overhead(kind: RequestKind, port: int, photo: bytes, *, connections: int, requests: int) -> Overhead:
    """Load the server at `port` with so many requests, after a few that warm it up. Raises LoadTestError."""

    async def send(count: int) -> None:
        target = target_of(kind, port, photo)
        try:
            await send_requests(target.open_connection, [0] * count, connections)
        finally:
            await target.aclose()

    await send(2 * connections)
    before, began = await read_spent(port + 2), time.monotonic()
    await send(requests)
    took_s, after = time.monotonic() - began, await read_spent(port + 2)
    decode_s = after.decode_s - before.decode_s
    return Overhead(
        cpu_ms=(after.cpu_s - before.cpu_s - decode_s) * 1000 / requests,
        loop_ms=(after.loop_s - before.loop_s) * 1000 / requests,
        decode_ms=decode_s * 1000 / requests,
        switches=(after.switches - before.switches) / requests,
        per_second=requests / took_s,
    )


def measure(model: str, photo: bytes, artifacts: Path, requests: int) -> Measurement:
    """Measure what a request of each kind costs each server. Raises ServerError and LoadTestError."""
    padded = photo.ljust(_BODY_BYTES, b"\0")  # what follows the end of a picture is not read
    rounds: dict[str, list[Overhead]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        specs = [overhead_server(kind, model, artifacts) for kind in OverheadServer]
        servers = [stack.enter_context(ServerUnderTest(spec, folder, ready_endpoint)) for spec in specs]
        for _ in range(_ROUNDS):
            for server, kind, connections in product(servers, RequestKind, _CONNECTIONS):
                port, name = server.ports[0], f"{kind} x {connections}, {server.spec.name}"
                one = measure_overhead(kind, port, padded, connections=connections, requests=requests)
                rounds.setdefault(name, []).append(asyncio.run(one))
    figures = {name: medians(each) for name, each in rounds.items()}
    table = []
    for name, middle in figures.items():
        cpu = [one.cpu_ms for one in rounds[name]]
        shown = (middle.cpu_ms, min(cpu), max(cpu), middle.loop_ms, middle.decode_ms)
        table.append((name, *(f"{ms:.3f}" for ms in shown), f"{middle.switches:.1f}", f"{middle.per_second:.0f}"))
    return Measurement(
        name="overhead",
        title=f"A body of {_BODY_BYTES:,} bytes, medians of {_ROUNDS} rounds of {requests} requests",
        heads=("", "CPU ms", "lowest", "highest", "loop ms", "decode ms", "switches", "per s"),
        table=table,
        figures=figures,
        rows=[
            _row("overhead of REST, 100 kB multipart", RequestKind.MULTIPART, figures, 0.8),
            _row("overhead of gRPC, 100 kB", RequestKind.GRPC, figures, 0.4),
        ],
    )


def _row(title: str, kind: RequestKind, figures: Mapping[str, Overhead], most_ms: float) -> ReportRow:
    ours, libraries = (
        figures[f"{kind} x 16, {server}"].cpu_ms for server in (OverheadServer.NULL, OverheadServer.BARE)
    )
    note = f"at 16 connections; the libraries alone: {libraries:.2f}"
    return ReportRow(title, (ours,), "ms of CPU", FigureTarget(at_most=most_ms), note)


@click.command()
@model_option
@photo_option
@artifacts_option
@click.option("--requests", type=click.IntRange(min=1), default=200, show_default=True, help="Of each measurement")
@json_option
def main(model: str, photo: Path, artifacts: Path, requests: int, as_json: bool) -> None:
    """Measure what a request costs beside decoding and inference; of the model the input and the labels count."""
    print_measurement(measure(model, photo.read_bytes(), artifacts, requests), as_json=as_json)


if __name__ == "__main__":
    main()
