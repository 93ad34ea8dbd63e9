"""Takes the image out of an HTTP request: a multipart field, or the raw body. Limits hold while the bytes come in."""

import asyncio
from collections.abc import Callable, Sequence

from starlette.requests import ClientDisconnect, Request

from service.common.errors import BadRequest
from service.common.types import ImageLimits
from service.preprocessing.decode import check_size
from service.rest.form import FormError, FormReader, Part, boundary_of

FIELD = "image"
LONGEST_NAME = 60  # of a name that a client made up, in what it is told
_ENVELOPE_BYTES = 1 << 20  # multipart boundaries, headers and other fields around the image
_LONG_BYTES = 1 << 20  # from here on `bytes.join` lets other threads run


async def read_image(request: Request, limits: ImageLimits, take: Callable[[int], None]) -> bytes:
    """The bytes of the image; `take` is told of each chunk.

    Raises BadRequest where there is none, TooLarge as soon as a limit is passed, and what `take` raises.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, limits, take)
    if kind.startswith("image/") or kind == "application/octet-stream":
        _check_declared(request, limits, 0)
        pieces: list[bytes] = []
        await _receive(request, limits, 0, take, pieces.append)
        return await _joined(pieces)
    got = f"content type {kind}" if kind else "no content type"
    raise BadRequest(f"there is no image in the request ({got}); {usage(request)}")


def usage(request: Request) -> str:
    """The right curl lines for this very address."""
    return (
        f"send it as: curl -F {FIELD}=@cat.jpg '{request.url}' "
        f"or: curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg '{request.url}'"
    )


async def _from_form(request: Request, limits: ImageLimits, take: Callable[[int], None]) -> bytes:
    _check_declared(request, limits, _ENVELOPE_BYTES)
    if (boundary := boundary_of(request.headers["content-type"].encode("latin-1"))) is None:
        raise BadRequest(f"the multipart form cannot be read (it names no boundary); {usage(request)}")
    try:
        form = FormReader(boundary, FIELD)
        await _receive(request, limits, _ENVELOPE_BYTES, take, form.feed)
        form.close()
    except FormError as error:
        raise BadRequest(f"the multipart form cannot be read ({error}); {usage(request)}") from error
    field = _only_image(request, form.parts)
    check_size(field.size, limits)
    return await _joined(field.pieces)


def _only_image(request: Request, parts: Sequence[Part]) -> Part:
    """The one field that a form may have."""
    fields = [part for part in parts if part.name == FIELD]
    if not fields:
        found = ", ".join(sorted({part.name for part in parts})) or "none"
        raise BadRequest(f"the form has no field {FIELD!r} (fields: {found}); {usage(request)}")
    if len(fields) > 1:
        raise BadRequest(f"the form has {len(fields)} fields {FIELD!r}; send one image a request; {usage(request)}")
    if not fields[0].is_file:
        raise BadRequest(f"the field {FIELD!r} is text, not a file: is the @ missing? {usage(request)}")
    if strays := sorted({part.name for part in parts} - {FIELD}):
        raise BadRequest(
            f"the form has the field {strays[0][:LONGEST_NAME]!r} beside {FIELD!r}, which nothing reads; "
            f"parameters stand in the address: {request.url.path}?model=NAME&top_k=3"
        )
    return fields[0]


async def _joined(pieces: Sequence[bytes]) -> bytes:
    """One after the other. Where that is long the event loop goes on: `bytes.join` lets go of the lock meanwhile."""
    if len(pieces) == 1:
        return pieces[0]
    if sum(map(len, pieces)) < _LONG_BYTES:
        return b"".join(pieces)
    return await asyncio.to_thread(b"".join, pieces)


def _check_declared(request: Request, limits: ImageLimits, envelope: int) -> None:
    """Refuse by the Content-Length, before a byte is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_bytes + envelope:
        check_size(int(declared), limits)


async def _receive(
    request: Request,
    limits: ImageLimits,
    envelope: int,
    take: Callable[[int], None],
    keep: Callable[[bytes], None],
) -> None:
    """Give the body's chunks to `keep`, ending in TooLarge once they are more than the limit."""
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        if chunk := message.get("body", b""):
            received += len(chunk)
            if received > limits.max_bytes + envelope:
                check_size(received, limits)
            take(len(chunk))
            keep(chunk)
