"""The short way to the endpoints that take an image: FastAPI documents them, but its routing and its dependencies would
cost more time than all the rest of such a request. Everything else still goes through FastAPI.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.common.errors import TopfiveError
from service.rest.errors import RequestContext, respond, unreadable
from service.rest.image_request import Parameters

Q = TypeVar("Q", bound=BaseModel)

_TIMEOUT = "x-request-timeout"


@dataclass(frozen=True, slots=True)
class Way(Generic[Q]):
    """An endpoint as FastAPI would call it: with the request, the parameters of its query, and X-Request-Timeout."""

    path: str
    parameters: Parameters
    query: type[Q]
    endpoint: Callable[[Request, Q, str | None], Awaitable[Response]]

    async def response(self, request: Request) -> Response:
        """What the endpoint answers. Raises ValidationError where the query cannot be read, and what it raises."""
        query = self.query.model_validate(self.parameters.values(request.query_params))
        return await self.endpoint(request, query, request.headers.get(_TIMEOUT))


class ImageRouter(APIRouter):
    """A router whose `ways` lead to the POST endpoints among its own that are not to go through FastAPI."""

    ways: Sequence[Way[Any]] = ()


class Shortcut:
    """ASGI: `app`, but for the `ways`. `refused` is told the code of each request whose query cannot be read."""

    def __init__(self, app: ASGIApp, ways: Sequence[Way[Any]], refused: Callable[[str], None]) -> None:
        self._app = app
        self._ways = {way.path: way for way in ways}
        self._refused = refused
        self._short = RequestContext(self._answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        short = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._ways
        await (self._short if short else self._app)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await self._ways[scope["path"]].response(request)
        except TopfiveError as error:
            response = respond(request, error)
        except ValidationError as error:
            problem = unreadable([(one["loc"], one["msg"]) for one in error.errors()])
            self._refused(problem.code)
            response = respond(request, problem)
        await response(scope, receive, send)
