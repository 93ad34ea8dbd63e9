"""Prometheus metrics of the service, and the latency percentiles that replies contain."""

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.common.types import ItemOutcome, Latency, SloOutcome, Timing

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_STAGES = ("decode", "queue", "inference", "total")

# Otherwise each counter and histogram gets a second series: the time when it was created.
disable_created_metrics()  # type: ignore[no-untyped-call]

UNKNOWN = "unknown"
"""The label of a request for a model that does not exist. A name that a client sent must not become a label."""

Gauges = Callable[[], Sequence[tuple[str | tuple[str, ...], dict[str, float]]]]
"""Returns one entry per labelled object, such as a model or device: (label value or values, {gauge name: value})."""


class BatchMetrics(Protocol):
    """What a batcher reports. `ModelMetrics` records it for Prometheus."""

    def item_ended(self, outcome: ItemOutcome) -> None:
        """An item has ended."""

    def slo_ended(self, outcome: SloOutcome, count: int) -> None:
        """A request of `count` images under a latency bound has ended."""

    def batch_started(self, size: int, queued_s: Sequence[float]) -> None:
        """A batch of `size` items has started; `queued_s` are the seconds that each of them waited."""

    def batch_ended(self, run_s: float) -> None:
        """A batch has ended after `run_s` seconds."""


class LatencyRecord:
    """Latency percentiles since the start, in constant memory: a histogram whose bucket edges grow by 2 percent.

    A percentile is the upper edge of its bucket, so it is at most 2 percent too high.
    """

    _GROWTH = math.log(1.02)
    _LOWEST_MS = 0.01

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._count = 0
        self._percentiles = [_PercentileCursor(rank) for rank in (0.50, 0.90, 0.99)]

    def record(self, duration_ms: float) -> None:
        """Add one duration in milliseconds."""
        bucket = max(0, math.ceil(math.log(max(duration_ms, self._LOWEST_MS) / self._LOWEST_MS) / self._GROWTH))
        counts = self._counts
        if bucket >= len(counts):
            counts.extend([0] * (bucket + 1 - len(counts)))
        counts[bucket] += 1
        self._count += 1
        for one in self._percentiles:
            one.below += bucket < one.bucket
            rank = math.ceil(one.rank * self._count)
            while one.below >= rank:
                one.bucket -= 1
                one.below -= counts[one.bucket]
            while one.below + counts[one.bucket] < rank:
                one.below += counts[one.bucket]
                one.bucket += 1

    def snapshot(self) -> Latency:
        """The count, and the 50th, 90th and 99th percentile in milliseconds."""
        if not self._count:
            return Latency(0, None, None, None)
        p50, p90, p99 = (round(self._LOWEST_MS * math.exp(one.bucket * self._GROWTH), 3) for one in self._percentiles)
        return Latency(self._count, p50, p90, p99)


@dataclass(slots=True)
class _PercentileCursor:
    """The bucket that holds the percentile of `rank` (0 to 1), and how many values are in lower buckets."""

    rank: float
    bucket: int = 0
    below: int = 0


class Metrics:
    """All metrics of one service. Each has its own registry, so that two services fit in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._gauges: list[tuple[Gauges, Sequence[str]]] = []
        self._requests = Counter(
            "topfive_requests", "Requests answered, by error code or ok", ["model", "code"], registry=registry
        )
        self._stages = Histogram(
            "topfive_stage_seconds", "Time in each step", ["model", "stage"], buckets=_SECONDS, registry=registry
        )
        self._stages_of: dict[str, list[Histogram]] = {}
        """The histogram of each step, by model: looking it up with `labels()` costs as much as an observation."""
        self._retries = Counter(
            "topfive_retries", "Calls sent to an inference server again, by error", ["code"], registry=registry
        )
        self.items = Counter(
            "topfive_items", "Images given to the batcher, by outcome", ["model", "outcome"], registry=registry
        )
        self.slo = Counter(
            "topfive_slo",
            "Images under --slo-ms: within it, over it, or refused",
            ["model", "result"],
            registry=registry,
        )
        self.sizes = Histogram(
            "topfive_batch_size", "Images in each executed batch", ["model"], buckets=_SIZES, registry=registry
        )
        self.queued = Histogram(
            "topfive_queue_seconds", "Wait for a slot", ["model"], buckets=_SECONDS, registry=registry
        )
        self.runs = Histogram(
            "topfive_run_seconds", "Time of each batch in the engine", ["model"], buckets=_SECONDS, registry=registry
        )
        self.unloads = Counter(
            "topfive_unloads", "Models unloaded to make room for others", ["model"], registry=registry
        )
        self.failed_loads = Counter(
            "topfive_failed_loads", "Versions of models that could not be loaded", ["model"], registry=registry
        )

    def answered(self, model: str, code: str, timing_ms: Timing | None = None) -> None:
        """Count one answer. `code` is `ok` or the code of an error."""
        self._requests.labels(model, code).inc()
        if timing_ms is not None:
            if model not in self._stages_of:
                self._stages_of[model] = [self._stages.labels(model, stage) for stage in _STAGES]
            decode, queue, inference, total = self._stages_of[model]
            decode.observe(timing_ms.decode / 1000)
            queue.observe(timing_ms.queue / 1000)
            inference.observe(timing_ms.inference / 1000)
            total.observe(timing_ms.total / 1000)

    def retried(self, code: str) -> None:
        """Count one call that a gateway repeats because of the error `code`."""
        self._retries.labels(code).inc()

    def watch(self, gauges: Gauges, *labels: str) -> None:
        """Read `gauges` at each scrape. `labels` are their label names; `model` if none is given."""
        self._gauges.append((gauges, labels or ("model",)))

    def for_model(self, model: str) -> "ModelMetrics":
        """The metrics for the batcher of `model`."""
        return ModelMetrics(self, model)

    def page(self) -> Collector:
        """A collector over all metrics. It reads the gauges now, and counters and histograms when it is written."""
        gauges = [family for read, labels in self._gauges for family in _families(read(), labels)]
        return _Page(self._registry, gauges)

    async def scrape(self) -> bytes:
        """All metrics in the text format of Prometheus, written on a thread."""
        return await asyncio.to_thread(generate_latest, self.page())


class _Page(Collector):
    def __init__(self, registry: Collector, gauges: Sequence[Metric]) -> None:
        self._registry = registry
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        yield from self._gauges


def _families(
    gauges: Sequence[tuple[str | tuple[str, ...], dict[str, float]]], labels: Sequence[str]
) -> Iterable[GaugeMetricFamily]:
    """One metric family for each gauge name, with one sample for each labelled object."""
    families: dict[str, GaugeMetricFamily] = {}
    for owner, values in gauges:
        for name, value in values.items():
            meaning = f"Present {name.replace('_', ' ')}"
            family = families.setdefault(name, GaugeMetricFamily(f"topfive_{name}", meaning, labels=labels))
            family.add_metric([owner] if isinstance(owner, str) else owner, value)
    return families.values()


class ModelMetrics:
    """`BatchMetrics` of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._items = {outcome: metrics.items.labels(model, outcome.value) for outcome in ItemOutcome}
        self._slo = {outcome: metrics.slo.labels(model, outcome.value) for outcome in SloOutcome}
        self._sizes = metrics.sizes.labels(model)
        self._queued = metrics.queued.labels(model)
        self._runs = metrics.runs.labels(model)

    def item_ended(self, outcome: ItemOutcome) -> None:
        self._items[outcome].inc()

    def slo_ended(self, outcome: SloOutcome, count: int) -> None:
        self._slo[outcome].inc(count)

    def batch_started(self, size: int, queued_s: Sequence[float]) -> None:
        self._sizes.observe(size)
        for wait_s in queued_s:
            self._queued.observe(wait_s)

    def batch_ended(self, run_s: float) -> None:
        self._runs.observe(run_s)
