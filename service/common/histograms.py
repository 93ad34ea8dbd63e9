"""Histograms for Prometheus that cost little to observe: plain counts, without locks, for one thread to write."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric


class Series:
    """One histogram: how many values are at most each of `bounds` and above the one before, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Histograms:
    """All histograms of one name, one for each combination of its labels; `bounds` rise."""

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str], *, bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._meaning = meaning
        self._labels = labels
        self._bounds = tuple(map(float, bounds))
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: str) -> Series:
        """The histogram with these values of the labels, in their order; from now on it is reported."""
        if (series := self._series.get(values)) is None:
            assert len(values) == len(self._labels), f"{self._name} has the labels {self._labels}"
            series = self._series[values] = Series(self._bounds)
        return series

    def collect(self) -> Iterator[Metric]:
        """The family, at the moment of the scrape."""
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        for values, series in list(self._series.items()):
            buckets, below = [], 0
            for bound, count in zip((*map(str, self._bounds), "+Inf"), list(series.counts), strict=True):
                below += count
                buckets.append((bound, below))
            family.add_metric(values, buckets, series.total)
        yield family
