"""HTTP/1.1 client of the load generator: requests are serialised in advance, and responses hardly parsed."""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast
from urllib.parse import quote, urlsplit

import httptools

from loadgen.connection import RECONNECT_PAUSE_S, LoadTestError, Response
from loadgen.images import EncodedImage

_UNQUOTED = "/?&=%:+,;@!$'()*~"  # in a path with its query
_BOUNDARY = "topfive-bench-9c3f5b1e7a24"


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where requests go. `authority` is the Host header; `path` has the query."""

    host: str
    port: int
    authority: str
    path: str
    tls: bool

    @classmethod
    def parse(cls, url: str, model: str = "") -> "HttpAddress":
        """Read a URL; without a path it is /predict. `model` goes into the query. Raises LoadTestError."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            host = (parts.hostname or "").encode("idna").decode()
        except (KeyError, ValueError) as error:
            raise LoadTestError(f"{url} is no address of a server; give http://HOST:PORT") from error
        if not host or parts.username is not None:
            raise LoadTestError("the URL has no host, or a user name, which is not sent; give http://HOST:PORT")
        path = parts.path if parts.path.strip("/") else "/predict"
        query = "&".join(part for part in (parts.query, model and f"model={quote(model, safe=':+')}") if part)
        path = quote(f"{path}?{query}" if query else path, safe=_UNQUOTED)
        return cls(host, port, parts.netloc, path, parts.scheme == "https")


def http_request(address: HttpAddress, body: bytes, content_type: str, *headers: str) -> bytes:
    """A POST request, head and body."""
    lines = (
        f"POST {address.path} HTTP/1.1",
        f"Host: {address.authority}",
        f"Content-Length: {len(body)}",
        f"Content-Type: {content_type}",
        *headers,
    )
    return "\r\n".join([*lines, "", ""]).encode() + body


def raw_request(address: HttpAddress, image: EncodedImage) -> bytes:
    """A POST request whose body is the image."""
    return http_request(address, image.data, image.content_type)


def multipart_request(address: HttpAddress, image: EncodedImage) -> bytes:
    """A POST request with the image as the field `image` of a form."""
    head = f'Content-Disposition: form-data; name="image"; filename="image"\r\nContent-Type: {image.content_type}'
    body = f"--{_BOUNDARY}\r\n{head}\r\n\r\n".encode() + image.data + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return http_request(address, body, f"multipart/form-data; boundary={_BOUNDARY}")


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


class HttpConnection:
    """A keep-alive connection. Every status but 2xx is a failure; redirects are not followed."""

    def __init__(self, address: HttpAddress, requests: Sequence[bytes]) -> None:
        self._address = address
        self._requests = requests
        self._protocol: _HttpProtocol | None = None

    async def send(self, image: int, timeout_s: float) -> Response:
        if self._protocol is None or self._protocol.closed:
            address = self._address
            try:
                async with asyncio.timeout(timeout_s):
                    _, self._protocol = await asyncio.get_running_loop().create_connection(
                        _HttpProtocol, address.host, address.port, ssl=_tls() if address.tls else None
                    )
            except OSError as error:
                await asyncio.sleep(RECONNECT_PAUSE_S)
                refused = isinstance(error, ConnectionRefusedError)
                return Response("connection refused" if refused else "no connection", str(error).encode())
        return await self._protocol.send(self._requests[image], timeout_s)

    async def aclose(self) -> None:
        if self._protocol is not None:
            self._protocol.close()


class _HttpProtocol(asyncio.Protocol):
    """One TCP connection, and the parser of its responses, which calls its `on_` methods."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._response: asyncio.Future[Response] | None = None
        self._body: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def send(self, request: bytes, timeout_s: float) -> asyncio.Future[Response]:
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        self._response = loop.create_future()
        self._timer = loop.call_later(timeout_s, self._end, Response("timeout"))
        self._transport.write(request)
        return self._response

    def close(self) -> None:
        self.closed = True
        self._response = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._response is None:  # a response to no request, such as a 408 before the server closes the connection
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._end(Response("bad answer", f"{error}: {data[:100]!r}".encode()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(Response("connection closed", str(exc or "before the whole answer").encode()))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # 1xx announces the response
            failure = "" if status < 300 else f"status {status}"
            self._end(Response(failure, b"".join(self._body)), self._parser.should_keep_alive())

    def _end(self, response: Response, keep_alive: bool = False) -> None:
        waiting, self._response, self._body = self._response, None, []
        if self._timer is not None:
            self._timer.cancel()
        if waiting is not None and not waiting.done():
            waiting.set_result(response)
        if not keep_alive:
            self.close()
