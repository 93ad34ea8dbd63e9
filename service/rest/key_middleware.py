"""Checks the API keys of REST requests. It is installed only if keys are configured."""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.common import api_keys

_FREE = frozenset(
    {"/", "/livez", "/readyz", "/docs", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready", "/ping"}
)
_FREE_FILES = "/static-offline-docs/"
_METRICS = "/metrics"
_INFERENCE = re.compile(
    r"/(predict|compare|v1/models/[^/]+|predictions/.*|v2/models/[^/]+(/versions/[^/]+)?(/(infer|ready|config))?)"
)
_STATISTICS = "/v2/models/stats"


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
        inference = path != _STATISTICS and _INFERENCE.fullmatch(path)
        wanted = api_keys.Scope.INFERENCE if inference else api_keys.Scope.MANAGEMENT
        client = self._keys.client(Headers(scope=scope), wanted)
        with client.admitted():  # whose share of memory counts by its key, not by the address of a proxy
            await self._app({**scope, "client": (client.key.name, 0)}, receive, send)
