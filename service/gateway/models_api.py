"""What inference servers know of their models, and whether any of them is ready."""

from proto.topfive.v1 import classifier_pb2 as pb
from service.common.clock import Clock
from service.common.errors import NotReady, ShuttingDown
from service.common.model_info import ModelDetail, ModelLayers, ModelList
from service.gateway import converters
from service.gateway.backend import M, Send
from service.gateway.load_balancer import Replicas
from service.gateway.retries import ASK_SERVER, Calls


class RemoteDirectory:
    """`service.inference.model_directory.Directory` of whichever server is asked; `timeout_s` bounds each question."""

    def __init__(self, calls: Calls, replicas: Replicas, clock: Clock, timeout_s: float) -> None:
        self._calls = calls
        self._replicas = replicas
        self._clock = clock
        self._timeout_s = timeout_s
        self._stopping = False

    async def models(self) -> ModelList:
        """All models of one server; their latencies are those that it measured."""
        request = pb.ListModelsRequest()
        reply = await self._ask(lambda stub, left_s: stub.ListModels(request, timeout=left_s))
        return ModelList(reply.default_model, tuple(converters.model_summary(info) for info in reply.models))

    async def model(self, name: str) -> ModelDetail:
        """One of them."""
        request = pb.GetModelRequest(name=name)
        return converters.model_detail(await self._ask(lambda stub, left_s: stub.GetModel(request, timeout=left_s)))

    async def layers(self, name: str) -> ModelLayers:
        """Its layers."""
        request = pb.GetLayersRequest(name=name)
        return converters.model_layers(await self._ask(lambda stub, left_s: stub.GetLayers(request, timeout=left_s)))

    def check_alive(self) -> None:
        """Nothing here can fail for good."""

    def check_ready(self) -> None:
        """Raise NotReady while no server says that it is ready, ShuttingDown once this one stops."""
        if self._stopping:
            raise ShuttingDown
        if not self._replicas.serving:
            hint = "its models are loading, or see its log" if self._replicas.answering else ASK_SERVER
            raise NotReady(f"no inference server at {self._replicas} is ready; {hint}")

    def stop(self) -> None:
        """Be not ready from now on."""
        self._stopping = True

    async def _ask(self, send: Send[M]) -> M:
        return await self._calls.ask(send, self._clock.now() + self._timeout_s)
