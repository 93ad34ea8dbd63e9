"""What is said of a measurement: rates, percentiles, whether they held still."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

STEADY = 3
"""How many windows in a row must agree."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds; a percentile is a time that occurred, never one between two. None where nothing was answered."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, seconds: Times) -> "Latency":
        """Of these durations."""
        if not seconds.size:
            return cls()
        p50, p90, p95, p99 = (
            float(one) * 1000 for one in np.percentile(seconds, (50, 90, 95, 99), method="inverted_cdf")
        )
        return cls(float(seconds.mean()) * 1000, p50, p90, p95, p99, float(seconds.max()) * 1000)


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of the measurement: the good answers that came in it."""

    seconds: float
    requests: int
    requests_per_second: float
    latency_ms: Latency


@dataclass(frozen=True, slots=True)
class Group:
    """Good answers to images of about the same size."""

    name: str
    images: int
    requests: int
    latency_ms: Latency


@dataclass(frozen=True, slots=True)
class Server:
    """Mean milliseconds that the server says it took for its steps, decoding is `input`; 0 where it does not say."""

    queue: float = 0.0
    input: float = 0.0
    inference: float = 0.0
    output: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """One measured load, by so many connections that never pause, or by a rate of arrivals per second.

    `requests` counts good answers that came within `seconds`; `latency_ms` is of all requests that began within them,
    also of those whose end came later, and `errors` of all that were under way within them. At a rate a request begins
    when it was due. `unanswered` had not ended when the user stopped. `valid` is false where the figures are rather the
    generator's own, or where nothing was answered; `notes` says why. `cpu_s` is the CPU time of the generator itself.
    `reconnects` counts connections that were made anew, `late_ms` by how much the generator sent later than was due at
    the 99th percentile. Bytes are those of HTTP, or of gRPC's messages. `server_ms` is of the same requests as the
    latency, None where answers do not say it.
    """

    connections: int | None
    rate: float | None
    seconds: float
    requests: int
    requests_per_second: float
    latency_ms: Latency
    errors: dict[str, int]
    error_examples: dict[str, str]
    unanswered: int
    stable: bool
    valid: bool
    notes: tuple[str, ...]
    windows: tuple[Window, ...]
    groups: tuple[Group, ...]
    server_ms: Server | None
    bytes_sent: int
    bytes_received: int
    reconnects: int
    late_ms: float | None
    cpu_s: float

    @property
    def failed(self) -> int:
        """How many requests ended as errors."""
        return sum(self.errors.values())


def steady(windows: Sequence[Window], tolerance: float) -> bool:
    """Whether the last `STEADY` windows agree: of throughput and of mean latency the most is at most 1 + `tolerance`
    times the least."""
    last = windows[-STEADY:]
    if len(last) < STEADY or not all(window.requests for window in last):
        return False
    rates = [window.requests_per_second for window in last]
    means = [window.latency_ms.mean or 0.0 for window in last]
    return all(max(values) <= (1 + tolerance) * min(values) for values in (rates, means))
