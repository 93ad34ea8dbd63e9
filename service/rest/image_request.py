"""What every request with an image has in common: its time, its bytes, and a client who may leave."""

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request

from service.common.clock import Clock
from service.common.errors import BadRequest, DeadlineExceeded, TopfiveError
from service.common.metrics import UNKNOWN, Metrics
from service.common.types import ImageLimits
from service.common.upload_budget import UploadBudget
from service.preprocessing.decode import FORMATS
from service.rest.body import FIELD, LONGEST_NAME, read_image

X = TypeVar("X")


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
class Parameters:
    """What may stand in the query of an address: `once` at most once, `repeated` any number of times."""

    once: tuple[str, ...]
    repeated: tuple[str, ...] = ()

    def values(self, query: QueryParams) -> dict[str, str | list[str]]:
        """What is given of them, unread; of those that may be repeated all, of the others the last."""
        return {name: query.getlist(name) if name in self.repeated else value for name, value in query.items()}

    def check(self, query: QueryParams) -> None:
        """Raise BadRequest at any other, so that a slip of the pen does not get an answer to another question."""
        known = (*self.repeated, *self.once)
        for name in query:
            if name not in known:
                raise BadRequest(f"there is no parameter {name[:LONGEST_NAME]!r}; there are {', '.join(known)}")
            if name in self.once and len(query.getlist(name)) > 1:
                raise BadRequest(f"{name} is given {len(query.getlist(name))} times; give it once")


@dataclass(frozen=True, slots=True)
class Intake:
    """Reads images out of requests within the limits, the shared budget of bytes and the longest time."""

    limits: ImageLimits
    budget: UploadBudget
    timeout_s: float
    clock: Clock
    metrics: Metrics

    @asynccontextmanager
    async def image(
        self, request: Request, x_request_timeout: str | None, parameters: Parameters
    ) -> AsyncIterator[tuple[bytes, float]]:
        """The image and the deadline, while the image counts as in memory; counts and raises a refusal."""
        with self.budget.share() as take:
            try:
                parameters.check(request.query_params)
                deadline = self.clock.now() + requested_timeout(x_request_timeout, self.timeout_s)
                async with asyncio.timeout(deadline - self.clock.now()):
                    data = await read_image(request, self.limits, take)
            except (TopfiveError, TimeoutError) as error:
                refusal = error if isinstance(error, TopfiveError) else DeadlineExceeded()
                self.metrics.answered(UNKNOWN, refusal.code)  # the classifier never sees, so never counts, this one
                raise refusal from error
            yield data, deadline


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
