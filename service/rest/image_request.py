"""Reads a request with an image: its parameters, its deadline, and its bytes, within limits while they arrive."""

import math
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import Any, TypeVar

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request

from service.common.clock import Clock, timeout_at
from service.common.errors import BadRequest, Code, TopfiveError, UnsupportedMediaType
from service.common.metrics import UNKNOWN, Metrics
from service.common.types import FORMATS, ImageLimits, check_size
from service.common.upload_budget import UploadBudget, UploadShare
from service.inference.dataplane import ClassifyOptions
from service.rest.schemas import ImageQuery

Q = TypeVar("Q", bound=ImageQuery)

_FIELD = "image"
_LONGEST_NAME = 60  # of a client's own name in an error message
_ENVELOPE_BYTES = 1 << 20  # multipart boundaries, headers and other fields around the image
_MAX_FIELDS = 24
_MAX_HEADER_BYTES = 16 << 10
_CHARSET = "latin-1"  # of part headers: it takes any bytes, and some clients send a file name in their system's charset
_MAX_BOUNDARY_BYTES = 256  # RFC 2046 allows 70; each chunk is searched for it
_FILE_TYPES = ("image/", "application/octet-stream")
_PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")
_DROPPED_BYTES = 256 << 10
_HEAD_BYTES = 64  # enough for a zero byte or a byte that is not UTF-8 in an image of any format

Take = Callable[[int], None]
"""Called with the size of each chunk. Raises Overloaded if the byte budget is used up."""

ReadContent = Callable[[Request, ImageLimits, Take], Awaitable[bytes]]

_TIMEOUT = "X-Request-Timeout"

_IMAGE = {"type": "string", "format": "binary", "description": f"One of {', '.join(FORMATS)}"}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [_FIELD],
                    "properties": {_FIELD: _IMAGE},
                    "additionalProperties": False,
                },
            },
            "image/*": {"schema": _IMAGE},
        },
    }
}
"""The request body, for the OpenAPI document."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A request that is read: the bytes of its image, or of its whole body, and how to classify it."""

    image: bytes
    options: ClassifyOptions


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Reads requests with an image within the image limits, the shared byte budget and the largest timeout."""

    limits: ImageLimits
    budget: UploadBudget
    timeout_s: float
    clock: Clock
    metrics: Metrics

    def query(self, request: Request, kind: type[Q]) -> Q:
        """The parameters of the request. Raises and counts BadRequest for one that is invalid, unknown or repeated."""
        try:
            query: Q = _parsed_query(kind, request.scope["query_string"])
        except BadRequest:
            self.metrics.answered(UNKNOWN, Code.BAD_REQUEST)
            raise
        return query

    def share(self, request: Request) -> UploadShare:
        """The share of the request in the byte budget, in which its bytes count until it ends."""
        client: tuple[str, int] | None = request.scope.get("client")
        return UploadShare(self.budget, client[0] if client else None)

    async def read(
        self,
        request: Request,
        query: ImageQuery,
        take: Take,
        version: int | None = None,
        content: ReadContent | None = None,
    ) -> ImageRequest:
        """The request with these parameters, for that version of its model.

        `content` reads the body; without it that is `read_image`. A refused request is counted, and its TopfiveError
        raised.
        """
        encoding = request.headers.get("content-encoding", "")
        try:
            if encoding.lower() not in ("", "identity"):
                named = f"Content-Encoding is {encoding[:_LONGEST_NAME]!r}"
                raise UnsupportedMediaType(f"{named}, which this server does not decode; send the body without it")
            asked = request.headers.get(_TIMEOUT)
            timeout_s = self.timeout_s if asked is None else requested_timeout(asked, self.timeout_s)
            deadline = self.clock.now() + timeout_s
            with timeout_at(deadline, self.clock):
                image = await (content or read_image)(request, self.limits, take)
        except TopfiveError as error:
            self.metrics.answered(UNKNOWN, error.code)  # the data plane never sees, so never counts, this one
            raise
        return ImageRequest(image, ClassifyOptions(deadline, query.top_k, query.crops, version))


@lru_cache(maxsize=64)  # clients send the same few; a head, and so a key, is bounded
def _parsed_query(kind: type[ImageQuery], query_string: bytes) -> Any:
    """The parameters in the query string. They are cached, so no caller changes them. Raises BadRequest."""
    params = QueryParams(query_string)
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
            raise BadRequest(f"there is no parameter {name[:_LONGEST_NAME]!r}; there are {known}")
        if name not in kind.repeated and len(params.getlist(name)) > 1:
            raise BadRequest(f"{name} is given {len(params.getlist(name))} times; give it once")
    return query


def requested_timeout(header: str, limit_s: float) -> float:
    """The timeout in X-Request-Timeout in seconds, at most `limit_s`. Raises BadRequest."""
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise BadRequest(f"{_TIMEOUT} is {header!r}; send seconds above zero, such as 0.5")
    return min(seconds, limit_s)


async def drop_small_body(request: Request) -> None:
    """Read and drop a body of at most 256 KiB, so that the client can send its next request on the connection.

    A larger one is left, and so is one that the client sends only if it is asked to.
    """
    size = request.headers.get("content-length", "")
    if size.isdecimal() and int(size) <= _DROPPED_BYTES and "expect" not in request.headers:
        while (await request.receive()).get("more_body"):
            continue


async def read_image(request: Request, limits: ImageLimits, take: Take) -> bytes:
    """The bytes of the image. `take` is called with the size of each chunk.

    Raises BadRequest if there is no image, TooLarge as soon as a limit is exceeded, and the errors of `take`.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    if kind == "multipart/form-data":
        try:
            fields = await _fields(request, parameters.get("boundary", ""), limits, take)
        except MultipartError as error:
            raise BadRequest(f"the multipart form cannot be read ({error}); {usage(request)}") from error
        image = _only_image(request, fields)
        check_size(len(image), limits)
        return image
    if kind.startswith(_FILE_TYPES):
        content = BytesIO()
        async for chunk in _chunks(request, limits, 0, take):
            content.write(chunk)
        return content.getvalue()
    got = f"content type {kind}" if kind else "no content type"
    raise BadRequest(f"there is no image in the request ({got}); {usage(request)}")


async def read_body(request: Request, limits: ImageLimits, take: Take) -> bytes:
    """The whole body, which may have fields around the largest image. Raises TooLarge and the errors of `take`."""
    content = BytesIO()
    async for chunk in _chunks(request, limits, _ENVELOPE_BYTES, take):
        content.write(chunk)
    return content.getvalue()


def usage(request: Request) -> str:
    """The valid curl commands for this URL."""
    return (
        f"send it as: curl -F {_FIELD}=@cat.jpg '{request.url}' "
        f"or: curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg '{request.url}'"
    )


@dataclass(slots=True)
class _Field:
    """One field of a form. `content` grows in place; it stays empty in a field that is not the image."""

    name: str
    is_file: bool
    content: BytesIO = field(default_factory=BytesIO)


async def _fields(request: Request, boundary: str, limits: ImageLimits, take: Take) -> list[_Field]:
    """All fields of the form. Raises MultipartError if the body is not a valid form."""
    if not boundary:
        raise MultipartError("it names no boundary")
    if len(boundary) > _MAX_BOUNDARY_BYTES:
        raise MultipartError(f"its boundary has {len(boundary):,} bytes; at most {_MAX_BOUNDARY_BYTES} are read")
    parser = PushMultipartParser(
        boundary, max_header_size=_MAX_HEADER_BYTES, max_segment_count=_MAX_FIELDS, header_charset=_CHARSET
    )
    fields: list[_Field] = []
    async for chunk in _chunks(request, limits, _ENVELOPE_BYTES, take):
        for event in parser.parse(chunk):
            if isinstance(event, MultipartSegment):
                encoding = event.header("Content-Transfer-Encoding", "").lower()
                if encoding not in _PLAIN_ENCODINGS:
                    raise MultipartError(f"a part is encoded as {encoding[:30]}; send its bytes as they are")
                is_file = event.filename is not None or (event.content_type or "").startswith(_FILE_TYPES)
                name = event.name.encode(_CHARSET, "replace").decode(errors="replace")
                fields.append(_Field(name, is_file))
            elif event is not None and fields[-1].name == _FIELD:  # a part of the field's content
                fields[-1].content.write(event)
    try:
        parser.close()
    except MultipartError:
        missing = "it ends before its closing boundary" if fields else "its boundary does not occur in it"
        raise MultipartError(missing) from None
    return fields


def _only_image(request: Request, fields: Sequence[_Field]) -> bytes:
    """The content of the image field. Raises BadRequest if the form has none, several, or other fields."""
    images = [one for one in fields if one.name == _FIELD]
    if not images:
        found = ", ".join(sorted({one.name for one in fields})) or "none"
        raise BadRequest(f"the form has no field {_FIELD!r} (fields: {found}); {usage(request)}")
    if len(images) > 1:
        raise BadRequest(f"the form has {len(images)} fields {_FIELD!r}; send one image a request; {usage(request)}")
    image = images[0].content.getvalue()
    if not images[0].is_file and _is_text(image[:_HEAD_BYTES]):
        raise BadRequest(f"the field {_FIELD!r} is text, not a file: is the @ missing? {usage(request)}")
    if strays := sorted({one.name for one in fields} - {_FIELD}):
        raise BadRequest(
            f"the form has the field {strays[0][:_LONGEST_NAME]!r} beside {_FIELD!r}, which nothing reads; "
            f"parameters stand in the address: {request.url.path}?model=NAME&top_k=3"
        )
    return image


def _is_text(head: bytes) -> bool:
    """Whether a field without a file name and a type begins as text does, which no image file does."""
    with suppress(UnicodeDecodeError):
        return getincrementaldecoder("utf-8")().decode(head).replace("\n", "").replace("\r", "").isprintable()
    return False


async def _chunks(request: Request, limits: ImageLimits, envelope: int, take: Take) -> AsyncIterator[bytes]:
    """The body in chunks. Raises TooLarge if the declared length or the received bytes exceed the limit."""
    largest = limits.max_bytes + envelope
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > largest:
        check_size(int(declared), limits)
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        if chunk := message.get("body", b""):
            received += len(chunk)
            if received > largest:
                check_size(received, limits)
            take(len(chunk))
            yield chunk
