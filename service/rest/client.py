"""A client of REST, for the command line. It gives what a data plane in its own process would."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

from pydantic import ValidationError

from service.common.errors import BadRequest, EngineError, TopfiveError, error_of
from service.common.http_client import fetch
from service.common.types import Classification, copy_as
from service.inference.comparison import Comparison, ComparisonRow
from service.inference.dataplane import ClassifyOptions
from service.rest.schemas import CompareReply, CompareRow, Problem, from_json

T = TypeVar("T")

_MAX_REPLY_BYTES = 64 << 20
_MARGIN_S = 5.0  # in which the server says itself that the time is over


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """A running server at a URL such as http://localhost:8000, which may have a path prefix.

    Its methods raise the server's errors with their status as TopfiveError, and OSError if there is no answer.
    """

    url: str
    api_key: str | None
    timeout_s: float

    def __post_init__(self) -> None:
        """Raise BadRequest if the URL cannot be one of a server."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise BadRequest(f"{self.url!r} is not the URL of a server; it is such as http://localhost:8000")

    async def classify(self, image: bytes, model: str | None, options: ClassifyOptions) -> Classification:
        """The best classes of an image file by a model or ensemble; None means the server's default."""
        return await asyncio.to_thread(self._post, Classification, "predict", image, [model] if model else [], options)

    async def compare(self, image: bytes, models: Sequence[str], options: ClassifyOptions) -> Comparison:
        """The answers of several models to one image file; of all that the server has loaded if `models` is empty."""
        reply = await asyncio.to_thread(self._post, CompareReply, "compare", image, models, options)
        return copy_as(Comparison, reply, rows=tuple(map(_row, reply.rows)))

    def _post(self, cls: type[T], path: str, image: bytes, models: Sequence[str], options: ClassifyOptions) -> T:
        query: dict[str, object] = {"model": models, "crops": options.crops}
        if options.top_k is not None:
            query["top_k"] = options.top_k
        headers = {"Content-Type": "application/octet-stream", "X-Request-Timeout": f"{self.timeout_s:g}"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        url = f"{self.url.rstrip('/')}/{path}?{urlencode(query, doseq=True)}"
        try:
            answer = fetch(url, self.timeout_s + _MARGIN_S, _MAX_REPLY_BYTES, image, headers)
        except OSError as error:
            raise OSError(f"{self.url}: {error}") from error
        try:
            if answer.status == 200:
                return from_json(cls, answer.body)
            problem = from_json(Problem, answer.body)
        except ValidationError as error:
            said = f"{answer.status} {answer.reason}"
            raise OSError(f"{self.url}: the answer is not one of topfive, but {said}") from error
        raise TopfiveError(f"the server answered {problem.status}: {problem.detail}")


def _row(row: CompareRow) -> ComparisonRow:
    error = error_of(row.error.code, row.error.detail) if row.error else EngineError("the row has no answer")
    return ComparisonRow(row.model, row.answer or error)
