"""What a scrape shows."""

from collections.abc import Iterable

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.common.metrics import Metrics


def exposition(metrics: Metrics) -> str:
    """The text format of Prometheus."""
    return generate_latest(metrics.page()).decode()


def families(metrics: Metrics) -> Iterable[Metric]:
    """The same, as Prometheus's own parser reads it."""
    return text_string_to_metric_families(exposition(metrics))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample; None where there is none."""
    found = (sample for family in families(metrics) for sample in family.samples if sample.name == name)
    return next((sample.value for sample in found if sample.labels == labels), None)
