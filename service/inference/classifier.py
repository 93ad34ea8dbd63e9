"""The flow from bytes to answer, for every transport: it knows neither HTTP nor protobuf."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from service.common.clock import Clock, timeout_at
from service.common.errors import BadImage, BadRequest, NotReady, TooLarge, TopfiveError
from service.common.metrics import UNKNOWN, Metrics
from service.common.tasks import together
from service.common.types import ENSEMBLE, Classification, Timing
from service.inference.comparison import Comparison, ComparisonTiming, Row, compared
from service.inference.ensemble import Panel, Panels, is_ensemble, mean, spelt
from service.inference.topk import top_k as best
from service.preprocessing.preprocessor import Decoder, Photo, joined
from service.preprocessing.transforms import TEN_CROPS
from service.repository.repository import Repository

DEFAULT_CROPS = 1
MAX_ROWS = 64


class Classifier(Protocol):
    """What a transport needs: two methods, whether the engine is in this process or behind a network."""

    async def classify(
        self,
        data: bytes,
        *,
        model: str | None,
        top_k: int | None = None,
        crops: int = DEFAULT_CROPS,
        deadline: float,
    ) -> Classification:
        """The `top_k` best classes of the image in `data`, None for five or as many as there are.

        `deadline` is in seconds of the service's clock.
        """

    async def compare(
        self,
        data: bytes,
        *,
        models: Sequence[str],
        top_k: int | None = None,
        crops: int = DEFAULT_CROPS,
        deadline: float,
    ) -> Comparison:
        """The same of each of `models`, side by side; of all loaded ones where none is named."""


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of every model."""

    top_k: int | None
    crops: int
    deadline: float

    def check(self) -> None:
        """Raise BadRequest where no model could answer it."""
        if self.crops not in (DEFAULT_CROPS, TEN_CROPS):
            raise BadRequest(f"crops is {self.crops}; send {DEFAULT_CROPS} or {TEN_CROPS}")
        if self.top_k is not None and self.top_k < 1:
            raise BadRequest(f"top_k is {self.top_k}; send 1 or more")


class LocalClassifier:
    """Classifies images with the models of a repository in this process."""

    def __init__(self, repository: Repository, decoder: Decoder, *, clock: Clock, metrics: Metrics) -> None:
        self._repository = repository
        self._decoder = decoder
        self._clock = clock
        self._metrics = metrics
        self._panels = Panels(repository)

    async def classify(
        self,
        data: bytes,
        *,
        model: str | None,
        top_k: int | None = None,
        crops: int = DEFAULT_CROPS,
        deadline: float,
    ) -> Classification:
        """The `top_k` best classes of the image in `data`, by `model` (or an ensemble) or the default one.

        With ten `crops` the probabilities are averaged over those of `recipe.ten_crops`. Raises a TopfiveError of
        `service.common.errors`; every one is counted here, once.
        """
        asker = model or ""
        with self._decoder.photo(data, crops, [asker]) as photo:
            return await self._counted(photo, asker, _Question(top_k, crops, deadline))

    async def compare(
        self,
        data: bytes,
        *,
        models: Sequence[str],
        top_k: int | None = None,
        crops: int = DEFAULT_CROPS,
        deadline: float,
    ) -> Comparison:
        """What each of `models` (or all loaded ones) says of the image in `data`; the image is decoded once.

        A model that cannot answer has its error in its row. Raises what is wrong with the image or with the question
        as a whole: BadImage, TooLarge, BadRequest, NotReady.
        """
        started = self._clock.now()
        question = _Question(top_k, crops, deadline)
        try:
            question.check()
            names = self._names(models)
        except TopfiveError as error:
            self._metrics.answered(UNKNOWN, error.code)
            raise
        with self._decoder.photo(data, crops, names) as photo:
            rows = await together([self._row(photo, name, question) for name in names])
            for row in rows:
                if isinstance(row.result, (BadImage, TooLarge)):
                    raise row.result
            total_ms = (self._clock.now() - started) * 1000
            return compared(rows, ComparisonTiming(photo.seconds * 1000, total_ms))

    def close(self) -> None:
        """End the decoding threads; no `classify` may follow."""
        self._decoder.close()

    def _names(self, models: Sequence[str]) -> list[str]:
        """The rows of a comparison: each model once, as it was first spelt; a name of nothing names none."""
        named = [spelt(name) for name in models if name.strip()]
        wanted = named or self._repository.loaded
        if not wanted:
            raise NotReady("no model is loaded yet; name the models to compare")
        rows: dict[str, str] = {}
        for name in wanted:
            rows.setdefault(self._panels.canonical(name), name)
        if named and len(rows) > MAX_ROWS:
            raise BadRequest(f"{len(rows)} models are to be compared; name at most {MAX_ROWS}")
        return list(rows.values())

    async def _row(self, photo: Photo, name: str, question: _Question) -> Row:
        try:
            return Row(name, await self._counted(photo, name, question))
        except Exception as error:  # whatever it is, the other models still answer
            return Row(name, error)

    async def _counted(self, photo: Photo, asker: str, question: _Question) -> Classification:
        """The answer of the model that `asker` names, counted however it ends."""
        label = ENSEMBLE if is_ensemble(asker) else UNKNOWN
        try:
            async with timeout_at(question.deadline, self._clock):
                with ExitStack() as holds:
                    panel = await self._panels.get(asker or self._repository.default, holds)
                    label = panel.metrics_label
                    answer = await self._answer(panel, photo, asker, question)
        except TopfiveError as error:
            self._metrics.answered(label, error.code)
            raise
        except asyncio.CancelledError:
            self._metrics.answered(label, "cancelled")
            raise
        except Exception:
            self._metrics.answered(label, "internal")
            raise
        finally:
            photo.leave(asker)
        self._metrics.answered(label, "ok", answer.timing_ms)
        return answer

    async def _answer(self, panel: Panel, photo: Photo, asker: str, question: _Question) -> Classification:
        started = self._clock.now()
        top_k = panel.top_k(question.top_k)
        question.check()
        photo.check_size()
        specs = [member.artifact.manifest.input for member in panel.members]
        with panel.admitted(question.crops) as places:
            arrived = self._clock.now()
            prepared = await photo.samples(asker, specs)
            decode_s = max(one.took_s for one in prepared)
            waited_s = self._clock.now() - arrived - decode_s  # for a decoding thread
            runs = await together(
                [
                    member.batcher.submit(one.samples, deadline=question.deadline, place=place)
                    for member, one, place in zip(panel.members, prepared, places, strict=True)
                ]
            )
        ran = [one for run in runs for one in run]
        predictions = best(mean([one.value for one in ran]), panel.labels, top_k)
        queue_s = min(one.queue_s for one in ran)
        ended_s = max(one.queue_s + one.run_s for one in ran)  # all were submitted at once
        total_ms = (self._clock.now() - started) * 1000
        panel.latency.record(total_ms)
        return Classification(
            predictions=predictions,
            model=panel.card,
            engine=panel.engine,
            preprocessing=joined(prepared),
            timing_ms=Timing(
                decode=decode_s * 1000,
                queue=(max(0.0, waited_s) + queue_s) * 1000,
                inference=(ended_s - queue_s) * 1000,
                total=total_ms,
            ),
            batch_size=max(one.batch_size for one in ran),
            warnings=panel.warnings,
            members=panel.member_cards,
        )
