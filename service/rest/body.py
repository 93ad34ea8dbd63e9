"""Takes the image out of an HTTP request: a multipart field, or the raw body. Limits hold while the bytes come in."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from service.common.errors import BadRequest
from service.common.types import ImageLimits, check_size

FIELD = "image"
LONGEST_NAME = 60  # of a name that a client made up, in what it is told
_ENVELOPE_BYTES = 1 << 20  # multipart boundaries, headers and other fields around the image
_MAX_FIELDS = 24
_MAX_HEADER_BYTES = 16 << 10
_MAX_BOUNDARY_BYTES = 256  # RFC 2046 allows 70; each chunk is searched for it
_PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")
_LONG_BYTES = 1 << 20  # from here on `bytes.join` lets other threads run

Take = Callable[[int], None]
"""Is told the size of each chunk; raises Overloaded where memory lacks."""


async def read_image(request: Request, limits: ImageLimits, take: Take) -> bytes:
    """The bytes of the image; `take` is told of each chunk.

    Raises BadRequest where there is none, TooLarge as soon as a limit is passed, and what `take` raises.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    if kind == "multipart/form-data":
        return await _from_form(request, parameters.get("boundary", ""), limits, take)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await _joined([chunk async for chunk in _chunks(request, limits, 0, take)])
    got = f"content type {kind}" if kind else "no content type"
    raise BadRequest(f"there is no image in the request ({got}); {usage(request)}")


def usage(request: Request) -> str:
    """The right curl lines for this very address."""
    return (
        f"send it as: curl -F {FIELD}=@cat.jpg '{request.url}' "
        f"or: curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg '{request.url}'"
    )


@dataclass(slots=True)
class _Field:
    """One field of a form. `chunks` make its content where it is the image, else they are empty."""

    name: str
    is_file: bool
    size_bytes: int = 0
    chunks: list[bytes] = field(default_factory=list)


async def _from_form(request: Request, boundary: str, limits: ImageLimits, take: Take) -> bytes:
    try:
        fields = await _fields(request, boundary, limits, take)
    except MultipartError as error:
        raise BadRequest(f"the multipart form cannot be read ({error}); {usage(request)}") from error
    image = _only_image(request, fields)
    check_size(image.size_bytes, limits)
    return await _joined(image.chunks)


async def _fields(request: Request, boundary: str, limits: ImageLimits, take: Take) -> list[_Field]:
    """All fields of the form. Raises MultipartError where it is none."""
    if not boundary:
        raise MultipartError("it names no boundary")
    if len(boundary) > _MAX_BOUNDARY_BYTES:
        raise MultipartError(f"its boundary has {len(boundary):,} bytes; at most {_MAX_BOUNDARY_BYTES} are read")
    parser = PushMultipartParser(boundary, max_header_size=_MAX_HEADER_BYTES, max_segment_count=_MAX_FIELDS)
    fields: list[_Field] = []
    async for chunk in _chunks(request, limits, _ENVELOPE_BYTES, take):
        for event in parser.parse(chunk):
            if isinstance(event, MultipartSegment):
                fields.append(_started(event))
            elif event is not None:  # a part of the field's content
                fields[-1].size_bytes += len(event)
                if fields[-1].name == FIELD:
                    fields[-1].chunks.append(bytes(event))
    try:
        parser.close()
    except MultipartError:
        missing = "it ends before its closing boundary" if fields else "its boundary does not occur in it"
        raise MultipartError(missing) from None
    return fields


def _started(segment: MultipartSegment) -> _Field:
    encoding = segment.header("Content-Transfer-Encoding", "").lower()
    if encoding not in _PLAIN_ENCODINGS:
        raise MultipartError(f"a part is encoded as {encoding[:30]}; send its bytes as they are")
    return _Field(segment.name, segment.filename is not None)


def _only_image(request: Request, fields: Sequence[_Field]) -> _Field:
    """The one field that a form may have."""
    images = [one for one in fields if one.name == FIELD]
    if not images:
        found = ", ".join(sorted({one.name for one in fields})) or "none"
        raise BadRequest(f"the form has no field {FIELD!r} (fields: {found}); {usage(request)}")
    if len(images) > 1:
        raise BadRequest(f"the form has {len(images)} fields {FIELD!r}; send one image a request; {usage(request)}")
    if not images[0].is_file:
        raise BadRequest(f"the field {FIELD!r} is text, not a file: is the @ missing? {usage(request)}")
    if strays := sorted({one.name for one in fields} - {FIELD}):
        raise BadRequest(
            f"the form has the field {strays[0][:LONGEST_NAME]!r} beside {FIELD!r}, which nothing reads; "
            f"parameters stand in the address: {request.url.path}?model=NAME&top_k=3"
        )
    return images[0]


async def _chunks(request: Request, limits: ImageLimits, envelope: int, take: Take) -> AsyncIterator[bytes]:
    """The body as it comes in. Raises TooLarge by its declared length, or once more has come than the limit."""
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


async def _joined(chunks: Sequence[bytes]) -> bytes:
    """One after the other. Where that is long it runs on a thread: `bytes.join` lets go of the GIL meanwhile."""
    if len(chunks) == 1:
        return chunks[0]
    if sum(map(len, chunks)) < _LONG_BYTES:
        return b"".join(chunks)
    return await asyncio.to_thread(b"".join, chunks)
