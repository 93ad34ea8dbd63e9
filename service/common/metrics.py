"""What the service measures about itself: Prometheus metrics, and the latency percentiles that replies carry."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.common.types import ItemOutcome, Latency, SloOutcome, Timing

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_STAGES = ("decode", "queue", "inference", "total")

# Else each counter and histogram has a second series: the time since when it counts.
disable_created_metrics()  # type: ignore[no-untyped-call]

UNKNOWN = "unknown"
"""The model of an answer whose request names none that there is: a client's own words must not become a label."""

Gauges = Callable[[], Sequence[tuple[str | tuple[str, ...], dict[str, float]]]]
"""For each loaded model, device or whatever else its name, or the value of each label, and the present gauges of it."""


class BatchMetrics(Protocol):
    """What a batcher reports; `ModelMetrics` keeps it for Prometheus."""

    def ended(self, outcome: ItemOutcome) -> None:
        """An item ended so."""

    def attained(self, how: SloOutcome, count: int) -> None:
        """So many items were answered, or refused, so under a bound on their time."""

    def dispatched(self, size: int, queued_s: Sequence[float]) -> None:
        """A batch of `size` was started; each of its items had waited so many seconds."""

    def ran(self, run_s: float) -> None:
        """A batch took so many seconds."""


class LatencyRecord:
    """Percentiles over everything recorded, in constant memory: counts in buckets that grow by 2 per cent.

    A percentile is the upper edge of its bucket, so it is at most 2 per cent too high.
    """

    _GROWTH = math.log(1.02)
    _LOWEST_MS = 0.01

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._count = 0
        self._percentiles = [_Percentile(rank) for rank in (0.50, 0.90, 0.99)]

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
        """Count, and the 50th, 90th and 99th percentile in milliseconds."""
        if not self._count:
            return Latency(0, None, None, None)
        p50, p90, p99 = (round(self._LOWEST_MS * math.exp(one.bucket * self._GROWTH), 3) for one in self._percentiles)
        return Latency(self._count, p50, p90, p99)


@dataclass(slots=True)
class _Percentile:
    """The bucket of one percentile, and how many values lie in those below it: it moves a little with each value."""

    rank: float
    bucket: int = 0
    below: int = 0


class Metrics:
    """All metrics of one service, in a registry of its own so that two services fit in one process."""

    def __init__(self) -> None:
        self._counted = counted = CollectorRegistry()
        self._gauges: list[_GaugeCollector] = []
        self._requests = Counter(
            "topfive_requests", "Requests answered, by error code or ok", ["model", "code"], registry=counted
        )
        self._stages = Histogram(
            "topfive_stage_seconds", "Time in each step", ["model", "stage"], buckets=_SECONDS, registry=counted
        )
        self._stages_of: dict[str, list[Histogram]] = {}
        """The histogram of each of `_STAGES` by model: a look-up in `_stages` costs as much as an observation."""
        self._retries = Counter(
            "topfive_retries",
            "Calls sent to an inference server again, by error",
            ["code"],
            registry=counted,
        )
        self.items = Counter(
            "topfive_items", "Images given to the batcher, by outcome", ["model", "outcome"], registry=counted
        )
        self.attained = Counter(
            "topfive_slo",
            "Images under --slo-ms: within it, over it, or refused",
            ["model", "result"],
            registry=counted,
        )
        self.sizes = Histogram(
            "topfive_batch_size", "Images in each executed batch", ["model"], buckets=_SIZES, registry=counted
        )
        self.queued = Histogram(
            "topfive_queue_seconds", "Wait for a slot", ["model"], buckets=_SECONDS, registry=counted
        )
        self.runs = Histogram(
            "topfive_run_seconds",
            "Time of each batch in the engine",
            ["model"],
            buckets=_SECONDS,
            registry=counted,
        )
        self.unloads = Counter(
            "topfive_unloads", "Models unloaded to make room for others", ["model"], registry=counted
        )

    def answered(self, model: str, code: str, timing_ms: Timing | None = None) -> None:
        """Count one answer; `code` is `ok` or an error's."""
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
        """Count one call of a gateway that is sent again because of an error of that code."""
        self._retries.labels(code).inc()

    def watch(self, gauges: Gauges, *labels: str) -> None:
        """Read `gauges` whenever the metrics are asked for; `labels` say what their names are names of: models."""
        self._gauges.append(_GaugeCollector(gauges, labels or ("model",)))

    def for_model(self, model: str) -> "ModelMetrics":
        """The batcher's view of the metrics of one model."""
        return ModelMetrics(self, model)

    def page(self) -> Collector:
        """What a scrape shows: the gauges as they are now, what is counted as it is when it is written."""
        return _Page(self._counted, [family for collector in self._gauges for family in collector.collect()])

    async def scrape(self) -> bytes:
        """The same in the text format of Prometheus, written on a thread."""
        return await asyncio.to_thread(generate_latest, self.page())


class _Page(Collector):
    """What is counted, read when it is written, and gauges that were read before."""

    def __init__(self, counted: Collector, present: Sequence[Metric]) -> None:
        self._counted = counted
        self._present = present

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._counted.collect()
        yield from self._present


class ModelMetrics:
    """`BatchMetrics` of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._items = {outcome: metrics.items.labels(model, outcome.value) for outcome in ItemOutcome}
        self._sizes = metrics.sizes.labels(model)
        self._queued = metrics.queued.labels(model)
        self._runs = metrics.runs.labels(model)
        self._attained = {how: metrics.attained.labels(model, how.value) for how in SloOutcome}

    def ended(self, outcome: ItemOutcome) -> None:
        """An item ended so."""
        self._items[outcome].inc()

    def attained(self, how: SloOutcome, count: int) -> None:
        """So many items were answered, or refused, so under a bound on their time."""
        self._attained[how].inc(count)

    def dispatched(self, size: int, queued_s: Sequence[float]) -> None:
        """A batch was started."""
        self._sizes.observe(size)
        for wait_s in queued_s:
            self._queued.observe(wait_s)

    def ran(self, run_s: float) -> None:
        """A batch took so many seconds."""
        self._runs.observe(run_s)


class _GaugeCollector:
    """Gauges read at the moment of the scrape."""

    def __init__(self, gauges: Gauges, labels: Sequence[str]) -> None:
        self._gauges = gauges
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """One family per gauge, one sample per owner."""
        families: dict[str, GaugeMetricFamily] = {}
        for owner, values in self._gauges():
            for name, value in values.items():
                meaning = f"Present {name.replace('_', ' ')}"
                family = families.setdefault(name, GaugeMetricFamily(f"topfive_{name}", meaning, labels=self._labels))
                family.add_metric([owner] if isinstance(owner, str) else owner, value)
        yield from families.values()
