"""gRPC client of the load generator: requests are serialised in advance, and replies not parsed."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from loadgen.connection import RECONNECT_PAUSE_S, LoadTestError, Response
from loadgen.images import EncodedImage
from loadgen.tensors import Tensor
from proto.inference.grpc_service_pb2 import ModelInferRequest
from proto.topfive.v1.classifier_pb2 import ClassifyRequest

CLASSIFY = "/topfive.v1.Classifier/Classify"
INFER = "/inference.GRPCInferenceService/ModelInfer"
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # a retry would be measured as part of the first request
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # each channel has its own TCP connection
)


def grpc_address(url: str) -> str:
    """Read `HOST:PORT` or `grpc://HOST:PORT`. Raises LoadTestError."""
    address = url.removeprefix("grpc://").rstrip("/")
    if "/" in address or not address.rpartition(":")[2].isdecimal():
        raise LoadTestError(f"{url} is no gRPC address; give HOST:PORT, such as localhost:50051")
    return address


def grpc_request(image: EncodedImage, model: str = "") -> bytes:
    """The message of topfive.v1.Classifier that classifies an image."""
    return ClassifyRequest(image=image.data, model=model).SerializeToString()


def infer_message(tensor: Tensor, model: str) -> bytes:
    """The message of the Open Inference Protocol with that input."""
    described = ModelInferRequest.InferInputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    request = ModelInferRequest(model_name=model, inputs=[described], raw_input_contents=[tensor.raw])
    return request.SerializeToString()


class GrpcConnection:
    """A channel to a server that has the `method`."""

    def __init__(self, address: str, requests: Sequence[bytes], method: str = CLASSIFY) -> None:
        self._address = address
        self._method = method
        self._requests = requests
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None

    async def send(self, image: int, timeout_s: float) -> Response:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._address, options=_OPTIONS)
            self._call = self._channel.unary_unary(self._method)
        try:
            return Response("", await self._call(self._requests[image], timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                await asyncio.sleep(RECONNECT_PAUSE_S)
            return Response(error.code().name, (error.details() or "").encode())

    async def aclose(self) -> None:
        if self._channel is not None:
            await self._channel.close()
