"""The data plane of a gateway: it answers by calls to inference servers."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from models.labels import Label
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.clock import Clock
from service.common.errors import BadRequest, ShuttingDown, TopfiveError, Unimplemented
from service.common.logs import ANSWERS
from service.common.metrics import UNKNOWN, Metrics
from service.common.model_info import ModelDetail, ModelLayers, ModelList, ModelVersion
from service.common.request_id import current_request_id
from service.common.statistics import ModelStatistics
from service.common.types import DEFAULT_CROPS, ENSEMBLE, ENSEMBLE_PREFIX, TEN_CROPS, Classification, Timing
from service.gateway import converters
from service.gateway.replicas import ReplicaClient
from service.inference.comparison import Comparison
from service.inference.dataplane import ClassifyOptions, Images, Inference

log = logging.getLogger(ANSWERS)

_VERSIONS = "a version of the model, as /models/NAME lists them"


class GatewayDataPlane:
    """Classifies, compares and describes models by calls to any of the replicas.

    A cancelled request cancels its call. A call carries the id of its request, so that the log of the inference server
    has the same id. `timeout_s` bounds requests that have no deadline of their own.
    """

    extensions = ()

    def __init__(self, replicas: ReplicaClient, clock: Clock, metrics: Metrics, timeout_s: float) -> None:
        self._replicas = replicas
        self._clock = clock
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._stopping = False
        self._labels: dict[tuple[str, str], Sequence[Label]] = {}
        """The classes of each version of a model that has answered `infer`."""

    def check_capacity(self, model: str | None, crops: int, version: int | None = None) -> None:
        """A gateway refuses nothing for want of capacity: its replicas do."""

    async def classify(self, image: bytes, model: str | None, options: ClassifyOptions) -> Classification:
        name = model or ""
        with self._counted(_label(name)):
            _check_fields(options)
            request = pb.ClassifyRequest(
                image=image,
                model=name,
                top_k=options.top_k,
                crops=options.crops,
                version=options.version,
                request_id=current_request_id.get(),
            )
            answer = converters.classification(await self._replicas.call("Classify", request, options.deadline))
        self._metrics.answered(_label(answer.model.name, answer.model.name), "ok", answer.timing_ms)
        log.info("%s: %s in %.1f ms", current_request_id.get(), answer.model.name, answer.timing_ms.total)
        return answer

    async def compare(self, image: bytes, models: Sequence[str], options: ClassifyOptions) -> Comparison:
        with self._counted(UNKNOWN):
            _check_fields(options)
            request = pb.CompareRequest(
                image=image,
                models=models,
                top_k=options.top_k,
                crops=options.crops,
                request_id=current_request_id.get(),
            )
            comparison = converters.comparison(await self._replicas.call("Compare", request, options.deadline))
        for row in comparison.rows:
            if isinstance(row.result, Classification):
                name = row.result.model.name
                self._metrics.answered(_label(name, name), "ok", row.result.timing_ms)
            elif isinstance(row.result, TopfiveError):
                self._metrics.answered(_label(row.model), row.result.code)
        return comparison

    async def infer(self, images: Images, model: str, version: int | None, deadline: float) -> Inference:
        started = self._clock.now()
        with self._counted(_label(model)):
            request = converters.infer_request(images, model, version, current_request_id.get())
            reply = await self._replicas.call("ModelInfer", request, deadline)
            key = reply.model_name, reply.model_version
            if key not in self._labels:  # of one image: a server has read it already
                request = converters.labels_request(images[:1], *key)
                self._labels[key] = converters.labels(await self._replicas.call("ModelInfer", request, deadline))
        took = Timing(0.0, 0.0, 0.0, (self._clock.now() - started) * 1000)
        self._metrics.answered(reply.model_name, "ok", took)
        return converters.inference(reply, self._labels[key], took)

    async def statistics(
        self,
        model: str | None,  # noqa: ARG002
        version: int | None,  # noqa: ARG002
    ) -> Sequence[ModelStatistics]:
        """A gateway has none: each replica has its own."""
        raise Unimplemented("a gateway has no statistics of models; ask its inference servers")

    async def models(self) -> ModelList:
        reply = await self._replicas.call("ListModels", pb.ListModelsRequest(), self._deadline())
        return converters.model_list(reply)

    async def model(self, name: str, version: int | None = None) -> ModelDetail:
        _check_field("version", version, _VERSIONS)
        request = pb.GetModelRequest(name=name, version=version)
        return converters.model_detail(await self._replicas.call("GetModel", request, self._deadline()))

    async def layers(self, name: str, version: int | None = None) -> ModelLayers:
        _check_field("version", version, _VERSIONS)
        request = pb.GetLayersRequest(name=name, version=version)
        reply = await self._replicas.call("GetLayers", request, self._deadline())
        return converters.model_layers(reply)

    async def versions(self) -> list[ModelVersion]:
        """The version of each model that answers requests which name none."""
        listed = (await self.models()).models
        return [ModelVersion(one.name, one.version, one.state, "") for one in listed if one.version is not None]

    async def load(self, name: str, version: int | None = None) -> None:
        """Raise BadRequest: each inference server loads its own models."""
        what = name if version is None else f"version {version} of {name}"
        raise BadRequest(f"a gateway loads and unloads no model; ask each inference server behind it for {what}")

    async def unload(self, name: str) -> None:
        """Raise BadRequest."""
        await self.load(name)

    def check_alive(self) -> None:
        """A gateway never fails for good."""

    def check_ready(self) -> None:
        """Raise NotReady while no replica is ready, ShuttingDown once the gateway stops."""
        if self._stopping:
            raise ShuttingDown
        self._replicas.check_ready()

    def stop(self) -> None:
        """Turn readiness off. Calls are still answered."""
        self._stopping = True

    def _deadline(self) -> float:
        return self._clock.now() + self._timeout_s

    @contextmanager
    def _counted(self, label: str) -> Iterator[None]:
        """Count the error that the block ends with."""
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


def _check_fields(options: ClassifyOptions) -> None:
    """Raise BadRequest if a number does not fit its field of the message (unsigned, 32 bits)."""
    _check_field("top_k", options.top_k, "1 or more, at most the number of the model's classes")
    _check_field("crops", options.crops, f"{DEFAULT_CROPS} or {TEN_CROPS}")
    _check_field("version", options.version, _VERSIONS)


def _check_field(name: str, value: int | None, right: str) -> None:
    if value is not None and not 0 <= value < 1 << 32:
        raise BadRequest(f"{name} is {value}; send {right}")


def _label(name: str, otherwise: str = UNKNOWN) -> str:
    """The metric label of a model: `ensemble` for all ensembles, `otherwise` for any other name."""
    return ENSEMBLE if name.startswith(ENSEMBLE_PREFIX) else otherwise
