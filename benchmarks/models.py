"""Throughput of several models that one server has loaded: requests mixed, and model after model.

Both ways send the same requests to the same server, in interleaved rounds; `python -m benchmarks.models`.
"""

import asyncio
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.throughput import started
from export.gate_images import PHOTOS
from models.artifact.artifact import exported_names
from service.common.cpus import cpu_quota

_LOOK_S = 0.05
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Round:
    """The same requests sent once: requests per second, and seconds of CPU of the server for each."""

    rate: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the rounds of one number of models; `ratio` is the median of mixed over alone, round by round.

    `threads` are those of the server with all models loaded, `runnable` the most seen on a core or waiting for one
    at once, `usual` how many there were in the median look. `cpu_ratio` is alone over mixed: 1 where mixing costs none.
    """

    models: int
    mixed_per_s: float
    alone_per_s: float
    ratio: float
    cpu_ratio: float
    threads: int
    runnable: int
    usual: float


def cpu_s(pid: int) -> float:
    """Seconds of CPU that the process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def states(pid: int) -> list[str]:
    """The kernel's letter for each thread: R where it runs or waits for a core, S where it sleeps."""
    found = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            found.append(stat.read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
    return found


def request(model: str, photo: bytes) -> bytes:
    """A whole HTTP request for one answer."""
    lines = (
        f"POST /predict?model={model} HTTP/1.1",
        "Host: x",
        "Content-Type: image/jpeg",
        f"Content-Length: {len(photo)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + photo


async def send_all(port: int, requests: Iterable[bytes], connections: int) -> None:
    """Send each once, over so many connections that each wait for their answers. Raises RuntimeError at a refusal."""
    left = iter(requests)

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for one in left:
            writer.write(one)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
        writer.close()

    await asyncio.gather(*(connection() for _ in range(connections)))


async def timed(pid: int, port: int, parts: Sequence[Sequence[bytes]], connections: int) -> Round:
    """The parts one after the other."""
    count = sum(map(len, parts))
    cpu, began = cpu_s(pid), time.monotonic()
    for part in parts:
        await send_all(port, part, connections)
    took_s, used_s = time.monotonic() - began, max(_TICK_S, cpu_s(pid) - cpu)  # the kernel counts in ticks
    return Round(count / took_s, used_s / count)


async def watch(pid: int, seen: list[int]) -> None:
    """Note until it is cancelled how many threads are runnable."""
    while True:
        seen.append(states(pid).count("R"))
        await asyncio.sleep(_LOOK_S)


async def measure(
    models: Sequence[str], photo: bytes, artifacts: Path, *, rounds: int, each: int, connections: int
) -> Figures:
    """Serve these models, and send `each` requests to every one of them, in both ways, `rounds` times."""
    parts = [[request(model, photo)] * each for model in models]
    mix = [list(itertools.chain.from_iterable(zip(*parts, strict=True)))]
    process, port = await started(",".join(models), artifacts)
    seen: list[int] = []
    mixed: list[Round] = []
    alone: list[Round] = []
    try:
        await timed(process.pid, port, parts, connections)  # what is made at a first request
        threads = len(states(process.pid))
        for _ in range(rounds):
            watching = asyncio.create_task(watch(process.pid, seen))
            mixed.append(await timed(process.pid, port, mix, connections))
            watching.cancel()
            alone.append(await timed(process.pid, port, parts, connections))
    finally:
        process.terminate()
        await process.wait()
    pairs = list(zip(mixed, alone, strict=True))
    return Figures(
        models=len(models),
        mixed_per_s=statistics.median(one.rate for one in mixed),
        alone_per_s=statistics.median(one.rate for one in alone),
        ratio=statistics.median(one.rate / other.rate for one, other in pairs),
        cpu_ratio=statistics.median(other.cpu_s / one.cpu_s for one, other in pairs),
        threads=threads,
        runnable=max(seen),
        usual=statistics.median(seen),
    )


@click.command()
@click.option("--models", help="Names joined by commas; all that are exported where none is given")
@click.option("--counts", default="1,2,5,10", show_default=True, help="Numbers of models to load at once")
@click.option("--photo", type=click.Path(path_type=Path, exists=True), default=PHOTOS / "zebra.jpeg")
@click.option(
    "--artifacts", type=click.Path(path_type=Path), default="artifacts", envvar="TOPFIVE_ARTIFACTS", show_default=True
)
@click.option("--rounds", default=3, show_default=True)
@click.option("--each", default=24, show_default=True, help="Requests to each model in a round")
@click.option("--connections", default=16, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON")
def main(
    models: str | None,
    counts: str,
    photo: Path,
    artifacts: Path,
    rounds: int,
    each: int,
    connections: int,
    as_json: bool,
) -> None:
    """Measure exported models on this machine, the first 1, 2, 5 and 10 of them."""
    names = models.split(",") if models else sorted(exported_names(artifacts))
    if not names:
        raise click.UsageError(f"nothing is exported in {artifacts}; run: topfive export googlenet")
    wanted = sorted({min(int(count), len(names)) for count in counts.split(",")})
    data = photo.read_bytes()
    figures = [
        asyncio.run(
            measure(
                names[:count], data, artifacts, rounds=rounds, each=each * (10 // count or 1), connections=connections
            )
        )
        for count in wanted
    ]
    if as_json:
        click.echo(json.dumps([asdict(one) for one in figures], indent=2))
        return
    title = f"{', '.join(names)}; {photo.name}, {cpu_quota()} CPUs, {connections} connections, medians of {rounds}"
    table = Table(title=title)
    columns = ("models", "mixed/s", "one by one/s", "ratio", "CPU ratio", "threads", "most runnable", "usually")
    for column in columns:
        table.add_column(column, justify="right")
    for one in figures:
        table.add_row(
            str(one.models),
            *(f"{value:.1f}" for value in (one.mixed_per_s, one.alone_per_s)),
            *(f"{value:.2f}" for value in (one.ratio, one.cpu_ratio)),
            *(f"{value:g}" for value in (one.threads, one.runnable, one.usual)),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
