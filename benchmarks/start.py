"""Seconds from the command to the first ready answer, and memory after requests: `python -m benchmarks.start`.

Each start is a process of its own over the same cache folder, so that all but the first find what the first has kept.
CPU seconds are given beside the seconds of the wall: on a shared machine only they last.
"""

import asyncio
import re
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import click

from benchmarks.command import artifacts_option, json_option, model_option, photo_option, print_measurement
from benchmarks.figures import FigureTarget, Measurement, ReportRow
from benchmarks.load import send_requests
from benchmarks.requests import photo_target
from benchmarks.server_under_test import ServerUnderTest, ready_endpoint
from benchmarks.servers import Body, ours

_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of one process in MiB: resident set (VmRSS), its peak (VmHWM), and its anonymous part (RssAnon)."""

    resident: float
    peak: float
    anonymous: float


@dataclass(frozen=True, slots=True)
class StartFigures:
    """Of one model. The first start finds an empty cache; `start_s` and `start_cpu_s` are medians of those after it."""

    model: str
    starts: int
    first_s: float
    start_s: float
    start_cpu_s: float
    requests: int
    at_ready: ProcessMemory
    after_requests: ProcessMemory


def memory_of(pid: int) -> ProcessMemory:
    """The memory of a process by /proc/PID/status, which counts in KiB; psutil gives no peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = {name: int(value) for name, value in re.findall(r"(\w+):\s+(\d+) kB", status)}
    return ProcessMemory(*(kib[name] / 1024 for name in ("VmRSS", "VmHWM", "RssAnon")))


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
                    at_ready = memory_of(server.pid)
                    target = photo_target(spec, server.addresses, photo)
                    asyncio.run(send_requests(target.open_connection, [0] * requests, _CONNECTIONS))
                    after_requests = memory_of(server.pid)
    return StartFigures(
        model=model,
        starts=starts,
        first_s=start_s[0],
        start_s=statistics.median(start_s[1:]),
        start_cpu_s=statistics.median(cpu_s[1:]),
        requests=requests,
        at_ready=at_ready,
        after_requests=after_requests,
    )


def measure(model: str, photo: bytes, artifacts: Path, starts: int, requests: int) -> Measurement:
    """Measure `measure_start`."""
    figures = measure_start(model, artifacts, photo, starts, requests)
    resident = figures.after_requests.resident
    rows = [
        ReportRow("start to ready, compiled before", (figures.start_s,), "s", FigureTarget(at_most=2.0)),
        ReportRow(
            f"resident after {requests} requests at {_CONNECTIONS} connections",
            (resident,),
            "MiB",
            FigureTarget(at_most=350.0),
        ),
    ]
    table = (
        ("first start, empty cache, s", f"{figures.first_s:.2f}"),
        ("start to ready, s", f"{figures.start_s:.2f}"),
        ("CPU until ready, s", f"{figures.start_cpu_s:.2f}"),
        ("resident when ready, MiB", f"{figures.at_ready.resident:.0f}"),
        ("resident after requests, MiB", f"{resident:.0f}"),
        ("of it not of files, MiB", f"{figures.after_requests.anonymous:.0f}"),
        ("peak, MiB", f"{figures.after_requests.peak:.0f}"),
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
