"""Checks the API keys of gRPC calls. It is installed only where keys are configured."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from proto.topfive.v1 import classifier_pb2 as pb
from service.common.api_keys import ApiKeys, Scope, current_client
from service.common.errors import TopfiveError
from service.common.request_id import begin_request
from service.rpc import v2
from service.rpc.errors import Context, abort

_FREE = "/grpc.health.v1.Health/"
_FREE_METHODS = frozenset(f"/{v2.SERVICE}/{method}" for method in ("ServerLive", "ServerReady", "ServerMetadata"))
_SERVICE = pb.DESCRIPTOR.services_by_name["Classifier"].full_name
_INFERENCE = frozenset(
    (
        *(f"/{_SERVICE}/{method}" for method in ("Classify", "ClassifyStream", "Compare")),
        *(f"/{v2.SERVICE}/{method}" for method in ("ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig")),
    )
)


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Health checks are free, every other call needs a key of its scope. A refused call's message is not read."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], details: Any) -> Any:
        if not (details.method.startswith(_FREE) or details.method in _FREE_METHODS):
            scope = Scope.INFERENCE if details.method in _INFERENCE else Scope.MANAGEMENT
            try:
                current_client.set(self._keys.client(dict(details.invocation_metadata), scope))
            except TopfiveError as error:
                return _refusing(error)
        return await continuation(details)


def _refusing(error: TopfiveError) -> Any:
    """Return a handler that ends a call of any kind with that error."""

    async def refuse(_requests: AsyncIterator[Any], context: Context) -> None:
        await abort(context, error, begin_request(None))

    return grpc.stream_unary_rpc_method_handler(refuse)
