"""Whole HTTP requests as bytes, made once before anything is measured."""

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

from loadgen.http_connection import Address
from loadgen.images import Photo

_AS_THEY_ARE = "/?&=%:+,;@!$'()*~"  # in a path with its query
_BOUNDARY = b"topfive-bench-9c3f5b1e7a24"


class Api(StrEnum):
    """How a server is asked."""

    TOPFIVE = "topfive"  # POST /predict with the raw image
    MULTIPART = "multipart"
    RAW = "raw"
    GRPC = "grpc"


@dataclass(frozen=True, slots=True)
class Form:
    """What a request looks like around the image; `path` and `content_type` are empty where nothing was said."""

    api: Api
    model: str = ""
    path: str = ""
    field: str = "image"
    content_type: str = ""


def path_of(form: Form, address: Address) -> str:
    """Where a request goes: as it was asked for, else the path of the address, else what the API says.

    Of `topfive` and `multipart` the model is a parameter of it.
    """
    path = form.path or (address.path if address.path != "/" else "")
    if form.api is Api.RAW:
        return path or "/"
    path = path or "/predict"
    if not form.model:
        return path
    return f"{path}{'&' if '?' in path else '?'}model={quote(form.model, safe=':+')}"


def post(address: Address, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """A POST with that body on a connection that stays."""
    lines = [
        f"POST {quote(path, safe=_AS_THEY_ARE)} HTTP/1.1",
        f"Host: {address.authority}",
        f"Content-Length: {len(body)}",
        "Accept: */*",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def image_request(form: Form, address: Address, photo: Photo) -> bytes:
    """The request of an API that takes the file as it is, or as a field of a form."""
    content_type = form.content_type or photo.content_type
    path = path_of(form, address)
    if form.api is not Api.MULTIPART:
        return post(address, path, {"Content-Type": content_type}, photo.data)
    disposition = f'Content-Disposition: form-data; name="{_quoted(form.field)}"; filename="{_quoted(photo.name)}"'
    head = f"{disposition}\r\nContent-Type: {content_type}\r\n\r\n".encode()
    body = b"--" + _BOUNDARY + b"\r\n" + head + photo.data + b"\r\n--" + _BOUNDARY + b"--\r\n"
    return post(address, path, {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY.decode()}"}, body)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
