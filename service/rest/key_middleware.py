"""Checks the API keys of REST requests. It is installed only if keys are configured."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.common import api_keys

_FREE = frozenset({"/", "/livez", "/readyz", "/docs", "/openapi.json"})
_FREE_FILES = "/static-offline-docs/"
_METRICS = "/metrics"
_INFERENCE = frozenset({"/predict", "/compare"})


class KeyMiddleware:
    """ASGI middleware: health checks and the documentation are free, everything else needs a key of its scope.

    It raises Unauthenticated, PermissionDenied and Overloaded.
    """

    def __init__(self, app: ASGIApp, keys: api_keys.ApiKeys, public_metrics: bool) -> None:
        self._app = app
        self._keys = keys
        self._free = _FREE | {_METRICS} if public_metrics else _FREE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path in self._free or path.startswith(_FREE_FILES):
            await self._app(scope, receive, send)
            return
        wanted = api_keys.Scope.INFERENCE if path in _INFERENCE else api_keys.Scope.MANAGEMENT
        client = self._keys.client(Headers(scope=scope), wanted)
        with client.admitted():  # whose share of memory counts by its key, not by the address of a proxy
            await self._app({**scope, "client": (client.key.name, 0)}, receive, send)
