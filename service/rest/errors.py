"""Converts errors to problem details (RFC 9457), and gives each request an id."""

import asyncio
import json
import logging
import math
from collections.abc import Callable, Iterable

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.common.errors import (
    TABLE,
    Code,
    NotReady,
    OutOfMemory,
    Overloaded,
    ShuttingDown,
    TopfiveError,
    Unauthenticated,
    UnsupportedMediaType,
)
from service.common.request_id import begin_request
from service.rest.image_request import usage
from service.rest.schemas import Problem, RowProblem, to_json

log = logging.getLogger(__name__)

Write = Callable[[Problem], tuple[bytes, str]]
"""Gives the body of an error and its media type."""

REQUEST_ID = "X-Request-Id"
DISCONNECTED = "disconnected"
"""Key of the state of a request: a future that is done once its connection is lost."""

_ID_HEADER = REQUEST_ID.lower().encode()

_RETRY_S = 1
_TORCHSERVE = {
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    429: "ServiceUnavailableException",
    503: "ServiceUnavailableException",
}
_NOT_TOLD = "the server failed; its log has the cause"


class RequestContext:
    """ASGI middleware: gives each request an id, ends it if its client disconnects, and answers its exceptions."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn, which keeps the old scope, leaves out the body
        identity = begin_request(Headers(scope=scope).get(REQUEST_ID))
        state = scope.setdefault("state", {})
        state["request_id"] = identity
        gone, task, started = state.get(DISCONNECTED, asyncio.Future()), asyncio.current_task(), False

        def leave(_gone: asyncio.Future[None]) -> None:
            if task is not None:
                task.cancel()

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"].append((_ID_HEADER, identity.encode()))
            await send(message)

        gone.add_done_callback(leave)
        try:
            await self._app(scope, receive, send_with_id)
        except (Exception, asyncio.CancelledError) as error:
            if gone.done() or isinstance(error, ClientDisconnect):
                log.info("%s: the client left", identity)
            else:
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                write = _WRITERS.get(path[1:].partition("/")[0])
                response = respond(error, identity, write=write)
                if not started:
                    await response(scope, receive, send_with_id)
        finally:
            gone.remove_done_callback(leave)


def install(app: FastAPI) -> None:
    """Register the handlers that turn exceptions of FastAPI's endpoints into problem details."""

    async def failed(request: Request, error: Exception) -> Response:
        return respond(error, request.state.request_id)

    app.add_exception_handler(TopfiveError, failed)
    app.add_exception_handler(HTTPException, _http_error)


def respond(error: BaseException, identity: str, log_level: int | None = None, write: Write | None = None) -> Response:
    """The response to a request that ended in `error`, which is also logged, at the level of its code by default.

    `write` gives the shape of the body; without it that is problem details. Only the server itself cancels a request
    whose client has not left: at the end of its drain limit.
    """
    if isinstance(error, asyncio.CancelledError):
        error = ShuttingDown()
    elif not isinstance(error, TopfiveError):
        error, cause = TopfiveError("unexpected error"), error
        error.__cause__ = cause
    detail = _told(error, identity, log_level)
    row = TABLE[error.code]
    problem = Problem(title=row.title, status=row.http, code=error.code, detail=detail, request_id=identity)
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, (NotReady, OutOfMemory, ShuttingDown)):
        headers["Retry-After"] = str(_RETRY_S)
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="topfive"'
    elif isinstance(error, UnsupportedMediaType):
        headers["Accept-Encoding"] = "identity"  # RFC 9110, 12.5.3
    return _response(problem, headers, write or _problem)


def row_problem(result: object, identity: str) -> RowProblem | None:
    """The problem of one row of a comparison, or None. Details that the client must not see are only logged."""
    if not isinstance(result, Exception):
        return None
    error = result if isinstance(result, TopfiveError) else TopfiveError("unexpected error")
    error.__cause__ = error.__cause__ if error is result else result
    detail = _told(error, identity)
    return RowProblem(code=error.code, detail=detail, retryable=error.translation.retryable)


def _told(error: TopfiveError, identity: str, log_level: int | None = None) -> str:
    """The error detail for the client. The full error is logged."""
    expected = error.code is not Code.INTERNAL
    log.log(
        error.translation.log_level if log_level is None else log_level,
        "%s: %s: %s",
        identity,
        error.code,
        error.detail,
        exc_info=None if expected else error,
    )
    return error.told if expected else _NOT_TOLD


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of routing: no such path, no such method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    headers = dict(error.headers or {})
    docs = f"{request.scope['root_path']}/docs lists what there is"
    hint = usage(request) if headers.get("Allow") == "POST" else docs
    detail = f"{error.detail}: {request.method} {request.url.path}; {hint}"
    problem = Problem(
        title=error.detail,
        status=error.status_code,
        code=code,
        detail=detail,
        request_id=request.state.request_id,
    )
    return _response(problem, headers, _problem)


def _problem(problem: Problem) -> tuple[bytes, str]:
    return to_json(problem), "application/problem+json"


def _protocol_error(problem: Problem) -> tuple[bytes, str]:
    return json.dumps({"error": problem.detail}).encode(), "application/json"


def torchserve_error(status: int, detail: str) -> dict[str, object]:
    """An error as TorchServe writes it."""
    kind = _TORCHSERVE.get(status, "InternalServerException" if status >= 500 else "BadRequestException")
    return {"code": status, "type": kind, "message": detail}


def _torchserve_error(problem: Problem) -> tuple[bytes, str]:
    return json.dumps(torchserve_error(problem.status, problem.detail)).encode(), "application/json"


_WRITERS: dict[str, Write] = {"v1": _protocol_error, "v2": _protocol_error, "predictions": _torchserve_error}
"""The form of an error in each protocol, by the first part of the path."""


def not_allowed(content: object, methods: Iterable[str]) -> Response:
    """The response of these JSON values to a method that is not one of those that the path has."""
    response = json_response(content, 405)
    response.headers["Allow"] = ", ".join(sorted(methods))
    return response


def json_response(content: object, status: int = 200) -> Response:
    """A response of these JSON values."""
    return Response(json.dumps(content, ensure_ascii=False).encode(), status, media_type="application/json")


def _response(problem: Problem, headers: dict[str, str], write: Write) -> Response:
    content, media_type = write(problem)
    return Response(content, problem.status, headers, media_type=media_type)
