"""Puts the REST interface together from its routers."""

import asyncio
import json
from collections.abc import Callable
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from service.rest import errors
from service.rest.direct import ImageRouter, Shortcut

_DESCRIPTION = """A photo goes in, the five best ImageNet classes come out.

    curl -F image=@cat.jpg 'localhost:8000/predict?model=googlenet'
"""


def create_app(*routers: APIRouter, refused: Callable[[str], None]) -> ASGIApp:
    """The ASGI application of these routers, with errors as problem details and the documentation at /docs.

    `refused` is told the code of each request whose parameters cannot be read, which reaches no router.
    The page at /docs brings its own scripts and styles, so that it works where nothing can be downloaded.
    """
    app = FastAPIOffline(title="topfive", version=version("topfive"), description=_DESCRIPTION, redoc_url=None)
    document = _Document(app)
    assert app.openapi_url is not None, "by default there is one"
    app.router.routes.insert(0, Route(app.openapi_url, document.__call__, include_in_schema=False))
    for router in routers:
        app.include_router(router)
    errors.install(app, refused)
    ways = [way for router in routers if isinstance(router, ImageRouter) for way in router.ways]
    return Shortcut(app, ways, refused)


class _Document:
    """The OpenAPI document of `app`, made and written on a thread once, because both take long."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._written = b""

    async def __call__(self, _request: Request) -> Response:
        """Answer a request for it."""
        self._written = self._written or await asyncio.to_thread(self._write)
        return Response(self._written, media_type="application/json")

    def _write(self) -> bytes:
        return json.dumps(self._app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()
