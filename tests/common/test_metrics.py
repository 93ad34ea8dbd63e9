"""What the service says about itself: percentiles, names, labels, and gauges read at the moment of asking."""

import pickle

import numpy as np
import pytest

from service.common.metrics import LatencyRecord, Metrics
from service.common.types import ItemOutcome, Latency, SloOutcome, Timing
from tests.exposition import families

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: Metrics) -> Samples:
    """Everything a scrape shows, by name and labels, as Prometheus's own parser reads it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families(metrics)
        for sample in family.samples
    }


def of_model(metrics: Metrics, name: str, **labels: str) -> float | None:
    """That sample of the model tiny; None where there is none."""
    return samples(metrics).get((name, tuple(sorted({"model": "tiny", **labels}.items()))))


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_within_two_per_cent(seed: int) -> None:
    """Against numpy's exact percentiles of the same data: never lower, at most 2 per cent higher."""
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


def test_no_percentiles_before_a_measurement() -> None:
    """A new server says that it does not know, not zero."""
    assert LatencyRecord().snapshot() == Latency(0, None, None, None)


@pytest.mark.parametrize("duration_ms", [0.0, 1e-9, 0.01])
def test_a_duration_too_short_to_matter_is_counted(duration_ms: float) -> None:
    """Zero, as a coarse clock gives it, is the lowest bucket and no error."""
    record = LatencyRecord()
    record.record(duration_ms)
    assert record.snapshot() == Latency(1, 0.01, 0.01, 0.01)


def test_the_record_takes_constant_memory() -> None:
    """Every latency between a microsecond and a quarter of an hour fits in some kilobytes, however many there are."""
    record = LatencyRecord()
    for duration_ms in np.geomspace(0.001, 1e6, 20_000):
        record.record(float(duration_ms))
    full = len(pickle.dumps(record))
    assert full < 16_000
    for duration_ms in np.geomspace(0.0011, 0.9e6, 20_000):
        record.record(float(duration_ms))
    assert record.snapshot().count == 40_000
    assert len(pickle.dumps(record)) < full * 1.1  # counts of more digits


def test_two_services_fit_in_one_process() -> None:
    """Each has a registry of its own: the same model in both, nothing shared, no duplicate names."""
    one, other = Metrics(), Metrics()
    one.for_model("tiny").item_ended(ItemOutcome.OK)
    other.for_model("tiny")
    assert [of_model(metrics, "topfive_items_total", outcome="ok") for metrics in (one, other)] == [1, 0]


def test_answers_are_counted_by_model_and_code() -> None:
    """One count per answer; the time of each step only where there was an answer to time."""
    metrics = Metrics()
    metrics.answered("tiny", "ok", Timing(decode=1.0, queue=2.0, inference=30.0, total=40.0))
    metrics.answered("tiny", "bad_image")
    metrics.answered("tiny", "bad_image")
    assert [of_model(metrics, "topfive_requests_total", code=code) for code in ("ok", "bad_image")] == [1, 2]
    for stage, seconds in {"decode": 0.001, "queue": 0.002, "inference": 0.03, "total": 0.04}.items():
        assert of_model(metrics, "topfive_stage_seconds_count", stage=stage) == 1
        assert of_model(metrics, "topfive_stage_seconds_sum", stage=stage) == pytest.approx(seconds)


def test_every_outcome_of_a_model_is_there_from_the_start() -> None:
    """A counter that has never moved shows as zero, so that a rate over it has a beginning."""
    metrics = Metrics()
    metrics.for_model("tiny")
    assert {of_model(metrics, "topfive_items_total", outcome=outcome) for outcome in ItemOutcome} == {0}


def test_outcomes_under_the_latency_bound_are_counted() -> None:
    """By images, each result of the model on its own."""
    metrics = Metrics()
    metrics.for_model("tiny").slo_ended(SloOutcome.WITHIN, 10)
    metrics.for_model("tiny").slo_ended(SloOutcome.REFUSED, 1)
    assert [of_model(metrics, "topfive_slo_total", result=result) for result in SloOutcome] == [10, 0, 1]


def test_batches_are_measured() -> None:
    """Sizes, waits of each item and run times end in histograms of the model."""
    metrics = Metrics()
    model = metrics.for_model("tiny")
    model.batch_started(3, [0.1, 0.2, 0.3])
    model.batch_ended(0.5)
    assert of_model(metrics, "topfive_batch_size_sum") == 3
    assert of_model(metrics, "topfive_batch_size_count") == 1
    assert of_model(metrics, "topfive_queue_seconds_count") == 3
    assert of_model(metrics, "topfive_queue_seconds_sum") == pytest.approx(0.6)
    assert of_model(metrics, "topfive_run_seconds_sum") == 0.5
    assert [of_model(metrics, "topfive_batch_size_bucket", le=le) for le in ("2.0", "4.0")] == [0, 1]


def test_gauges_are_read_when_asked_for() -> None:
    """A scrape shows the value of that moment, of every model that is loaded at that moment."""
    present: list[tuple[str, dict[str, float]]] = []
    metrics = Metrics()
    metrics.watch(lambda: present)
    assert not [name for name, _ in samples(metrics) if name == "topfive_queue_depth"]
    present += [("tiny", {"queue_depth": 3, "healthy": 1.0}), ("resnet50", {"queue_depth": 5, "healthy": 0.0})]
    assert samples(metrics)["topfive_queue_depth", (("model", "resnet50"),)] == 5
    assert [of_model(metrics, f"topfive_{name}") for name in ("queue_depth", "healthy")] == [3, 1]
    present[0][1]["queue_depth"] = 7
    assert of_model(metrics, "topfive_queue_depth") == 7


def test_every_metric_has_a_type_and_a_meaning() -> None:
    """Names begin with topfive_, seconds are called so, and each family has a help text."""
    metrics = Metrics()
    metrics.for_model("tiny")
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
        "topfive_admitted": "gauge",
    }
    assert all(family.documentation for family in found.values())
