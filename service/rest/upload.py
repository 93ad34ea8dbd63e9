"""Takes the image out of an HTTP request: a multipart field, or the raw body. Limits hold while the bytes come in."""

from collections.abc import AsyncGenerator, Callable

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import BadRequest
from service.image import check_size
from service.types import ImageLimits

FIELD = "image"
LONGEST_NAME = 60  # of a name that a client made up, in what it is told
_ENVELOPE_BYTES = 1 << 20  # multipart boundaries, headers and other fields around the image


class _InMemoryParser(MultiPartParser):
    """Keeps parts in memory: the body is bounded, and a temporary file would only be read back at once."""

    spool_max_size = 1 << 31


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
        return b"".join([chunk async for chunk in _limited(request, limits, 0, take)])
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
    parser = _InMemoryParser(
        request.headers, _limited(request, limits, _ENVELOPE_BYTES, take), max_files=8, max_fields=16
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:  # KeyError: a multipart type without its boundary
        reason = error.message if isinstance(error, MultiPartException) else "it names no boundary"
        raise BadRequest(f"the multipart form cannot be read ({reason}); {usage(request)}") from error
    try:
        fields = form.getlist(FIELD)
        if not fields:
            found = ", ".join(sorted(form)) or "none"
            raise BadRequest(f"the form has no field {FIELD!r} (fields: {found}); {usage(request)}")
        if len(fields) > 1:
            raise BadRequest(f"the form has {len(fields)} fields {FIELD!r}; send one image a request; {usage(request)}")
        field = fields[0]
        if not isinstance(field, UploadFile):
            raise BadRequest(f"the field {FIELD!r} is text, not a file: is the @ missing? {usage(request)}")
        if strays := sorted(set(form) - {FIELD}):
            raise BadRequest(
                f"the form has the field {strays[0][:LONGEST_NAME]!r} beside {FIELD!r}, which nothing reads; "
                f"parameters stand in the address: {request.url.path}?model=NAME&top_k=3"
            )
        check_size(field.size or 0, limits)
        return await field.read()
    finally:
        await form.close()


def _check_declared(request: Request, limits: ImageLimits, envelope: int) -> None:
    """Refuse by the Content-Length, before a byte is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_bytes + envelope:
        check_size(int(declared), limits)


async def _limited(
    request: Request, limits: ImageLimits, envelope: int, take: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    """The body's chunks, ending in TooLarge once they are more than the limit."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limits.max_bytes + envelope:
            check_size(received, limits)
        take(len(chunk))
        yield chunk
