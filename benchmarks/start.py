"""Seconds from the command to the first ready answer, and memory after requests: `python -m benchmarks.start`.

Each start is a process of its own over the same cache folder, so that all but the first find what the first has kept.
CPU seconds are given beside the seconds of the wall: on a shared machine only they last.
"""

import asyncio
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import click
import psutil

from benchmarks.command import artifacts_option, json_option, model_option, photo_option, print_measurement
from benchmarks.figures import FigureTarget, Measurement, ReportRow
from benchmarks.load import send_requests
from benchmarks.requests import photo_target
from benchmarks.server_under_test import ServerUnderTest, ready_endpoint
from benchmarks.servers import Body, ours

_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class StartFigures:
    """Of one model. The first start finds an empty cache; `start_s` and `start_cpu_s` are medians of those after it.

    The resident memory of the process is that when it is ready and that after the requests.
    """

    first_s: float
    start_s: float
    start_cpu_s: float
    ready_mib: float
    resident_mib: float


def measure_start(model: str, artifacts: Path, photo: bytes, starts: int, requests: int) -> StartFigures:
    """Start the server once and then `starts` times, and send `requests` to the last one.

    Raises ServerError and LoadTestError.
    """
    start_s: list[float] = []
    cpu_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        spec = replace(ours("topfive", model, artifacts, "--cache", folder), body=Body.RAW)
        for number in range(1 + starts):
            with ServerUnderTest(spec, Path(folder), ready_endpoint) as server:
                cpu_s.append(server.tree.cpu_s())
                start_s.append(server.start_s)
                if number == starts:
                    process = psutil.Process(server.pid)
                    ready = process.memory_info().rss
                    target = photo_target(spec, server.addresses, photo)
                    asyncio.run(send_requests(target.open_connection, [0] * requests, _CONNECTIONS))
                    resident = process.memory_info().rss
    return StartFigures(
        first_s=start_s[0],
        start_s=statistics.median(start_s[1:]),
        start_cpu_s=statistics.median(cpu_s[1:]),
        ready_mib=ready / (1 << 20),
        resident_mib=resident / (1 << 20),
    )


def measure(model: str, photo: bytes, artifacts: Path, starts: int, requests: int) -> Measurement:
    """Measure `measure_start`."""
    figures = measure_start(model, artifacts, photo, starts, requests)
    rows = [
        ReportRow("start to ready", (figures.start_s,), "s", FigureTarget(at_most=2.0)),
        ReportRow(
            f"resident after {requests} requests at {_CONNECTIONS} connections",
            (figures.resident_mib,),
            "MiB",
            FigureTarget(at_most=350.0),
        ),
    ]
    table = (
        ("first start, empty cache, s", f"{figures.first_s:.2f}"),
        ("start to ready, s", f"{figures.start_s:.2f}"),
        ("CPU until ready, s", f"{figures.start_cpu_s:.2f}"),
        ("resident when ready, MiB", f"{figures.ready_mib:.0f}"),
        ("resident after requests, MiB", f"{figures.resident_mib:.0f}"),
    )
    title = f"{model}: median of {starts} starts, {requests} requests over {_CONNECTIONS} connections"
    return Measurement("start", title, ("", ""), table, figures, rows)


@click.command()
@model_option
@photo_option
@artifacts_option
@click.option("--starts", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--requests", type=click.IntRange(min=1), default=200, show_default=True)
@json_option
def main(model: str, photo: Path, artifacts: Path, starts: int, requests: int, as_json: bool) -> None:
    """Measure the start, in seconds, and the memory, in MiB, of an exported model's server."""
    print_measurement(measure(model, photo.read_bytes(), artifacts, starts, requests), as_json=as_json)


if __name__ == "__main__":
    main()
