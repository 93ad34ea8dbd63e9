"""Seconds from the command to the first ready answer, and memory after requests: `python -m benchmarks.start`.

Each start is a process of its own over the same cache folder, so that all but the first find what the first has kept.
CPU seconds are given beside the seconds of the wall: on a shared machine only they last.
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from export.gate_images import PHOTOS

_CONNECTIONS = 16
_POLL_S = 0.01
_LIMIT_S = 120.0
_MIB = 1 << 10  # /proc counts in KiB
_READY = http.client.OK


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process in MiB: resident now and at most so far, and of the former what no file is behind."""

    resident: float
    peak: float
    anonymous: float

    @classmethod
    def of(cls, pid: int, proc: Path = Path("/proc")) -> "Memory":
        """That of a process now, by the kernel's VmRSS, VmHWM and RssAnon."""
        lines = (proc / str(pid) / "status").read_text().splitlines()
        values = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
        resident, peak, anonymous = (int(values[name][0]) / _MIB for name in ("VmRSS", "VmHWM", "RssAnon"))
        return cls(resident, peak, anonymous)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one model. The first start finds an empty cache; `start_s` and `start_cpu_s` are medians of those after it."""

    model: str
    starts: int
    first_s: float
    start_s: float
    start_cpu_s: float
    requests: int
    at_ready: Memory
    after_requests: Memory


@dataclass(frozen=True, slots=True)
class Started:
    """A ready server: the seconds and the CPU seconds that it took to be so."""

    pid: int
    port: int
    ready_s: float
    cpu_s: float


def cpu_seconds(pid: int, proc: Path = Path("/proc")) -> float:
    """CPU time of all threads of a process so far."""
    fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(model: str, artifacts: Path, cache: Path) -> Iterator[Started]:
    """A server of one model on free ports, ready; ended with the block. Raises RuntimeError where it does not start."""
    topfive = Path(sys.executable).with_name("topfive")
    options = {"--models": model, "--artifacts": artifacts, "--cache": cache, "--port": 0, "--grpc-port": 0}
    command = [str(topfive), "serve", *(str(part) for option in options.items() for part in option)]
    with tempfile.TemporaryFile("w+") as log:
        began = time.monotonic()
        process = subprocess.Popen(command, stderr=log)
        try:
            while not (port := _port(log.fileno())):
                _still_starting(process, began, log.fileno())
            while not _ready(port):
                _still_starting(process, began, log.fileno())
            yield Started(process.pid, port, time.monotonic() - began, cpu_seconds(process.pid))
        finally:
            process.terminate()
            process.wait()


def _log(descriptor: int) -> str:
    return os.pread(descriptor, 1 << 20, 0).decode(errors="replace")


def _port(log: int) -> int:
    """That of REST as the log says it, 0 before it does."""
    _, said, rest = _log(log).partition("REST on http://")
    return int(rest.partition(",")[0].rpartition(":")[2]) if said and "," in rest else 0


def _still_starting(process: "subprocess.Popen[bytes]", began: float, log: int) -> None:
    if process.poll() is not None or time.monotonic() - began > _LIMIT_S:
        raise RuntimeError(f"the server did not start:\n{_log(log)}")
    time.sleep(_POLL_S)


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == _READY
    except OSError:
        return False
    finally:
        connection.close()


def ask(port: int, photo: bytes, requests: int) -> None:
    """So many requests over 16 keep-alive connections. Raises RuntimeError where one is refused."""

    def connection(share: int) -> None:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=_LIMIT_S)
        for _ in range(share):
            link.request("POST", "/predict", photo, {"Content-Type": "image/jpeg"})
            response = link.getresponse()
            body = response.read()
            if response.status != _READY:
                raise RuntimeError(body.decode(errors="replace"))
        link.close()

    shares = [requests // _CONNECTIONS + (place < requests % _CONNECTIONS) for place in range(_CONNECTIONS)]
    with ThreadPoolExecutor(_CONNECTIONS) as threads:
        list(threads.map(connection, shares))


def measure(model: str, artifacts: Path, photo: bytes, starts: int, requests: int) -> Figures:
    """Start the server `starts` times and once before; give the last one `requests` requests."""
    with tempfile.TemporaryDirectory() as cache:
        with server(model, artifacts, Path(cache)) as first:
            first_s = first.ready_s
        found: list[Started] = []
        for last in range(starts, 0, -1):
            with server(model, artifacts, Path(cache)) as started:
                found.append(started)
                if last == 1:
                    at_ready = Memory.of(started.pid)
                    ask(started.port, photo, requests)
                    after = Memory.of(started.pid)
    return Figures(
        model=model,
        starts=starts,
        first_s=first_s,
        start_s=statistics.median(one.ready_s for one in found),
        start_cpu_s=statistics.median(one.cpu_s for one in found),
        requests=requests,
        at_ready=at_ready,
        after_requests=after,
    )


@click.command()
@click.option("--model", default="googlenet", show_default=True)
@click.option("--photo", type=click.Path(path_type=Path, exists=True), default=PHOTOS / "zebra.jpeg")
@click.option(
    "--artifacts", type=click.Path(path_type=Path), default="artifacts", envvar="TOPFIVE_ARTIFACTS", show_default=True
)
@click.option("--starts", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--requests", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object; seconds and MiB")
def main(model: str, photo: Path, artifacts: Path, starts: int, requests: int, as_json: bool) -> None:
    """Measure the start and the memory of an exported model's server."""
    figures = measure(model, artifacts, photo.read_bytes(), starts, requests)
    if as_json:
        click.echo(json.dumps(asdict(figures), indent=2))
        return
    table = Table(title=f"{model}: median of {starts} starts, {requests} requests over {_CONNECTIONS} connections")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        ("first start, empty cache, s", f"{figures.first_s:.2f}"),
        ("start to ready, s", f"{figures.start_s:.2f}"),
        ("CPU until ready, s", f"{figures.start_cpu_s:.2f}"),
        ("resident when ready, MiB", f"{figures.at_ready.resident:.0f}"),
        ("resident after requests, MiB", f"{figures.after_requests.resident:.0f}"),
        ("of it not of files, MiB", f"{figures.after_requests.anonymous:.0f}"),
        ("peak, MiB", f"{figures.after_requests.peak:.0f}"),
    ):
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    main()
