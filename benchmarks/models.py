"""Throughput of several models that one server has loaded: requests mixed, and model after model.

Both ways send the same requests to the same server, in interleaved rounds; `python -m benchmarks.models`.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.command import artifacts_option, json_option, photo_option, print_json, print_table
from benchmarks.load import send_requests
from benchmarks.requests import jpeg
from benchmarks.server_under_test import ServerUnderTest, ready_endpoint
from benchmarks.servers import ours
from loadgen.http_connection import HttpConnection, ServerAddress
from loadgen.target import RequestFormat, ServerApi, image_request
from models.artifact.artifact import exported_names
from service.common.cpus import cpu_quota

_WATCH_S = 0.05
_TICK_S = 0.01  # in which the kernel counts CPU time


@dataclass(frozen=True, slots=True)
class ModelsRound:
    """The same requests sent once: requests per second, and CPU seconds of the server for each request."""

    rate: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class ModelsFigures:
    """Medians over the rounds of one number of models; `ratio` is the median of mixed over alone, round by round.

    `cpu_ratio` is the CPU time of alone over that of mixed: 1 where mixing costs nothing. `threads` is how many the
    server has with all models loaded, `runnable` the most that were seen running or waiting for a core at once, and
    `usual` the median of these.
    """

    models: int
    mixed_per_s: float
    alone_per_s: float
    ratio: float
    cpu_ratio: float
    threads: int
    runnable: int
    usual: float


def thread_states(pid: int) -> list[str]:
    """The kernel's letter for each thread of a process: R where it runs or waits for a core, S where it sleeps."""
    found = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            found.append(stat.read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            continue
    return found


async def _watch(pid: int, seen: list[int]) -> None:
    while True:
        seen.append(thread_states(pid).count("R"))
        await asyncio.sleep(_WATCH_S)


@dataclass(frozen=True, slots=True)
class ModelsLoad:
    """Sends requests to a server by the index of the model that answers them."""

    server: ServerUnderTest
    requests: list[bytes]
    connections: int

    async def send(self, parts: Sequence[Sequence[int]]) -> ModelsRound:
        """Send the parts one after the other. Raises LoadError."""
        address = ServerAddress.parse(self.server.addresses[0])
        cpu_s, began = self.server.tree.cpu_s(), time.monotonic()
        for part in parts:
            await send_requests(
                lambda _, on_result: HttpConnection(address, self.requests, on_result), part, self.connections
            )
        took_s, count = time.monotonic() - began, sum(map(len, parts))
        return ModelsRound(count / took_s, max(_TICK_S, self.server.tree.cpu_s() - cpu_s) / count)

    async def send_watched(self, parts: Sequence[Sequence[int]], seen: list[int]) -> ModelsRound:
        """The same, while the runnable threads of the server are counted into `seen`."""
        watching = asyncio.create_task(_watch(self.server.pid, seen))
        try:
            return await self.send(parts)
        finally:
            watching.cancel()


async def measure_server(load: ModelsLoad, rounds: int, each: int) -> ModelsFigures:
    """Send `each` requests to every model of a running server, mixed and model after model, so many times."""
    count, pid = len(load.requests), load.server.pid
    alone_parts = [[model] * each for model in range(count)]
    mixed_parts = [list(range(count)) * each]
    await load.send(alone_parts)  # what is made at a first request
    threads, seen = len(thread_states(pid)), list[int]()
    mixed: list[ModelsRound] = []
    alone: list[ModelsRound] = []
    for _ in range(rounds):
        mixed.append(await load.send_watched(mixed_parts, seen))
        alone.append(await load.send(alone_parts))
    pairs = list(zip(mixed, alone, strict=True))
    return ModelsFigures(
        models=count,
        mixed_per_s=statistics.median(one.rate for one in mixed),
        alone_per_s=statistics.median(one.rate for one in alone),
        ratio=statistics.median(one.rate / other.rate for one, other in pairs),
        cpu_ratio=statistics.median(other.cpu_s / one.cpu_s for one, other in pairs),
        threads=threads,
        runnable=max(seen),
        usual=statistics.median(seen),
    )


def measure_models(
    models: Sequence[str], photo: bytes, artifacts: Path, *, rounds: int, each: int, connections: int
) -> ModelsFigures:
    """Start a server with these models and measure it. Raises ServerError and LoadError."""
    spec = ours("topfive", ",".join(models), artifacts)
    with tempfile.TemporaryDirectory() as folder, ServerUnderTest(spec, Path(folder), ready_endpoint) as server:
        formats = [RequestFormat(ServerApi.TOPFIVE, model) for model in models]
        address = ServerAddress.parse(server.addresses[0])
        requests = [image_request(one, address, jpeg(photo)) for one in formats]
        return asyncio.run(measure_server(ModelsLoad(server, requests, connections), rounds, each))


@click.command()
@click.option("--models", help="Names joined by commas; all that are exported where none is given")
@click.option("--counts", default="1,2,5,10", show_default=True, help="Numbers of models to load at once")
@photo_option
@artifacts_option
@click.option("--rounds", default=3, show_default=True)
@click.option("--each", default=24, show_default=True, help="Requests to each model in a round")
@click.option("--connections", default=16, show_default=True)
@json_option
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
    data = photo.read_bytes()
    figures = [
        measure_models(
            names[:count], data, artifacts, rounds=rounds, each=each * (10 // count or 1), connections=connections
        )
        for count in sorted({min(int(count), len(names)) for count in counts.split(",")})
    ]
    if as_json:
        print_json(figures)
        return
    title = f"{', '.join(names)}; {photo.name}, {cpu_quota()} CPUs, {connections} connections, medians of {rounds}"
    rows = [
        (
            str(one.models),
            *(f"{value:.1f}" for value in (one.mixed_per_s, one.alone_per_s)),
            *(f"{value:.2f}" for value in (one.ratio, one.cpu_ratio)),
            *(f"{value:g}" for value in (one.threads, one.runnable, one.usual)),
        )
        for one in figures
    ]
    heads = ("models", "mixed/s", "one by one/s", "ratio", "CPU ratio", "threads", "most runnable", "usually")
    print_table(title, heads, rows)


if __name__ == "__main__":
    main()
