"""Measurements as JSON and as CSV."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadgen.images import Photo
from loadgen.results import Point

# The columns of Triton's perf_analyzer, as its documentation prints them; in microseconds.
_COLUMNS = (
    "Inferences/Second",
    "Client Send",
    "Network+Server Send/Recv",
    "Server Queue",
    "Server Compute Input",
    "Server Compute Infer",
    "Server Compute Output",
    "Client Recv",
    "p50 latency",
    "p90 latency",
    "p95 latency",
    "p99 latency",
)


@dataclass(frozen=True, slots=True)
class Report:
    """All points of one call, and what was asked."""

    version: str
    api: str
    urls: tuple[str, ...]
    model: str
    photos: tuple[Photo, ...]
    seed: int
    points: tuple[Point, ...]


def as_json(report: Report) -> str:
    """One object; `points` has a row for each load, as `figures.Point` documents them, nulls where nothing is known."""
    return json.dumps({**_heading(report), "points": [asdict(point) for point in report.points]}, indent=2) + "\n"


def _heading(report: Report) -> dict[str, Any]:
    images = [
        {"name": photo.name, "bytes": len(photo.data), "size": photo.size, "group": photo.group}
        for photo in report.photos
    ]
    return {
        "topfive": report.version,
        "api": report.api,
        "urls": list(report.urls),
        "model": report.model,
        "images": images,
        "seed": report.seed,
    }


def as_csv(points: Sequence[Point]) -> str:
    """A row for each point under perf_analyzer's columns, by rising throughput as there.

    A measured time is split as far as the server says: decoding counts as its input. Sending and receiving are not
    told apart from the network, so `Client Send` and `Client Recv` are 0, as are the server's columns where it says
    nothing of its steps.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    rated = any(point.rate is not None for point in points)
    writer.writerow(["Request Rate" if rated else "Concurrency", *_COLUMNS])
    for point in sorted(points, key=lambda one: one.requests_per_second):
        server, latency = point.server_ms, point.latency_ms
        steps = (server.queue, server.input, server.inference, server.output) if server else (0.0,) * 4
        elsewhere = max(0.0, (latency.mean or 0.0) - sum(steps))
        writer.writerow(
            [
                f"{point.rate:g}" if point.rate is not None else point.connections,
                f"{point.requests_per_second:.6g}",
                0,
                *(_us(one) for one in (elsewhere, *steps)),
                0,
                *(_us(one or 0.0) for one in (latency.p50, latency.p90, latency.p95, latency.p99)),
            ]
        )
    return file.getvalue()


def _us(milliseconds: float) -> int:
    return round(milliseconds * 1000)
