"""The REST endpoints: each reads its request, calls the classifier or the repository, and writes the reply."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.budget import UploadBudget
from service.classifier import DEFAULT_TOP_K, Classifier
from service.clock import Clock
from service.errors import BadRequest, DeadlineExceeded, NotReady, TopfiveError
from service.facts import facts, layer_facts
from service.image import FORMATS
from service.metrics import Metrics
from service.repository import Repository
from service.rest.schemas import (
    Health,
    LayersReply,
    ModelDetailReply,
    ModelListReply,
    ModelReply,
    PredictReply,
    Problem,
)
from service.rest.upload import FIELD, read_image
from service.types import ImageLimits, Timing

X = TypeVar("X")

_IMAGE = {"type": "string", "format": "binary", "description": f"One of {', '.join(FORMATS)}"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": [FIELD], "properties": {FIELD: _IMAGE}},
            },
            "image/*": {"schema": _IMAGE},
        },
    }
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "No image, or a parameter out of range",
        404: "No such model, or not exported",
        413: "Too many bytes or pixels",
        422: "Not an image, or a damaged one",
        429: "At capacity; see Retry-After",
        500: "The server failed",
        503: "Not ready, or shutting down",
        504: "No answer within the time allowed",
    }.items()
}


def predictions(
    classifier: Classifier,
    *,
    limits: ImageLimits,
    budget: UploadBudget,
    timeout_s: float,
    clock: Clock,
    metrics: Metrics,
) -> APIRouter:
    """`POST /predict`."""
    router = APIRouter(tags=["predict"])

    @router.post("/predict", response_model=PredictReply, responses=_PROBLEMS, openapi_extra=_BODY)
    async def predict(
        request: Request,
        model: Annotated[str | None, Query(description="A name from /models; else the server's default")] = None,
        top_k: Annotated[int, Query(description="How many classes, best first")] = DEFAULT_TOP_K,
        x_request_timeout: Annotated[str | None, Header(description="Seconds to wait for the answer")] = None,
    ) -> Response:
        """Classify one image, sent as the multipart field `image` or as the raw body."""
        with budget.share() as take:
            try:
                deadline = clock.now() + requested_timeout(x_request_timeout, timeout_s)
                async with asyncio.timeout(deadline - clock.now()):
                    data = await read_image(request, limits, take)
            except (TopfiveError, TimeoutError) as error:
                refusal = error if isinstance(error, TopfiveError) else DeadlineExceeded()
                metrics.answered("unknown", refusal.code)  # the classifier never sees, and so never counts, this one
                raise refusal from error
            answer = await unless_disconnected(
                request, classifier.classify(data, model=model, top_k=top_k, deadline=deadline)
            )
        reply = PredictReply.of(request.state.request_id, answer)
        headers = {"Server-Timing": server_timing(answer.timing_ms)}
        return Response(reply.model_dump_json(), headers=headers, media_type="application/json")

    return router


def models(repository: Repository) -> APIRouter:
    """`GET /models`, `GET /models/{name}` and `GET /models/{name}/layers`."""
    router = APIRouter(tags=["models"])

    @router.get("/models")
    async def list_models() -> ModelListReply:
        """Everything the server knows: loaded, exported, or waiting to be exported."""
        rows = [ModelReply.model_validate(facts(entry)) for entry in repository.entries()]
        return ModelListReply(default=repository.default, models=rows)

    @router.get("/models/{name}", responses={404: _PROBLEMS[404]})
    async def get_model(name: str) -> ModelDetailReply:
        """One model, with its input recipe, its weights and its parity with PyTorch on each engine."""
        return ModelDetailReply.model_validate(facts(repository.entry(name)))

    @router.get("/models/{name}/layers", responses={404: _PROBLEMS[404], 503: _PROBLEMS[503]})
    async def get_layers(name: str) -> LayersReply:
        """The layers of an exported model, loaded or not: maps, parameters, operations, receptive fields."""
        return LayersReply.of(layer_facts(repository, name))

    return router


def health(repository: Repository, metrics: Metrics) -> APIRouter:
    """`GET /livez`, `GET /readyz` and `GET /metrics`."""
    router = APIRouter(tags=["health"])

    @router.head("/livez", include_in_schema=False)
    @router.get("/livez", responses={503: _PROBLEMS[503]})
    async def livez() -> Health:
        """Whether the process works; when not, restart it."""
        if not repository.alive:
            raise NotReady("an engine or its queue has failed for good; restart the server")
        return Health(status="alive")

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses={503: _PROBLEMS[503]})
    async def readyz() -> Health:
        """Whether every configured model is loaded and warm, and its last real runs did not all fail."""
        repository.check_ready()
        return Health(status="ready")

    @router.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def requested_timeout(header: str | None, limit_s: float) -> float:
    """Seconds a caller asks for in X-Request-Timeout, at most the server's own limit. Raises BadRequest."""
    if header is None:
        return limit_s
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise BadRequest(f"X-Request-Timeout is {header!r}; send seconds above zero, such as 0.5")
    return min(seconds, limit_s)


def server_timing(timing: Timing) -> str:
    """The Server-Timing header, which browsers show in their network panel."""
    steps = ("decode", "queue", "inference", "total")
    return ", ".join(f"{step};dur={getattr(timing, step):.3f}" for step in steps)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, X]) -> X:
    """The result of `work`, which is cancelled when the client leaves first (ClientDisconnect)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        raise ClientDisconnect
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
