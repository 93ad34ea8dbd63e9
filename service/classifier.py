"""The flow from bytes to answer, for every transport: it knows neither HTTP nor protobuf."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from models.catalog import InputSpec
from service import image, recipe
from service.clock import Clock
from service.errors import BadRequest, DeadlineExceeded, TopfiveError
from service.metrics import Metrics
from service.model import LoadedModel
from service.repository import Repository
from service.topk import top_k as best
from service.types import Classification, ImageLimits, Sample, Timing

DEFAULT_TOP_K = 5

X = TypeVar("X")


class Classifier(Protocol):
    """What a transport needs: one method, whether the engine is in this process or behind a network."""

    async def classify(
        self, data: bytes, *, model: str | None, top_k: int = DEFAULT_TOP_K, deadline: float
    ) -> Classification:
        """The `top_k` best classes of the image in `data`; `deadline` in seconds of the service's clock."""


class LocalClassifier:
    """Classifies with the models of a repository, decoding on `threads` threads of its own."""

    def __init__(
        self, repository: Repository, *, limits: ImageLimits, threads: int, clock: Clock, metrics: Metrics
    ) -> None:
        self._repository = repository
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def classify(
        self, data: bytes, *, model: str | None, top_k: int = DEFAULT_TOP_K, deadline: float
    ) -> Classification:
        """The `top_k` best classes of the image in `data`, by `model` or the default one.

        Raises a TopfiveError of `service.errors`; every one is counted here, once.
        """
        label = "unknown"  # a name that nobody knows must not become a label value
        try:
            loaded = await self._within(deadline, lambda: self._repository.get(model or self._repository.default))
            label = loaded.name
            answer = await self._answer(loaded, data, top_k, deadline)
        except TopfiveError as error:
            self._metrics.answered(label, error.code)
            raise
        except asyncio.CancelledError:
            self._metrics.answered(label, "cancelled")
            raise
        except Exception:
            self._metrics.answered(label, "internal")
            raise
        self._metrics.answered(label, "ok", answer.timing_ms)
        return answer

    def close(self) -> None:
        """End the decoding threads; no `classify` may follow."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, loaded: LoadedModel, data: bytes, top_k: int, deadline: float) -> Classification:
        started = self._clock.now()
        manifest = loaded.artifact.manifest
        if not 1 <= top_k <= manifest.classes:
            raise BadRequest(f"top_k is {top_k}; {loaded.name} has classes for 1 to {manifest.classes}")
        image.check_size(len(data), self._limits)
        with loaded.batcher.admit():
            arrived = self._clock.now()
            sample, decode_s = await self._within(deadline, lambda: self._decoded(data, manifest.input))
            waited_s = self._clock.now() - arrived - decode_s  # for a decoding thread
            ran = await loaded.batcher.submit(sample, deadline=deadline)
        predictions = best(ran.value, loaded.artifact.labels, top_k)
        total_ms = (self._clock.now() - started) * 1000
        loaded.latency.record(total_ms)
        return Classification(
            predictions=predictions,
            model=loaded.card,
            engine=loaded.engine_info,
            timing_ms=Timing(
                decode=decode_s * 1000,
                queue=(max(0.0, waited_s) + ran.queue_s) * 1000,
                inference=ran.run_s * 1000,
                total=total_ms,
            ),
            batch_size=ran.batch_size,
            warnings=loaded.warnings,
        )

    async def _decoded(self, data: bytes, spec: InputSpec) -> tuple[Sample, float]:
        """The sample, and the seconds that making it took on its thread."""

        def prepare() -> tuple[Sample, float]:
            began = self._clock.now()
            return recipe.apply(spec, image.decode(data, self._limits)), self._clock.now() - began

        return await asyncio.get_running_loop().run_in_executor(self._decoders, prepare)

    async def _within(self, deadline: float, work: Callable[[], Awaitable[X]]) -> X:
        """The result of `work`, or DeadlineExceeded once the deadline has passed."""
        if deadline <= self._clock.now():
            raise DeadlineExceeded
        try:
            async with asyncio.timeout(None) as scope:
                timer = self._clock.call_at(deadline, lambda: scope.reschedule(0))  # at once
                try:
                    return await work()
                finally:
                    timer.cancel()
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineExceeded from error
