"""Loads a running server with the generator of `topfive bench`, and reads what the server's cost."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from benchmarks.asking import headers, pack
from benchmarks.server import Running
from loadgen.connection import LoadTestError
from loadgen.http_connection import ServerAddress
from loadgen.images import EncodedImage
from loadgen.measurement import MeasurementPlan
from loadgen.results import LoadLevel
from loadgen.run import LoadTest, run_load_test
from loadgen.target import HttpTarget, http_request


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
    """The load by the generator of `topfive bench`. Raises LoadError with its words where it fails."""
    subject = server.subject

    def request(address: ServerAddress, image: EncodedImage) -> bytes:
        packed = pack(subject, image.data)
        return http_request(address, subject.path, headers(packed), packed.data)

    images = tuple(EncodedImage(f"{number}.jpeg", photo, None, "image/jpeg") for number, photo in enumerate(photos))
    test = LoadTest(
        target=HttpTarget(server.addresses, request, images),
        images=images,
        levels=(LoadLevel(load.connections if load.rate is None else None, load.rate),),
        plan=MeasurementPlan(warm_up_s=0, seconds=load.seconds),
        allow_errors=True,
    )
    before = server.tree.cpu_s()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            (result,) = runner.run(run_load_test(test, asyncio.Event(), lambda _: None, lambda _: None))
    except LoadTestError as error:
        raise LoadError(str(error)) from error
    return point_of(asdict(result), server.tree.cpu_s() - before, len(server.addresses))


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
