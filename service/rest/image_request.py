"""What every request with an image has in common: its parameters, its time, its bytes, and a client who may leave."""

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request

from service.common.clock import Clock
from service.common.errors import BadRequest, DeadlineExceeded, TopfiveError
from service.common.metrics import UNKNOWN, Metrics
from service.common.types import FORMATS, ImageLimits
from service.common.upload_budget import UploadBudget
from service.inference.dataplane import ClassifyOptions
from service.rest.body import FIELD, LONGEST_NAME, read_image
from service.rest.schemas import ImageQuery

Q = TypeVar("Q", bound=ImageQuery)
X = TypeVar("X")

TIMEOUT = "X-Request-Timeout"

_IMAGE = {"type": "string", "format": "binary", "description": f"One of {', '.join(FORMATS)}"}
BODY = {
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
"""The body of such a request, for the OpenAPI document."""


@dataclass(frozen=True, slots=True)
class ImageRequest(Generic[Q]):
    """A request that was read: the bytes of its image, its parameters, and how to classify it."""

    image: bytes
    query: Q
    options: ClassifyOptions


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Reads requests with an image within the limits, the shared budget of bytes and the longest time."""

    limits: ImageLimits
    budget: UploadBudget
    timeout_s: float
    clock: Clock
    metrics: Metrics

    @asynccontextmanager
    async def read(self, request: Request, kind: type[Q]) -> AsyncIterator[ImageRequest[Q]]:
        """The request with parameters of that kind; its bytes count in the budget until the block ends.

        Counts and raises a refusal, a TopfiveError.
        """
        with self.budget.share() as take:
            try:
                query = read_query(kind, request.query_params)
                timeout_s = requested_timeout(request.headers.get(TIMEOUT), self.timeout_s)
                deadline = self.clock.now() + timeout_s
                async with asyncio.timeout(timeout_s):
                    image = await read_image(request, self.limits, take)
            except (TopfiveError, TimeoutError) as error:
                refusal = error if isinstance(error, TopfiveError) else DeadlineExceeded()
                self.metrics.answered(UNKNOWN, refusal.code)  # the data plane never sees, so never counts, this one
                raise refusal from error
            yield ImageRequest(image, query, ClassifyOptions(deadline, query.top_k, query.crops))


def read_query(kind: type[Q], params: QueryParams) -> Q:
    """The parameters of an address. Raises BadRequest at one that is not valid, not known or given twice."""
    try:
        query = kind.model_validate(
            {name: params.getlist(name) if name in kind.repeated else value for name, value in params.items()}
        )
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise BadRequest("; ".join(reasons)) from None
    for name in params:
        if name not in kind.model_fields:
            known = ", ".join(kind.model_fields)
            raise BadRequest(f"there is no parameter {name[:LONGEST_NAME]!r}; there are {known}")
        if name not in kind.repeated and len(params.getlist(name)) > 1:
            raise BadRequest(f"{name} is given {len(params.getlist(name))} times; give it once")
    return query


def requested_timeout(header: str | None, limit_s: float) -> float:
    """Seconds a caller asks for in X-Request-Timeout, at most the server's own limit. Raises BadRequest."""
    if header is None:
        return limit_s
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise BadRequest(f"{TIMEOUT} is {header!r}; send seconds above zero, such as 0.5")
    return min(seconds, limit_s)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, X]) -> X:
    """The result of `work`, which is cancelled when the client leaves first (ClientDisconnect)."""
    task = asyncio.current_task()
    assert task is not None, "a request is answered in a task"
    left = False

    def leave(_gone: asyncio.Future[None]) -> None:
        nonlocal left
        left = True
        task.cancel()

    gone = asyncio.ensure_future(_disconnected(request))
    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and not task.cancelling() > 1:  # else the server ends it as well
            raise ClientDisconnect from None
        raise
    finally:
        gone.remove_done_callback(leave)
        gone.cancel()
        if left:
            task.uncancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
