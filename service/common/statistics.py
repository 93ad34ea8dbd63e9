"""What each version of a model has done since the start of the server: counters, and their report."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StatisticDuration:
    """How often something happened, and how long it took altogether."""

    count: int
    ns: int


@dataclass(frozen=True, slots=True)
class InferStatistics:
    """Durations by request. Each request of a batch counts the time of the whole batch. There is no cache."""

    success: StatisticDuration
    fail: StatisticDuration
    queue: StatisticDuration
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration
    cache_hit: StatisticDuration
    cache_miss: StatisticDuration


@dataclass(frozen=True, slots=True)
class InferBatchStatistics:
    """Durations of the batches of one size. Images are decoded before they are in a batch."""

    batch_size: int
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Memory that a loaded model holds. `type` is CPU or GPU, `id` the number of the device."""

    type: str
    id: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """The report on one version of a model, with the names and units of the Open Inference Protocol.

    `last_inference` is in milliseconds since the epoch. `inference_count` counts network inputs that were answered:
    images, or crops of them. `execution_count` counts batches.
    """

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: tuple[InferBatchStatistics, ...]
    memory_usage: tuple[MemoryUsage, ...] = ()


@dataclass(slots=True, eq=False)
class VersionCounters:
    """The counters of one version of a model. Times are sums over requests.

    `batches` has for each batch size how many batches ran, and their seconds.
    """

    model: str
    version: int
    inputs: int = 0
    last_s: float = 0.0
    answered: int = 0
    decode_ms: float = 0.0
    queue_ms: float = 0.0
    inference_ms: float = 0.0
    total_ms: float = 0.0
    failed: int = 0
    failed_s: float = 0.0
    batches: dict[int, tuple[int, float]] = field(default_factory=dict)

    def report(self, memory: Sequence[MemoryUsage] = ()) -> ModelStatistics:
        """The report on these counters, with the memory that the model holds now."""
        none = StatisticDuration(0, 0)
        milliseconds = {
            "success": self.total_ms,
            "queue": self.queue_ms,
            "compute_input": self.decode_ms,
            "compute_infer": self.inference_ms,
            "compute_output": max(0.0, self.total_ms - self.queue_ms - self.decode_ms - self.inference_ms),
        }
        durations = {name: StatisticDuration(self.answered, round(ms * 1e6)) for name, ms in milliseconds.items()}
        batches = sorted(self.batches.items())
        return ModelStatistics(
            name=self.model,
            version=str(self.version),
            last_inference=round(self.last_s * 1000),
            inference_count=self.inputs,
            execution_count=sum(count for count, _ in self.batches.values()),
            inference_stats=InferStatistics(
                **durations,
                fail=StatisticDuration(self.failed, round(self.failed_s * 1e9)),
                cache_hit=none,
                cache_miss=none,
            ),
            batch_stats=tuple(
                InferBatchStatistics(
                    size,
                    StatisticDuration(count, 0),
                    StatisticDuration(count, round(seconds * 1e9)),
                    StatisticDuration(count, 0),
                )
                for size, (count, seconds) in batches
            ),
            memory_usage=tuple(memory),
        )
