"""A classifier whose models are in other processes: the same questions and answers, over gRPC."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import BadRequest, TopfiveError
from service.common.metrics import UNKNOWN, Metrics
from service.common.request_id import under_way
from service.common.types import DEFAULT_CROPS, ENSEMBLE, ENSEMBLE_PREFIX, TEN_CROPS, Classification
from service.gateway import converters
from service.gateway.retries import Calls
from service.inference.comparison import Comparison
from service.inference.dataplane import ClassifyOptions

_OF_CLASSES = "1 or more, at most the number of the model's classes"
_OF_CROPS = f"{DEFAULT_CROPS} or {TEN_CROPS}"


class RemoteClassifier:
    """`service.inference.classifier.Classifier` by way of `Calls`. Cancelled, it cancels the call.

    A call carries the id of the request it is made for, so that the log of the inference server has the same one.
    """

    def __init__(self, calls: Calls, metrics: Metrics) -> None:
        self._calls = calls
        self._metrics = metrics

    async def classify(self, image: bytes, model: str | None, options: ClassifyOptions) -> Classification:
        """As of the protocol; times are those that the inference server measured. Raises a TopfiveError, counted."""
        asked = model or ""
        with self._counted(_label(asked)):
            request = pb.ClassifyRequest(
                image=image,
                model=asked,
                top_k=_whole("top_k", options.top_k, _OF_CLASSES),
                crops=_whole("crops", options.crops, _OF_CROPS),
                request_id=under_way.get(),
            )
            reply = await self._calls.ask(lambda stub, left_s: stub.Classify(request, timeout=left_s), options.deadline)
            answer = converters.classification(reply)
        self._metrics.answered(_label(answer.model.name, answer.model.name), "ok", answer.timing_ms)
        return answer

    async def compare(self, image: bytes, models: Sequence[str], options: ClassifyOptions) -> Comparison:
        """As of the protocol; each row is counted, as it is by a classifier of its own process."""
        with self._counted(UNKNOWN):
            request = pb.CompareRequest(
                image=image,
                models=models,
                top_k=_whole("top_k", options.top_k, _OF_CLASSES),
                crops=_whole("crops", options.crops, _OF_CROPS),
                request_id=under_way.get(),
            )
            reply = await self._calls.ask(lambda stub, left_s: stub.Compare(request, timeout=left_s), options.deadline)
            comparison = converters.comparison(reply)
        for row in comparison.rows:
            if isinstance(row.result, Classification):
                name = row.result.model.name
                self._metrics.answered(_label(name, name), "ok", row.result.timing_ms)
            elif isinstance(row.result, TopfiveError):
                self._metrics.answered(_label(row.model), row.result.code)
        return comparison

    @contextmanager
    def _counted(self, label: str) -> Iterator[None]:
        try:
            yield
        except TopfiveError as error:
            self._metrics.answered(label, error.code)
            raise
        except asyncio.CancelledError:
            self._metrics.answered(label, "cancelled")
            raise
        except Exception:
            self._metrics.answered(label, "internal")
            raise


def _whole(name: str, value: int | None, right: str) -> int | None:
    """The value of a field of the message, which cannot hold every number. Raises BadRequest with the `right` ones."""
    if value is not None and not 0 <= value < 1 << 32:
        raise BadRequest(f"{name} is {value}; send {right}")
    return value


def _label(name: str, otherwise: str = UNKNOWN) -> str:
    """The model of a metric: one word for all ensembles, and `otherwise` for any other name."""
    return ENSEMBLE if name.startswith(ENSEMBLE_PREFIX) else otherwise
