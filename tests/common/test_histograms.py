"""Histograms that are cheap to observe: they report what those of prometheus_client do."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service.common.histograms import Histograms

BOUNDS = (0.001, 0.5, 1, 10.0)


def lines(registry: CollectorRegistry) -> list[str]:
    """The page, without the times at which series were made, which say nothing about them."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 0.001, 0.3, 0.5, 1.0, 2.0, 10.0, 11.0]))))
def test_as_prometheus_client(values: list[tuple[str, float]]) -> None:
    """The page is that of the package's own histograms for the same values, those on a bound included."""
    own, theirs = CollectorRegistry(), CollectorRegistry()
    cheap = Histograms("seconds", "Time", ["model", "stage"], bounds=BOUNDS, registry=own)
    plain = Histogram("seconds", "Time", ["model", "stage"], buckets=BOUNDS, registry=theirs)
    for model, value in values:
        cheap.labels(model, "x").observe(value)
        plain.labels(model, "x").observe(value)

    assert lines(own) == lines(theirs)


def test_one_series_for_the_same_labels() -> None:
    """Labels in the same order name the same series, which is reported from its first mention on."""
    registry = CollectorRegistry()
    histograms = Histograms("seconds", "Time", ["model"], bounds=BOUNDS, registry=registry)

    assert histograms.labels("a") is histograms.labels("a")
    assert registry.get_sample_value("seconds_count", {"model": "a"}) == 0
    assert registry.get_sample_value("seconds_count", {"model": "b"}) is None
