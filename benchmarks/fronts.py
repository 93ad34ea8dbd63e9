"""What front processes cost and how far they scale: `python -m benchmarks.fronts`.

The real service runs over an engine that does nothing, in one process and behind one front and more, up to the cores
there are; the photo is decoded for real. Rounds are interleaved and medians printed. Where the load and the service
share few cores, requests per second say little: CPU time says more. What a request costs the engine process bounds what
any number of fronts can reach.
"""

import asyncio
import json
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.figures import medians
from benchmarks.overhead import raw_body, rest_load
from benchmarks.spending import started
from export.gate_images import PHOTOS
from service.common.cpus import cpu_quota

_MOST = 32  # for which the default of --max-upload-bytes has room
_ROUNDS = 5
_BODY_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Scaling:
    """Requests per second, and milliseconds of CPU that one cost all fronts together and the engine process.

    `limit_per_second` is what one core gives to an engine process that does nothing else, all Python in it on one
    thread at a time: no number of fronts gets beyond it.
    """

    per_second: float
    fronts_ms: float
    engine_process_ms: float
    limit_per_second: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A running `benchmarks.null_fronts`."""

    process: Process
    port: int

    async def round(self, photo: bytes, connections: int, requests: int) -> Scaling:
        """What `requests` over so many connections cost, after a few that warm up."""
        load = rest_load(self.port, raw_body(photo))
        fronts = children(self.process.pid)
        await load(connections, 2 * connections)
        before = [cpu_s(pid) for pid in (self.process.pid, *fronts)]
        began = time.monotonic()
        await load(connections, requests)
        took_s = time.monotonic() - began
        after = [cpu_s(pid) for pid in (self.process.pid, *fronts)]
        engine_ms, *fronts_ms = ((late - early) * 1000 / requests for early, late in zip(before, after, strict=True))
        return Scaling(requests / took_s, sum(fronts_ms), engine_ms, 1000 / engine_ms)


def children(pid: int) -> list[int]:
    """The processes that it has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used so far: its clock, by the number that Linux makes of its id."""
    return time.clock_gettime((~pid << 3) | 2)


@asynccontextmanager
async def served(gateways: int, model: str, artifacts: Path) -> AsyncIterator[Measured]:
    """The service behind so many fronts."""
    options = ("--gateways", str(gateways), "--model", model, "--artifacts", str(artifacts))
    async with started("null_fronts", *options) as (process, ports):
        yield Measured(process, **ports)


def numbers(cpus: int) -> list[int]:
    """How many fronts are measured: none, one, two, powers of two, and one for each CPU where `serve` takes so many."""
    most = min(cpus, _MOST)
    return sorted({0, 1, 2, *(2**power for power in range(most.bit_length())), most})


async def measure(
    model: str, photo: bytes, artifacts: Path, *, connections: int, requests: int
) -> dict[int, list[Scaling]]:
    """The rounds of each number of fronts."""
    padded = photo.ljust(_BODY_BYTES, b"\0")  # what follows the end of a picture is not read
    figures: dict[int, list[Scaling]] = {}
    async with AsyncExitStack() as stack:
        steps = numbers(cpu_quota())
        services = [(n, await stack.enter_async_context(served(n, model, artifacts))) for n in steps]
        for _ in range(_ROUNDS):
            for gateways, service in services:
                figures.setdefault(gateways, []).append(await service.round(padded, connections, requests))
    return figures


@click.command()
@click.option("--model", default="googlenet", show_default=True, help="An exported model, whose input and labels count")
@click.option("--photo", type=click.Path(path_type=Path, exists=True), default=PHOTOS / "zebra.jpeg")
@click.option("--artifacts", type=click.Path(path_type=Path, exists=True), default=Path("artifacts"))
@click.option("--connections", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--requests", type=click.IntRange(min=1), default=200, show_default=True, help="Of each measurement")
@click.option("--json", "as_json", is_flag=True, help="Print the medians as JSON, by the number of fronts")
def main(model: str, photo: Path, artifacts: Path, connections: int, requests: int, as_json: bool) -> None:
    """Measure a service behind 0, 1, 2 and more front processes."""
    rounds = asyncio.run(measure(model, photo.read_bytes(), artifacts, connections=connections, requests=requests))
    figures = {gateways: medians(each) for gateways, each in rounds.items()}
    if as_json:
        click.echo(json.dumps({gateways: asdict(one) for gateways, one in figures.items()}, indent=2))
        return
    where = f"{_BODY_BYTES:,} bytes, {connections} connections, {cpu_quota()} CPUs"
    table = Table(title=f"{where}, medians of {_ROUNDS} rounds of {requests} requests")
    for column in ("gateways", "requests/s", "CPU ms fronts", "CPU ms engine process", "its limit, requests/s"):
        table.add_column(column, justify="right")
    for gateways, one in figures.items():
        fronts_ms = f"{one.fronts_ms:.3f}" if gateways else ""
        cells = (f"{one.per_second:.0f}", fronts_ms, f"{one.engine_process_ms:.3f}", f"{one.limit_per_second:.0f}")
        table.add_row(str(gateways), *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
