"""Prometheus metrics of the service, and the latency percentiles that replies contain."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.common.errors import TopfiveError
from service.common.statistics import ModelStatistics, VersionCounters
from service.common.types import ItemOutcome, Latency, SloOutcome, Timing

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_STAGES = ("decode", "queue", "inference", "total")

_TRITON_METRICS: dict[str, tuple[str, Callable[[ModelStatistics], float]]] = {
    "request_success": ("Requests answered", lambda one: one.inference_stats.success.count),
    "request_failure": ("Requests that failed", lambda one: one.inference_stats.fail.count),
    "count": ("Network inputs answered", lambda one: one.inference_count),
    "exec_count": ("Batches executed", lambda one: one.execution_count),
    "request_duration_us": ("Time of requests", lambda one: one.inference_stats.success.ns / 1000),
    "queue_duration_us": ("Time of requests in queues", lambda one: one.inference_stats.queue.ns / 1000),
    "compute_input_duration_us": ("Time of decoding", lambda one: one.inference_stats.compute_input.ns / 1000),
    "compute_infer_duration_us": ("Time of batches", lambda one: one.inference_stats.compute_infer.ns / 1000),
    "compute_output_duration_us": ("Time of results", lambda one: one.inference_stats.compute_output.ns / 1000),
}
"""The metrics `nv_inference_*`, for dashboards that were made for Triton."""

_TRITON_GAUGES = {"queue_depth": ("nv_inference_pending_request_count",)}  # further names of the same gauges

# Otherwise each counter and histogram gets a second series: the time when it was created.
disable_created_metrics()  # type: ignore[no-untyped-call]

UNKNOWN = "unknown"
"""The label of a request for a model that does not exist. A name that a client sent must not become a label."""

Gauges = Callable[[], Sequence[tuple[str | tuple[str, ...], dict[str, float]]]]
"""Returns one entry per labelled object, such as a model or device: (label value or values, {gauge name: value})."""


class BatchMetrics(Protocol):
    """What a batcher reports. `ModelMetrics` records it for Prometheus and for statistics."""

    counters: VersionCounters

    def item_ended(self, outcome: ItemOutcome) -> None:
        """An item has ended."""

    def slo_ended(self, outcome: SloOutcome, count: int) -> None:
        """A request of `count` images under a latency bound has ended."""

    def batch_started(self, size: int, queued_s: Sequence[float]) -> None:
        """A batch of `size` items has started; `queued_s` are the seconds that each of them waited."""

    def batch_ended(self, run_s: float, size: int, failed: bool) -> None:
        """A batch of `size` items has ended after `run_s` seconds; `failed`: without a result for any."""


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
        self.versions: dict[tuple[str, int], VersionCounters] = {}
        """The counters of each version of a model that was ever loaded, by its name and number."""
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

    def answered(
        self,
        model: str,
        code: str,
        timing_ms: Timing | None = None,
        versions: Iterable[VersionCounters] = (),
        took_s: float = 0.0,
    ) -> None:
        """Count one answer of these versions after `took_s` seconds. `code` is `ok` or the code of an error."""
        self._requests.labels(model, code).inc()
        for one in versions:
            if timing_ms is None:
                one.failed += 1
                one.failed_s += took_s
            else:
                one.last_s = time.time()
                one.answered += 1
                one.decode_ms += timing_ms.decode
                one.queue_ms += timing_ms.queue
                one.inference_ms += timing_ms.inference
                one.total_ms += timing_ms.total
        if timing_ms is not None:
            if model not in self._stages_of:
                self._stages_of[model] = [self._stages.labels(model, stage) for stage in _STAGES]
            decode, queue, inference, total = self._stages_of[model]
            decode.observe(timing_ms.decode / 1000)
            queue.observe(timing_ms.queue / 1000)
            inference.observe(timing_ms.inference / 1000)
            total.observe(timing_ms.total / 1000)

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Count the TopfiveError that the block ends with, of a request that no model sees."""
        try:
            yield
        except TopfiveError as error:
            self.answered(UNKNOWN, error.code)
            raise

    def retried(self, code: str) -> None:
        """Count one call that a gateway repeats because of the error `code`."""
        self._retries.labels(code).inc()

    def watch(self, gauges: Gauges, *labels: str) -> None:
        """Read `gauges` at each scrape. `labels` are their label names; `model` if none is given."""
        self._gauges.append((gauges, labels or ("model",)))

    def for_model(self, model: str, version: int) -> "ModelMetrics":
        """The metrics for the batcher of that version of `model`."""
        return ModelMetrics(self, self.versions.setdefault((model, version), VersionCounters(model, version)))

    def page(self) -> Collector:
        """A collector over all metrics. It reads the gauges now, and counters and histograms when it is written."""
        gauges = [family for read, labels in self._gauges for family in _families(read(), labels)]
        return _Page(self._registry, [*gauges, *_version_families(self.versions.values())])

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
            for full in (f"topfive_{name}", *_TRITON_GAUGES.get(name, ())):
                family = families.setdefault(full, GaugeMetricFamily(full, meaning, labels=labels))
                family.add_metric([owner] if isinstance(owner, str) else owner, value)
    return families.values()


def _version_families(versions: Iterable[VersionCounters]) -> Iterable[Metric]:
    """The metric families `nv_inference_*`. They have no type: that of a counter would end their names with _total."""
    reports = [one.report() for one in versions]
    for name, (meaning, value) in _TRITON_METRICS.items():
        family = Metric(f"nv_inference_{name}", f"{meaning}, since the start", "unknown")
        for report in reports:
            family.add_sample(family.name, {"model": report.name, "version": report.version}, value(report))
        yield family


class ModelMetrics:
    """`BatchMetrics` of one version of a model."""

    def __init__(self, metrics: Metrics, counters: VersionCounters) -> None:
        self.counters, model = counters, counters.model
        self._items = {outcome: metrics.items.labels(model, outcome.value) for outcome in ItemOutcome}
        self._slo = {outcome: metrics.slo.labels(model, outcome.value) for outcome in SloOutcome}
        self._sizes = metrics.sizes.labels(model)
        self._queued = metrics.queued.labels(model)
        self._runs = metrics.runs.labels(model)

    def item_ended(self, outcome: ItemOutcome) -> None:
        self._items[outcome].inc()
        if outcome is ItemOutcome.OK:
            self.counters.inputs += 1

    def slo_ended(self, outcome: SloOutcome, count: int) -> None:
        self._slo[outcome].inc(count)

    def batch_started(self, size: int, queued_s: Sequence[float]) -> None:
        self._sizes.observe(size)
        for wait_s in queued_s:
            self._queued.observe(wait_s)

    def batch_ended(self, run_s: float, size: int, failed: bool) -> None:
        self._runs.observe(run_s)
        if not failed:
            count, seconds = self.counters.batches.get(size, (0, 0.0))
            self.counters.batches[size] = count + 1, seconds + run_s
