"""Builds the REST application from its endpoints."""

import asyncio
import json
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from service.common.api_keys import ApiKeys
from service.common.metrics import Metrics
from service.common.types import RestAccess
from service.inference.dataplane import DataPlane
from service.rest import endpoints, errors
from service.rest.image_request import ImageReader
from service.rest.key_middleware import KeyMiddleware
from service.rest.proxies import ProxyHeaders
from service.rest.torchserve import TorchServeEndpoints
from service.rest.v1 import V1Endpoints
from service.rest.v2 import V2Endpoints

_DESCRIPTION = """A photo goes in, the five best ImageNet classes come out.

    curl -F image=@cat.jpg 'localhost:8000/predict?model=googlenet'
"""

_PROBLEM = {"$ref": "#/components/schemas/Problem"}


def create_app(
    data_plane: DataPlane, reader: ImageReader, metrics: Metrics, access: RestAccess, keys: ApiKeys | None = None
) -> ASGIApp:
    """The ASGI application, with errors as problem details and the documentation at /docs. `keys` are checked if given.

    The page at /docs contains its scripts and styles, so that it works without internet access.
    """
    fastapi = FastAPIOffline(title="topfive", version=version("topfive"), description=_DESCRIPTION, redoc_url=None)
    documented, direct = endpoints.predictions(data_plane, reader)
    for router in (documented, endpoints.models(data_plane), endpoints.health(data_plane, metrics)):
        fastapi.include_router(router)
    errors.install(fastapi)
    protocols: dict[str, ASGIApp] = {"v1": V1Endpoints(data_plane, reader), "v2": V2Endpoints(data_plane, reader)}
    if access.torchserve:
        protocols["ping"] = protocols["predictions"] = TorchServeEndpoints(data_plane, reader)
    app: ASGIApp = endpoints.DirectEndpoints(
        {**direct, ("GET", "/openapi.json"): _Document(fastapi)}, protocols, fastapi
    )
    if keys is not None:
        app = KeyMiddleware(app, keys, access.public_metrics)
    return _with_access(errors.RequestContext(app), access)


def _with_access(app: ASGIApp, access: RestAccess) -> ASGIApp:
    """Wrap `app` in what restricts or widens the access; what is not asked for costs no request anything."""
    if access.origins:
        app = CORSMiddleware(
            app,
            allow_origins=access.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=(errors.REQUEST_ID, "Server-Timing", "Retry-After"),
        )
    if "*" not in access.hosts:
        app = TrustedHostMiddleware(app, allowed_hosts=access.hosts, www_redirect=False)
    if access.root_path or access.trusted_proxies:
        app = ProxyHeaders(app, access.root_path, access.trusted_proxies)
    return app


class _Document:
    """The OpenAPI document of `app`, made once, on a thread, because that takes long."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._written = b""

    async def __call__(self, request: Request) -> Response:
        self._written = self._written or await asyncio.to_thread(self._write)
        server = json.dumps([{"url": request.scope["root_path"] or "/"}])
        return Response(b'{"servers":%s,%s' % (server.encode(), self._written[1:]), media_type="application/json")

    def _write(self) -> bytes:
        document = self._app.openapi()
        for operation in (one for methods in document["paths"].values() for one in methods.values()):
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    response["content"] = {"application/problem+json": {"schema": _PROBLEM}}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
