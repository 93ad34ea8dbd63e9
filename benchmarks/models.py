"""Throughput of several models that one server has loaded: requests mixed, and model after model.

Both ways send the same requests to the same server, in interleaved rounds; `python -m benchmarks.models`.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.command import artifacts_option, json_option, photo_option, print_measurement
from benchmarks.figures import Curve, FigureTarget, Measurement, ReportRow
from benchmarks.load import send_requests
from benchmarks.requests import jpeg
from benchmarks.server_under_test import ServerUnderTest, ready_endpoint
from benchmarks.servers import ours
from loadgen.http_connection import HttpConnection, ServerAddress
from loadgen.target import RequestFormat, ServerApi, image_request
from models.artifact.artifact import exported_names
from service.common.cpus import cpu_quota

_TICK_S = 0.01  # in which the kernel counts CPU time


@dataclass(frozen=True, slots=True)
class ModelsFigures:
    """Medians over the rounds of one number of models; `ratio` is the median of mixed over alone, round by round.

    `cpu_ratio` is the CPU time of alone over that of mixed: 1 where mixing costs nothing. `threads` is how many the
    server has with all models loaded.
    """

    models: int
    mixed_per_s: float
    alone_per_s: float
    ratio: float
    cpu_ratio: float
    threads: int


def measure_models(
    models: Sequence[str], photo: bytes, artifacts: Path, *, rounds: int, each: int, connections: int
) -> ModelsFigures:
    """Start a server with these models, and send `each` requests to every model in a round.

    Raises ServerError and LoadTestError.
    """
    spec = ours("topfive", ",".join(models), artifacts)
    with tempfile.TemporaryDirectory() as folder, ServerUnderTest(spec, Path(folder), ready_endpoint) as server:
        address = ServerAddress.parse(server.addresses[0])
        formats = [RequestFormat(ServerApi.TOPFIVE, model) for model in models]
        requests = [image_request(one, address, jpeg(photo)) for one in formats]

        async def send_all(parts: Sequence[Sequence[int]]) -> None:
            for part in parts:
                await send_requests(
                    lambda _, on_result: HttpConnection(address, requests, on_result), part, connections
                )

        def sent(parts: Sequence[Sequence[int]]) -> tuple[float, float]:
            """Send the parts one after the other; return the seconds, and the CPU seconds of the server."""
            cpu_s, began = server.tree.cpu_s(), time.monotonic()
            asyncio.run(send_all(parts))
            return time.monotonic() - began, max(_TICK_S, server.tree.cpu_s() - cpu_s)

        one_by_one = [[model] * each for model in range(len(models))]
        sent(one_by_one)  # what is made at a first request
        threads = sum(process.num_threads() for process in server.tree.processes())
        pairs = [(sent([[*range(len(models))] * each]), sent(one_by_one)) for _ in range(rounds)]
    count = each * len(models)
    return ModelsFigures(
        models=len(models),
        mixed_per_s=statistics.median(count / mixed_s for (mixed_s, _), _ in pairs),
        alone_per_s=statistics.median(count / alone_s for _, (alone_s, _) in pairs),
        ratio=statistics.median(alone_s / mixed_s for (mixed_s, _), (alone_s, _) in pairs),
        cpu_ratio=statistics.median(alone_cpu_s / mixed_cpu_s for (_, mixed_cpu_s), (_, alone_cpu_s) in pairs),
        threads=threads,
    )


def measure(
    names: Sequence[str],
    counts: Iterable[int],
    photo: bytes,
    artifacts: Path,
    *,
    rounds: int = 3,
    each: int = 24,
    connections: int = 16,
) -> Measurement:
    """Load the first models, so many at once as `counts` say; where they are few, each gets more requests than `each`.

    Raises ServerError and LoadTestError.
    """
    figures = [
        measure_models(
            names[:count], photo, artifacts, rounds=rounds, each=each * (10 // count or 1), connections=connections
        )
        for count in sorted({min(count, len(names)) for count in counts})
    ]
    points = tuple((float(one.models), one.ratio) for one in figures)
    lowest, kept = min(one.ratio for one in figures), FigureTarget(at_least=0.85)
    up = "mixed / one after the other"
    rule = f"lowest of: requests/s of models {up}"
    table = [
        (
            str(one.models),
            *(f"{value:.1f}" for value in (one.mixed_per_s, one.alone_per_s)),
            *(f"{value:.2f}" for value in (one.ratio, one.cpu_ratio)),
            str(one.threads),
        )
        for one in figures
    ]
    return Measurement(
        name="models",
        title=f"{', '.join(names)}; {cpu_quota()} CPUs, {connections} connections, medians of {rounds}",
        heads=("models", "mixed/s", "one by one/s", "ratio", "CPU ratio", "threads"),
        table=table,
        figures=figures,
        rows=[ReportRow(f"{figures[-1].models} models {up}", (figures[-1].ratio,), "", kept)],
        curves=[Curve("models", "throughput over loaded models", "models", up, points, rule, lowest, kept)],
    )


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
    numbers, data = [int(count) for count in counts.split(",")], photo.read_bytes()
    found = measure(names, numbers, data, artifacts, rounds=rounds, each=each, connections=connections)
    print_measurement(found, as_json=as_json)


if __name__ == "__main__":
    main()
