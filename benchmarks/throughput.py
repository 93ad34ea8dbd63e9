"""Requests per second of the REST interface beside the limits of the machine: `make bench`.

The limits are the same decoder and the same engine without any server. All are measured in one run, in interleaved
rounds, and the medians are printed: on a shared machine only such ratios last.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from export.samples import PHOTOS
from models.artifact import load
from service import image, recipe
from service.engines.choose import EngineOptions, open_engine
from service.hardware import cpu_quota
from service.types import Batch, ImageLimits

_ROUNDS = 5


def per_second(work: Callable[[], object], threads: int, seconds: float) -> float:
    """How often `threads` threads together do `work` in a second; each does it at least once."""
    end = time.monotonic() + seconds

    def loop() -> int:
        work()
        done = 1
        while time.monotonic() < end:
            work()
            done += 1
        return done

    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(lambda _: loop(), range(threads)))
    return total / (time.monotonic() - began)


async def requests(port: int, request: bytes, connections: int, seconds: float) -> tuple[float, float]:
    """Requests per second and median latency in milliseconds over keep-alive connections that never pause."""
    end = time.monotonic() + seconds
    latencies: list[float] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.monotonic()) < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            latencies.append(time.monotonic() - began)
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*(connection() for _ in range(connections)))
    return len(latencies) / (time.monotonic() - began), statistics.median(latencies) * 1000


async def started(model: str, artifacts: Path) -> tuple[asyncio.subprocess.Process, int]:
    """A ready `topfive serve` on free ports, and its REST port."""
    command = ["serve", "--models", model, "--artifacts", str(artifacts), "--port", "0", "--grpc-port", "0"]
    topfive = Path(sys.executable).with_name("topfive")
    process = await asyncio.create_subprocess_exec(topfive, *command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    port = 0
    async for line in process.stderr:
        if b"REST on" in line:
            port = int(line.partition(b"REST on http://")[2].split(b",")[0].rpartition(b":")[2])
        if line.rstrip().endswith(b"ready"):
            return process, port
    raise RuntimeError(f"the server did not start; is {model} exported?")


async def measure(model: str, photo: bytes, artifacts: Path, seconds: float) -> dict[str, list[float]]:
    """Every figure of every round by its name."""
    artifact = load(artifacts, model)
    spec, limits = artifact.manifest.input, ImageLimits()
    engine = open_engine(artifact, EngineOptions(cpus=cpu_quota())).engine
    lines = (
        f"POST /predict?model={model} HTTP/1.1",
        "Host: x",
        "Content-Type: image/jpeg",
        f"Content-Length: {len(photo)}",
    )
    request = "\r\n".join(lines).encode() + b"\r\n\r\n" + photo
    process, port = await started(model, artifacts)
    figures: dict[str, list[float]] = {}

    def prepared() -> Batch:
        return recipe.apply(spec, image.decode(photo, limits))[np.newaxis]

    def note(name: str, figure: float) -> None:
        figures.setdefault(name, []).append(figure)

    batch = prepared()
    try:
        for _ in range(_ROUNDS):
            note("decode and resize alone, images/s", per_second(prepared, cpu_quota(), seconds))
            note("engine alone, images/s", per_second(lambda: engine.run(batch), engine.slots, seconds))
            note("both alone, images/s", per_second(lambda: engine.run(prepared()), 2 * engine.slots, seconds))
            for connections in (1, 16, 64):
                rate, p50 = await requests(port, request, connections, seconds)
                note(f"REST, {connections} connections, requests/s", rate)
                note(f"REST, {connections} connections, p50 ms", p50)
    finally:
        process.terminate()
        await process.wait()
    return figures


@click.command()
@click.option("--model", default="googlenet", show_default=True)
@click.option("--photo", type=click.Path(path_type=Path, exists=True), default=PHOTOS / "zebra.jpeg")
@click.option(
    "--artifacts", type=click.Path(path_type=Path), default="artifacts", envvar="TOPFIVE_ARTIFACTS", show_default=True
)
@click.option("--seconds", default=2.0, show_default=True, help="Length of each measurement")
@click.option("--json", "as_json", is_flag=True, help="Print the medians as JSON")
def main(model: str, photo: Path, artifacts: Path, seconds: float, as_json: bool) -> None:
    """Measure an exported model on this machine."""
    figures = asyncio.run(measure(model, photo.read_bytes(), artifacts, seconds))
    if as_json:
        click.echo(json.dumps({name: statistics.median(values) for name, values in figures.items()}, indent=2))
        return
    table = Table(title=f"{model}, {photo.name}, {cpu_quota()} CPUs, medians of {_ROUNDS} rounds of {seconds:g} s")
    for column in ("", "median", "lowest", "highest"):
        table.add_column(column, justify="left" if not column else "right")
    for name, values in figures.items():
        table.add_row(name, *(f"{value:.1f}" for value in (statistics.median(values), min(values), max(values))))
    Console().print(table)


if __name__ == "__main__":
    main()
