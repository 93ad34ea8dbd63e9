"""Loads a running server by `topfive bench`, which runs as a process of its own, and reads what the server's cost."""

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.asking import pack
from benchmarks.server import Running
from benchmarks.subjects import Body, topfive

_PATIENCE_S = 60


class LoadError(Exception):
    """The generator could not measure, or measured nothing that counts."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many connections that never pause, or `rate` arrivals per second on as many as needed."""

    seconds: float
    connections: int = 16
    rate: float | None = None

    def __str__(self) -> str:
        """In the words of the report."""
        return f"{self.rate:.0f} requests/s" if self.rate is not None else f"{self.connections} connections"


@dataclass(frozen=True, slots=True)
class Steps:
    """Mean milliseconds of a request: for the client, in the server as it says itself, and there by its steps."""

    client: float
    server: float
    decode: float
    queue: float
    inference: float

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Steps | None":
        """Of a point of the generator's file; None where the server did not say."""
        if not (said := row["server_ms"]):
            return None
        return cls(row["latency_ms"]["mean"], said["total"], said["input"], said["queue"], said["inference"])


@dataclass(frozen=True, slots=True)
class Point:
    """What came of a load: milliseconds, failed requests, and CPU milliseconds of the server for each request.

    `note` says why the figures are rather the generator's, `steps` where the time went.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    errors: int
    note: str = ""
    steps: Steps | None = None


Drive = Callable[[Running, Sequence[bytes], Load], Point]
"""Loads a server with such photos."""


def drive(server: Running, photos: Sequence[bytes], load: Load) -> Point:
    """The load by `topfive bench`. Raises LoadError with its words where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [topfive(), "bench", *server.addresses, "--warm-up", "0", "--seconds", str(load.seconds)]
        command += ["--allow-errors", "--json", str(result), *_bodies(server, photos, Path(folder))]
        if load.rate is None:
            command += ["--connections", str(load.connections)]
        else:
            command += ["--rate", str(load.rate)]
        before = server.tree.cpu_s()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=load.seconds + _PATIENCE_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LoadError(f"topfive bench did not end within {_PATIENCE_S} s after its time") from error
        spent_s = server.tree.cpu_s() - before
        if not result.exists():
            words = " ".join((done.stderr or done.stdout)[-400:].split())
            raise LoadError(f"topfive bench ended with status {done.returncode}: {words}")
        return point_of(json.loads(result.read_text(encoding="utf-8"))["points"][0], spent_s, len(server.addresses))


def _bodies(server: Running, photos: Sequence[bytes], folder: Path) -> list[str]:
    """Options for the bodies, which are packed here, so that every check and every load sends the same."""
    subject = server.subject
    options: list[str] = []
    for number, photo in enumerate(photos):
        packed = pack(subject, photo)
        path = folder / f"{number}.jpeg"
        path.write_bytes(photo if subject.body is Body.V2_BINARY else packed.data)
        options += ["--image", str(path)]
        kind = packed.content_type
    if subject.body is Body.V2_BINARY:
        return [*options, "--api", "v2", "--model", "model"]
    return [*options, "--api", "raw", "--path", subject.path, "--content-type", kind]


def point_of(row: dict[str, Any], spent_s: float, checks: int) -> Point:
    """A point of the generator's file, and CPU seconds of the server; it had answered `checks` requests before.

    Raises LoadError where no request was answered well.
    """
    good, failed = sum(group["requests"] for group in row["groups"]), sum(row["errors"].values())
    if not good:
        raise LoadError(f"no request was answered well: {row['error_examples'] or row['errors']}")
    return Point(
        per_second=row["requests_per_second"],
        p50_ms=row["latency_ms"]["p50"],
        p99_ms=row["latency_ms"]["p99"],
        cpu_ms=1000 * spent_s / (good + failed + checks),
        errors=failed,
        note="" if row["valid"] else "; ".join(row["notes"]),
        steps=Steps.of(row),
    )
