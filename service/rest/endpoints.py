"""The REST endpoints: each reads its request, calls the data plane, and writes the reply."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.common.errors import Overloaded, TopfiveError
from service.common.metrics import Metrics
from service.common.model_info import ModelDetail, ModelLayers, ModelList
from service.common.types import copy_as
from service.inference.dataplane import DataPlane
from service.rest.errors import respond, row_problem
from service.rest.image_request import BODY, ImageReader, drop_small_body
from service.rest.schemas import (
    About,
    CompareQuery,
    CompareReply,
    Health,
    PredictQuery,
    PredictReply,
    Problem,
    Version,
    compare_reply,
    to_json,
)

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "No image, or a parameter out of range",
        401: "No API key, or one that is not known; only with --api-keys-file",
        403: "The API key does not have the scope; only with --api-keys-file",
        404: "No such model, or not exported",
        413: "Too many bytes or pixels",
        415: "The body has a Content-Encoding",
        422: "Not an image, or a damaged one",
        429: "At capacity; see Retry-After",
        500: "The server failed",
        503: "Not ready, shutting down, or out of memory",
        504: "No answer before the deadline",
    }.items()
}


Endpoints = dict[tuple[str, str], Callable[[Request], Awaitable[Response]]]
"""Endpoints by method and path."""

_Seconds = Annotated[float, Field(gt=0)]
_Timeout = Annotated[_Seconds | SkipJsonSchema[None], Header(description="Seconds to wait for the answer")]


class DirectEndpoints:
    """ASGI application: `endpoints` answer their methods and paths, `app` everything else.

    But `protocols` answer the paths that begin with their names. The layers of FastAPI would cost more CPU time than
    all the rest of a request with an image.
    """

    def __init__(self, endpoints: Endpoints, protocols: Mapping[str, ASGIApp], app: ASGIApp) -> None:
        self._endpoints = endpoints
        self._protocols = protocols
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"].removeprefix(scope["root_path"])
        endpoint = self._endpoints.get((scope.get("method", ""), path))
        if endpoint is None:
            await self._protocols.get(path[1:].partition("/")[0], self._app)(scope, receive, send)
            return
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)


def predictions(data_plane: DataPlane, reader: ImageReader) -> tuple[APIRouter, Endpoints]:
    """`POST /predict` and `POST /compare`: a router that documents them, and the endpoints for `DirectEndpoints`."""
    router = APIRouter(tags=["predict"])

    async def predict(request: Request) -> Response:
        query = reader.query(request, PredictQuery)
        try:
            data_plane.check_capacity(query.model, query.crops, query.version)
        except Overloaded:
            await drop_small_body(request)
            raise
        with reader.share(request) as take:
            sent = await reader.read(request, query, take, query.version)
            answer = await data_plane.classify(sent.image, query.model, sent.options)
        return _Reply(copy_as(PredictReply, answer, request_id=request.state.request_id))

    async def compare(request: Request) -> Response:
        query = reader.query(request, CompareQuery)
        with reader.share(request) as take:
            sent = await reader.read(request, query, take)
            names = [name.strip() for value in query.model or () for name in value.split(",") if name.strip()]
            comparison = await data_plane.compare(sent.image, names, sent.options)
        identity: str = request.state.request_id
        problems = [row_problem(row.result, identity) for row in comparison.rows]
        return _Reply(compare_reply(identity, comparison, problems))

    @router.post("/predict", name="predict", response_model=PredictReply, responses=_PROBLEMS, openapi_extra=BODY)
    async def documented_predict(
        request: Request, query: Annotated[PredictQuery, Query()], x_request_timeout: _Timeout = None
    ) -> Response:
        """Classify one image, sent as the multipart field `image` or as the raw body."""
        return await predict(request)

    @router.post("/compare", name="compare", response_model=CompareReply, responses=_PROBLEMS, openapi_extra=BODY)
    async def documented_compare(
        request: Request, query: Annotated[CompareQuery, Query()], x_request_timeout: _Timeout = None
    ) -> Response:
        """Classify one image with many models at once. The row of a model that cannot answer has its error."""
        return await compare(request)

    return router, {("POST", "/predict"): predict, ("POST", "/compare"): compare}


def models(data_plane: DataPlane) -> APIRouter:
    """`GET /models`, `GET /models/{name}` and `GET /models/{name}/layers`."""
    router = APIRouter(tags=["models"])

    @router.get("/models", response_model=ModelList)
    async def list_models() -> Response:
        """All models that the server knows: loaded, exported, or not exported yet."""
        return await _written(await data_plane.models())

    @router.get("/models/{name}", response_model=ModelDetail, responses={404: _PROBLEMS[404]})
    async def get_model(name: str, version: Annotated[Version, Query()] = None) -> Response:
        """One model, with its input recipe, its weights and the parity of each engine with PyTorch or its file."""
        return await _written(await data_plane.model(name, version))

    @router.get(
        "/models/{name}/layers", response_model=ModelLayers, responses={404: _PROBLEMS[404], 503: _PROBLEMS[503]}
    )
    async def get_layers(name: str, version: Annotated[Version, Query()] = None) -> Response:
        """The layers of an exported model, loaded or not: maps, parameters, operations, receptive fields."""
        return await _written(await data_plane.layers(name, version))

    return router


def health(data_plane: DataPlane, metrics: Metrics) -> APIRouter:
    """`GET /`, `GET /livez`, `GET /readyz` and `GET /metrics`."""
    router = APIRouter(tags=["health"])

    @router.get("/")
    async def about(request: Request) -> About:
        """What answers here, and where its documentation is."""
        prefix = request.scope["root_path"]
        return About("topfive", version("topfive"), f"{prefix}/docs", f"{prefix}/openapi.json")

    @router.get("/livez", responses={503: _PROBLEMS[503]})
    async def livez() -> Health:
        """Whether the process works; if not, restart it."""
        data_plane.check_alive()
        return Health(status="alive")

    logged = ""

    @router.get("/readyz", response_model=Health, responses={503: _PROBLEMS[503]})
    async def readyz(request: Request) -> Response:
        """Whether every configured model is loaded, warm and answering; of a gateway, whether a server is ready."""
        nonlocal logged
        try:
            data_plane.check_ready()
        except TopfiveError as error:  # probes ask every few seconds: only another reason is news for the log
            level, logged = logging.DEBUG if error.detail == logged else None, error.detail
            return respond(error, request.state.request_id, level)
        logged = ""
        return Response(to_json(Health(status="ready")), media_type="application/json")

    @router.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(await metrics.scrape(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def _written(reply: object) -> Response:
    """The response with a long reply, serialized on a thread."""
    return Response(await asyncio.to_thread(to_json, reply), media_type="application/json")


class _Reply(Response):
    """The response with a reply, and a Server-Timing header for the network panel of browsers."""

    def __init__(self, reply: PredictReply | CompareReply) -> None:
        # without the base class, which would encode the same header names for each request
        self.status_code, self.background, self.body = HTTPStatus.OK, None, to_json(reply)
        names = type(reply.timing_ms).__match_args__
        times = ", ".join([f"{name};dur={getattr(reply.timing_ms, name):.3f}" for name in names])
        self.raw_headers = [
            (b"server-timing", times.encode()),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body)),
        ]
