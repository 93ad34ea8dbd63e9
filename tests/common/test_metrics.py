"""Metrics of the service: percentiles of latency, names, labels, and gauges that have the value of the moment."""

import pickle

import numpy as np
import pytest

from service.common.metrics import LatencyRecord, Metrics
from service.common.types import ItemOutcome, Latency, Timing
from tests.exposition import families, value


def of_model(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The sample of the model tiny that a scrape shows; None where there is none."""
    return value(metrics, name, model="tiny", **labels)


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_within_two_per_cent(seed: int) -> None:
    """Percentiles are never lower than the exact ones of the same data, and at most 2 per cent higher."""
    durations_ms = np.random.default_rng(seed).lognormal(mean=seed - 1.0, sigma=1.0, size=5000)
    record = LatencyRecord()
    for duration_ms in durations_ms:
        record.record(float(duration_ms))
    latency = record.snapshot()
    found = np.array([latency.p50, latency.p90, latency.p99])
    exact = np.percentile(durations_ms, [50, 90, 99], method="inverted_cdf")
    assert latency.count == 5000
    assert (found >= exact - 0.0005).all()  # shown to a thousandth of a millisecond
    assert (found <= exact * 1.02 + 0.0005).all()


@pytest.mark.parametrize("duration_ms", [0.0, 1e-9, 0.01])
def test_a_duration_too_short_to_matter_is_counted(duration_ms: float) -> None:
    """A duration of zero, as a coarse clock gives it, counts as 0.01 ms. Before any there are no percentiles."""
    record = LatencyRecord()
    assert record.snapshot() == Latency(0, None, None, None)
    record.record(duration_ms)
    assert record.snapshot() == Latency(1, 0.01, 0.01, 0.01)


def test_the_record_takes_constant_memory() -> None:
    """The record of latencies between a microsecond and a quarter of an hour takes some kilobytes, however many."""
    record = LatencyRecord()
    for duration_ms in np.geomspace(0.001, 1e6, 40_000):
        record.record(float(duration_ms))
    assert record.snapshot().count == 40_000
    assert len(pickle.dumps(record)) < 16_000


def test_steps_are_measured_in_seconds() -> None:
    """Histograms of the model have the time of each step of an answer, in seconds."""
    metrics = Metrics()
    metrics.answered("tiny", "ok", Timing(decode=1.0, queue=2.0, inference=30.0, total=40.0))
    for stage, seconds in {"decode": 0.001, "queue": 0.002, "inference": 0.03, "total": 0.04}.items():
        assert of_model(metrics, "topfive_stage_seconds_sum", stage=stage) == pytest.approx(seconds)


def test_every_outcome_of_a_model_is_there_from_the_start() -> None:
    """A counter that has never moved shows as zero, so that a rate over it has a beginning."""
    metrics = Metrics()
    metrics.for_model("tiny", 1)
    assert {of_model(metrics, "topfive_items_total", outcome=outcome) for outcome in ItemOutcome} == {0}


def test_batches_are_measured() -> None:
    """Histograms of the model have the sizes of batches, the queue delay of each item and the run times."""
    metrics = Metrics()
    model = metrics.for_model("tiny", 1)
    model.batch_started(3, [0.1, 0.2, 0.3])
    model.batch_ended(0.5, 3, False)
    assert of_model(metrics, "topfive_batch_size_sum") == 3
    assert of_model(metrics, "topfive_batch_size_count") == 1
    assert of_model(metrics, "topfive_queue_seconds_count") == 3
    assert of_model(metrics, "topfive_queue_seconds_sum") == pytest.approx(0.6)
    assert of_model(metrics, "topfive_run_seconds_sum") == 0.5
    assert [of_model(metrics, "topfive_batch_size_bucket", le=le) for le in ("2.0", "4.0")] == [0, 1]


def test_gauges_are_read_when_asked_for() -> None:
    """A scrape shows the values of that moment, of every model that is loaded at that moment."""
    present: list[tuple[str, dict[str, float]]] = []
    metrics = Metrics()
    metrics.watch(lambda: present)
    assert of_model(metrics, "topfive_queue_depth") is None
    present += [("resnet50", {"queue_depth": 5, "healthy": 0.0}), ("tiny", {"queue_depth": 3, "healthy": 1.0})]
    assert [of_model(metrics, f"topfive_{name}") for name in ("queue_depth", "healthy")] == [3, 1]
    present[1][1]["queue_depth"] = 7
    assert of_model(metrics, "topfive_queue_depth") == 7


def test_every_metric_has_a_type_and_a_meaning() -> None:
    """Names begin with topfive_, names of times end with seconds, and each family has a type and a help text.

    Triton's names keep no type: that of a counter would change them.
    """
    metrics = Metrics()
    metrics.for_model("tiny", 1)
    metrics.answered("tiny", "ok", Timing(1, 1, 1, 3))
    metrics.retried("shutting_down")
    metrics.watch(lambda: [("tiny", {"admitted": 1.0})])
    found = {family.name: family for family in families(metrics)}
    kinds = {name: family.type for name, family in found.items()}
    assert kinds == {
        "topfive_requests": "counter",
        "topfive_retries": "counter",
        "topfive_items": "counter",
        "topfive_slo": "counter",
        "topfive_stage_seconds": "histogram",
        "topfive_batch_size": "histogram",
        "topfive_queue_seconds": "histogram",
        "topfive_run_seconds": "histogram",
        "topfive_unloads": "counter",
        "topfive_failed_loads": "counter",
        "topfive_admitted": "gauge",
        **{name: "unknown" for name in kinds if name.startswith("nv_inference_")},
    }
    assert all(family.documentation for family in found.values())
