"""The results of a load test: rates, percentiles, and whether they were stable."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]

STABLE_WINDOWS = 3
"""Number of consecutive windows that must agree."""


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """A number of connections that never pause, or a rate of arrivals per second; the other is None."""

    connections: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.connections} connection{'s' if self.connections != 1 else ''}"


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Milliseconds; None if no request succeeded. A percentile is a latency that occurred, not an interpolated one."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, latencies: Seconds) -> "LatencySummary":
        """Summarise latencies in seconds."""
        if not latencies.size:
            return cls()
        percentiles = np.percentile(latencies, (50, 90, 95, 99), method="inverted_cdf")
        p50, p90, p95, p99 = (float(one) * 1000 for one in percentiles)
        return cls(float(latencies.mean()) * 1000, p50, p90, p95, p99, float(latencies.max()) * 1000)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the measurement; `requests` counts the successful responses that came in it."""

    seconds: float
    requests: int
    requests_per_second: float
    latency_ms: LatencySummary


@dataclass(frozen=True, slots=True)
class SizeGroup:
    """The successful requests whose images are of similar size.

    `name` is the range of sizes in megapixels. `images` is the number of distinct images in that range, `requests` the
    number of requests.
    """

    name: str
    images: int
    requests: int
    latency_ms: LatencySummary


@dataclass(frozen=True, slots=True)
class ServerTiming:
    """Mean milliseconds of the server's steps, as its responses report them (over HTTP in the header Server-Timing).

    `input` is decoding, resizing and cropping. `queue` is waiting for a thread and for a slot. A step that a response
    does not report counts as 0.
    """

    queue: float = 0.0
    input: float = 0.0
    inference: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class LevelResult:
    """The result of one load level, given by `connections` or by `rate`.

    The measurement lasts `seconds`. `requests` counts the successful responses that came in it. `latency_ms` and
    `server_ms` are of the successful requests that started in it, even if they ended later. `errors` counts the failed
    requests that were in flight in it. At a rate, a request starts when it is due. `unanswered` requests were in flight
    when the user stopped the test. `valid` is false if the load generator was the bottleneck, or if no request
    succeeded; `notes` says why. `cpu_s` is the CPU time of the generator. `late_ms` is the 99th percentile of how late
    it sent its requests. Bytes include the headers of HTTP, but of gRPC only the messages.
    """

    connections: int | None
    rate: float | None
    seconds: float
    requests: int
    requests_per_second: float
    latency_ms: LatencySummary
    errors: dict[str, int]
    error_examples: dict[str, str]
    unanswered: int
    stable: bool
    valid: bool
    notes: tuple[str, ...]
    windows: tuple[Window, ...]
    groups: tuple[SizeGroup, ...]
    server_ms: ServerTiming | None
    bytes_sent: int
    bytes_received: int
    reconnects: int
    late_ms: float | None
    cpu_s: float

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def load(self) -> str:
        return f"{self.rate:g}" if self.rate is not None else str(self.connections)


def is_stable(windows: Sequence[Window], tolerance: float) -> bool:
    """Whether the last `STABLE_WINDOWS` windows agree.

    Of the throughput, and of the mean latency, the highest is at most 1 + `tolerance` times the lowest.
    """
    last = windows[-STABLE_WINDOWS:]
    if len(last) < STABLE_WINDOWS or not all(window.requests for window in last):
        return False
    rates = [window.requests_per_second for window in last]
    means = [window.latency_ms.mean or 0.0 for window in last]
    return all(max(values) <= (1 + tolerance) * min(values) for values in (rates, means))
