"""What a scrape of metrics shows."""

from collections.abc import Iterable

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from service.common.metrics import Metrics


def exposition(metrics: Metrics) -> str:
    """The text format of Prometheus."""
    return generate_latest(metrics.page()).decode()


def families(metrics: Metrics) -> Iterable[Metric]:
    """The same, as Prometheus's own parser reads it."""
    return text_string_to_metric_families(exposition(metrics))


def samples(metrics: Metrics, name: str) -> list[Sample]:
    """All samples of that name."""
    return [sample for family in metrics.page().collect() for sample in family.samples if sample.name == name]


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample; None where there is none."""
    return next((sample.value for sample in samples(metrics, name) if sample.labels == labels), None)
