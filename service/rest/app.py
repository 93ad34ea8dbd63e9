"""Puts the REST interface together from its routers."""

import asyncio
from collections.abc import Callable
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp, Receive, Scope, Send

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
    for router in routers:
        app.include_router(router)
    errors.install(app, refused)
    ways = [way for router in routers if isinstance(router, ImageRouter) for way in router.ways]
    return Shortcut(_Documented(app), ways, refused)


class _Documented:
    """ASGI: `app`, whose OpenAPI document is made on a thread when it is first asked for, because that takes long."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        if scope["type"] == "http" and scope["path"] == self._app.openapi_url:
            await asyncio.to_thread(self._app.openapi)
        await self._app(scope, receive, send)
