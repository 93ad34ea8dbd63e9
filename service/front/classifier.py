"""The classifier, the directory and the metrics of a front: what the transports ask, answered by the engine process."""

import asyncio
from collections.abc import Sequence
from typing import Any

from service.common.clock import Clock
from service.common.types import Classification
from service.front.calls import Calls
from service.front.messages import (
    Classify,
    Compare,
    GetLayers,
    GetMetrics,
    GetModel,
    ListModels,
    Question,
    unpacked,
)
from service.inference.classifier import DEFAULT_CROPS
from service.inference.comparison import Comparison
from service.inference.model_directory import ModelList
from service.repository.model_info import LayerFacts, ModelFacts


class FrontClassifier:
    """`service.inference.classifier.Classifier`: the image is decoded here, once the engine process has a place for it.

    Cancelled, it frees that place. The engine process counts every answer.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def classify(
        self,
        data: bytes,
        *,
        model: str | None,
        top_k: int | None = None,
        crops: int = DEFAULT_CROPS,
        deadline: float,
    ) -> Classification:
        """As of the protocol. Raises what `Calls.classify` raises."""
        question = Classify(len(data), model, top_k, crops, deadline)
        answer: Classification = await self._calls.classify(question, data, crops, deadline)
        return answer

    async def compare(
        self,
        data: bytes,
        *,
        models: Sequence[str],
        top_k: int | None = None,
        crops: int = DEFAULT_CROPS,
        deadline: float,
    ) -> Comparison:
        """As of the protocol; the image is decoded once."""
        question = Compare(len(data), tuple(models), top_k, crops, deadline)
        answer: Comparison = await self._calls.classify(question, data, crops, deadline)
        return answer


class FrontDirectory:
    """`service.inference.model_directory.Directory` of the engine process; `timeout_s` bounds each question."""

    def __init__(self, calls: Calls, clock: Clock, timeout_s: float) -> None:
        self._calls = calls
        self._clock = clock
        self._timeout_s = timeout_s

    async def models(self) -> ModelList:
        """All models."""
        known: ModelList = await self._long(ListModels())
        return known

    async def model(self, name: str) -> ModelFacts:
        """One of them."""
        known: ModelFacts = await self._long(GetModel(name))
        return known

    async def layers(self, name: str) -> LayerFacts:
        """Its layers."""
        known: LayerFacts = await self._long(GetLayers(name))
        return known

    def check_alive(self) -> None:
        """Raise what the engine process said last."""
        if (error := self._calls.standing.alive) is not None:
            raise error

    def check_ready(self) -> None:
        """Raise what the engine process said last."""
        if (error := self._calls.standing.ready) is not None:
            raise error

    async def _long(self, question: Question) -> Any:
        """The answer, unpacked on a thread."""
        return await asyncio.to_thread(unpacked, await self._calls.ask(question, self._clock.now() + self._timeout_s))


class FrontMetrics:
    """`RequestMetrics`: all counts are kept in the engine process, so that every front shows all."""

    def __init__(self, calls: Calls, clock: Clock, timeout_s: float) -> None:
        self._calls = calls
        self._clock = clock
        self._timeout_s = timeout_s

    def answered(self, model: str, code: str) -> None:
        """Count a request that no classifier saw."""
        self._calls.count(model, code)

    async def scrape(self) -> bytes:
        """The text format of Prometheus, of the whole service."""
        text: bytes = await self._calls.ask(GetMetrics(), self._clock.now() + self._timeout_s)
        return text
