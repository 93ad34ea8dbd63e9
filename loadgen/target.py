"""The servers under load, the requests that they get, and a check of their first response."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

from loadgen.connection import Connection, LoadTestError, OnResult
from loadgen.http_connection import HttpConnection, ServerAddress, fetch
from loadgen.images import EncodedImage

CHECK_S = 60.0
"""The timeout of a first request, which may wait for a model to load."""

_UNQUOTED = "/?&=%:+,;@!$'()*~"  # in a path with its query
_BOUNDARY = b"topfive-bench-9c3f5b1e7a24"


class ServerApi(StrEnum):
    """The request format of a kind of server."""

    TOPFIVE = "topfive"  # POST /predict with the raw image
    MULTIPART = "multipart"
    RAW = "raw"
    GRPC = "grpc"


@dataclass(frozen=True, slots=True)
class RequestFormat:
    """The parts of a request other than its image. An empty `path` or `content_type` means the default."""

    api: ServerApi
    model: str = ""
    path: str = ""
    field: str = "image"
    content_type: str = ""


MakeRequest = Callable[[ServerAddress, EncodedImage], bytes]
"""Makes a whole HTTP request, head and body."""


class LoadTarget(ABC):
    """Servers that get the same requests. `payloads[server][image]` are the requests."""

    def __init__(self, payloads: Sequence[Sequence[bytes]]) -> None:
        self.payloads = payloads

    @abstractmethod
    def open_connection(self, number: int, on_result: OnResult) -> Connection:
        """A connection to server `number` modulo their number; it connects with its first request."""

    @abstractmethod
    async def check(self, server: int, timeout_s: float = CHECK_S) -> str:
        """Send one request to that server, and describe the response in a line.

        Raises LoadTestError for an error, and for a response that does not fit the API.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close what the connections share."""


class HttpTarget(LoadTarget):
    """Servers that speak HTTP; `make_request` makes their requests. Raises LoadTestError of what is no URL."""

    def __init__(
        self,
        urls: Sequence[str],
        make_request: MakeRequest,
        images: Sequence[EncodedImage],
        api: ServerApi = ServerApi.RAW,
    ) -> None:
        self._addresses = [ServerAddress.parse(url) for url in urls]
        self._api = api
        super().__init__([[make_request(address, image) for image in images] for address in self._addresses])

    @classmethod
    def of(cls, urls: Sequence[str], form: RequestFormat, images: Sequence[EncodedImage]) -> "HttpTarget":
        """Servers that get requests in the format `form`."""
        return cls(urls, lambda address, image: image_request(form, address, image), images, form.api)

    def open_connection(self, number: int, on_result: OnResult) -> Connection:
        server = number % len(self._addresses)
        return HttpConnection(self._addresses[server], self.payloads[server], on_result)

    async def check(self, server: int, timeout_s: float = CHECK_S) -> str:
        result = await fetch(self._addresses[server], self.payloads[server][0], timeout_s)
        host, status, said = self._addresses[server].authority, result.status, result.text or "nothing"
        if result.failure and result.location:
            location = result.location.decode("latin-1")
            raise LoadTestError(f"{host} redirects ({status}) to {location}; give that address")
        if result.failure:
            raise LoadTestError(f"{host} answers {status}: {said}; --allow-errors measures it")
        best = _best_class(result.body)
        if not best and self._api is ServerApi.TOPFIVE:
            raise LoadTestError(
                f"{host} answers {status}, but not as --api {self._api} would: {said}; for other servers give --api"
            )
        return f"{host}: {status}, {len(result.body):,} bytes{best}"

    async def aclose(self) -> None:
        """Connections share nothing."""


def http_request(address: ServerAddress, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """A POST request, head and body."""
    lines = [
        f"POST {quote(path, safe=_UNQUOTED)} HTTP/1.1",
        f"Host: {address.authority}",
        f"Content-Length: {len(body)}",
        "Accept: */*",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def image_request(form: RequestFormat, address: ServerAddress, image: EncodedImage) -> bytes:
    """A POST request with the image as its body or, for `multipart`, as a field of a form."""
    content_type = form.content_type or image.content_type
    path = _path(form, address)
    if form.api is not ServerApi.MULTIPART:
        return http_request(address, path, {"Content-Type": content_type}, image.data)
    disposition = f'Content-Disposition: form-data; name="{_quoted(form.field)}"; filename="{_quoted(image.name)}"'
    head = f"{disposition}\r\nContent-Type: {content_type}\r\n\r\n".encode()
    body = b"--" + _BOUNDARY + b"\r\n" + head + image.data + b"\r\n--" + _BOUNDARY + b"--\r\n"
    return http_request(address, path, {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY.decode()}"}, body)


def _path(form: RequestFormat, address: ServerAddress) -> str:
    path = form.path or (address.path if address.path != "/" else "")
    if form.api is ServerApi.RAW:
        return path or "/"
    path = path or "/predict"
    if not form.model:
        return path
    return f"{path}{'&' if '?' in path else '?'}model={quote(form.model, safe=':+')}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _best_class(body: bytes) -> str:
    """The best class in a reply of topfive; nothing in a reply of another server."""
    try:
        reply = json.loads(body)
        best, engine = reply["predictions"][0], reply["engine"]
        return (
            f", {best['label']} {best['probability']:.3f}, {reply['model']['name']} on "
            f"{engine['runtime']} {engine['precision']}"
        )
    except (ValueError, LookupError, TypeError):
        return ""
