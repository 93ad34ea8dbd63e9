"""CPU time that the server itself costs for each request: `python -m benchmarks.overhead`.

The real server runs in a process of its own over an engine that does nothing, once with the real decoder, whose own
time is taken off, and once with one that gives constant samples; beside it uvicorn and grpc.aio alone, whose handlers
answer at once. Rounds are interleaved and medians printed. CPU time is used because on a shared machine it is steadier
than throughput.
"""

import asyncio
import json
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import grpc
from rich.console import Console
from rich.table import Table

from benchmarks.figures import medians
from benchmarks.null_server import Decoding
from benchmarks.spending import started
from export.gate_images import PHOTOS
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub

_ROUNDS = 7
_BODY_BYTES = 100_000
_CONNECTIONS = (1, 16)
_BOUNDARY = b"------------------------d74496d66958873e"

Load = Callable[[int, int], Awaitable[None]]
"""Sends so many requests over so many connections."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What one request cost the server in one round.

    Milliseconds of CPU without decoding and resizing; of these on the event loop's thread; milliseconds of decoding and
    resizing; times the process gave up the processor; and requests answered in a second.
    """

    cpu_ms: float
    loop_ms: float
    decode_ms: float
    switches: float
    per_second: float


@dataclass(frozen=True, slots=True)
class Server:
    """A running one, which tells what it has spent."""

    process: Process
    port: int
    grpc_port: int

    async def spent(self) -> dict[str, float]:
        """What it has spent so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        figures: dict[str, float] = json.loads(await self.process.stdout.readline())
        return figures

    async def overhead(self, load: Load, connections: int, requests: int) -> Overhead:
        """What each request of `load` costs, after a few that warm the connections up."""
        await load(connections, 2 * connections)
        before, began = await self.spent(), time.monotonic()
        await load(connections, requests)
        took_s, after = time.monotonic() - began, await self.spent()
        used = {name: (after[name] - before[name]) / requests for name in after}
        return Overhead(
            cpu_ms=(used["cpu_s"] - used["decode_s"]) * 1000,
            loop_ms=used["loop_s"] * 1000,
            decode_ms=used["decode_s"] * 1000,
            switches=used["switches"],
            per_second=requests / took_s,
        )


def null_server(decoding: Decoding, model: str, artifacts: Path) -> AbstractAsyncContextManager[Server]:
    """This server over an engine that does nothing."""
    return _server("null_server", "--decoding", decoding, "--model", model, "--artifacts", str(artifacts))


def bare_server() -> AbstractAsyncContextManager[Server]:
    """The libraries under it alone."""
    return _server("bare_server")


@asynccontextmanager
async def _server(module: str, *arguments: str) -> AsyncIterator[Server]:
    async with started(module, *arguments) as (process, ports):
        yield Server(process, **ports)


def raw_body(photo: bytes) -> bytes:
    """A whole HTTP request whose body is the photo."""
    return _request(b"image/jpeg", photo)


def multipart_body(photo: bytes) -> bytes:
    """A whole HTTP request with the photo as the field `image` of a form, as curl writes it."""
    head = b'Content-Disposition: form-data; name="image"; filename="cat.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body = b"--" + _BOUNDARY + b"\r\n" + head + photo + b"\r\n--" + _BOUNDARY + b"--\r\n"
    return _request(b"multipart/form-data; boundary=" + _BOUNDARY, body)


def _request(kind: bytes, body: bytes) -> bytes:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (kind, len(body)) + body


def rest_load(port: int, request: bytes) -> Load:
    """The same request again and again, over keep-alive connections."""

    async def load(connections: int, requests: int) -> None:
        left = iter(range(requests))

        async def connection() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(writer):
                for _ in left:
                    writer.write(request)
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    if not head.startswith(b"http/1.1 200"):
                        raise RuntimeError(head.decode())
                    await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))

        await asyncio.gather(*(connection() for _ in range(connections)))

    return load


def grpc_load(port: int, photo: bytes) -> Load:
    """The same call again and again, one at a time over each connection."""

    async def load(connections: int, requests: int) -> None:
        left = iter(range(requests))

        async def connection() -> None:
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                stub = ClassifierStub(channel)  # type: ignore[no-untyped-call]
                for _ in left:
                    await stub.Classify(pb.ClassifyRequest(image=photo))

        await asyncio.gather(*(connection() for _ in range(connections)))

    return load


async def measure(model: str, photo: bytes, artifacts: Path, requests: int) -> dict[str, list[Overhead]]:
    """What a request of each kind cost in each round."""
    padded = photo.ljust(_BODY_BYTES, b"\0")  # what follows the end of a picture is not read
    figures: dict[str, list[Overhead]] = {}
    async with (
        null_server(Decoding.NULL, model, artifacts) as null,
        null_server(Decoding.REAL, model, artifacts) as real,
        bare_server() as bare,
    ):
        for _ in range(_ROUNDS):
            for which, server in (("null decoder", null), ("real decoder", real), ("libraries alone", bare)):
                loads = {
                    "raw body": rest_load(server.port, raw_body(padded)),
                    "multipart": rest_load(server.port, multipart_body(padded)),
                    "gRPC": grpc_load(server.grpc_port, padded),
                }
                for kind, load in loads.items():
                    for connections in _CONNECTIONS:
                        name = f"{kind} x {connections}, {which}"
                        figures.setdefault(name, []).append(await server.overhead(load, connections, requests))
    return figures


@click.command()
@click.option("--model", default="googlenet", show_default=True, help="An exported model, whose input and labels count")
@click.option("--photo", type=click.Path(path_type=Path, exists=True), default=PHOTOS / "zebra.jpeg")
@click.option("--artifacts", type=click.Path(path_type=Path, exists=True), default=Path("artifacts"))
@click.option("--requests", type=click.IntRange(min=1), default=200, show_default=True, help="Of each measurement")
@click.option("--json", "as_json", is_flag=True, help="Print the medians as JSON")
def main(model: str, photo: Path, artifacts: Path, requests: int, as_json: bool) -> None:
    """Measure what a request costs beside decoding and inference."""
    figures = asyncio.run(measure(model, photo.read_bytes(), artifacts, requests))
    if as_json:
        click.echo(json.dumps({name: asdict(medians(rounds)) for name, rounds in figures.items()}, indent=2))
        return
    table = Table(title=f"A body of {_BODY_BYTES:,} bytes, medians of {_ROUNDS} rounds of {requests} requests")
    for column in ("", "CPU ms", "lowest", "highest", "loop ms", "decode ms", "switches", "per s"):
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for name, rounds in figures.items():
        middle, cpu = medians(rounds), [one.cpu_ms for one in rounds]
        shown = (middle.cpu_ms, min(cpu), max(cpu), middle.loop_ms, middle.decode_ms)
        table.add_row(name, *(f"{value:.3f}" for value in shown), f"{middle.switches:.1f}", f"{middle.per_second:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
