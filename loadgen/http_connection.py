"""HTTP/1.1 client of the load generator: requests are serialised in advance, and responses hardly parsed."""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from loadgen.connection import OK, TIMEOUT, Connection, LoadTestError, OnResult, RequestResult, send_once

_REFUSED = "connection refused"
_START = "is the server running there?"
_RECONNECT_PAUSE_S = 0.1  # after a refused connection: without it the generator would connect in a tight loop


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of a server, and the path in its URL, `/` by default."""

    host: str
    port: int
    path: str
    tls: bool

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> "ServerAddress":
        """Read `http://HOST:PORT/PATH`; `http://` is optional. Raises LoadTestError."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
            (parts.hostname or "").encode("idna")
        except ValueError as error:
            raise LoadTestError(f"{url} is no address of a server: {error}; give http://HOST:PORT") from error
        if parts.username is not None:
            raise LoadTestError("the URL has a user name or password, which is not sent; remove everything up to the @")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoadTestError(f"{url} is no address of a server; give http://HOST:PORT or https://HOST:PORT")
        tls = parts.scheme == "https"
        path = parts.path or "/"
        return cls(parts.hostname, port or (443 if tls else 80), f"{path}?{parts.query}" if parts.query else path, tls)


class HttpConnection(Connection):
    """A keep-alive connection. Every status but 2xx is an error; redirects are not followed."""

    def __init__(self, address: ServerAddress, payloads: Sequence[bytes], on_result: OnResult) -> None:
        super().__init__(payloads, on_result)
        self._address = address
        self._tls = ssl.create_default_context() if address.tls else None
        self._protocol: _HttpProtocol | None = None
        self._connecting: asyncio.Task[None] | None = None

    def on_response(self, result: RequestResult, keep_alive: bool) -> None:
        if not keep_alive:
            self.on_lost()
        self._finish(result)

    def on_lost(self) -> None:
        """Forget the protocol; the next request connects again."""
        if self._protocol is not None:
            self._protocol.abort()
            self._protocol = None

    async def aclose(self) -> None:
        self.busy = False
        self._abort()
        if self._connecting is not None:
            await asyncio.gather(self._connecting, return_exceptions=True)

    def _send(self, payload: bytes) -> None:
        if self._protocol is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(payload))
        else:
            self._protocol.send(payload)

    async def _connect(self, payload: bytes) -> None:
        loop, address = asyncio.get_running_loop(), self._address
        try:
            _, protocol = await loop.create_connection(
                lambda: _HttpProtocol(self), address.host, address.port, ssl=self._tls
            )
        except OSError as error:
            await asyncio.sleep(_RECONNECT_PAUSE_S)
            failure = _REFUSED if isinstance(error, ConnectionRefusedError) else "no connection"
            self._finish(RequestResult(failure, str(error).encode()))
            return
        self.connects += 1
        self._protocol = protocol
        protocol.send(payload)

    def _abort(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        self.on_lost()


async def fetch(address: ServerAddress, payload: bytes, timeout_s: float) -> RequestResult:
    """The response to one request on a connection of its own, whatever its status. Raises LoadTestError without one."""
    result = await send_once(lambda on_result: HttpConnection(address, [payload], on_result), timeout_s)
    origin = f"http{'s' if address.tls else ''}://{address.authority}"
    if result.failure == _REFUSED:
        raise LoadTestError(f"{origin} refuses connections; {_START}")
    if result.failure == TIMEOUT:
        raise LoadTestError(f"{origin} did not answer within {timeout_s:g} s")
    if not result.status:
        raise LoadTestError(f"{origin} gives no answer: {result.text or result.failure}; {_START}")
    return result


class _HttpProtocol(asyncio.Protocol):
    """Reads the responses of one connection, and passes them to its `HttpConnection` until `abort`."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection: HttpConnection | None = connection
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._awaiting = False
        self._reset()

    def _reset(self) -> None:
        self._status = 0
        self._has_length = False
        self._complete = False
        self._keep_alive = False
        self._timing = b""
        self._location = b""
        self._body: list[bytes] = []
        self._received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def send(self, payload: bytes) -> None:
        assert self._transport is not None
        self._awaiting = True
        self._transport.write(payload)

    def abort(self) -> None:
        self._connection = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if not self._awaiting:  # a response to no request, such as a 408 before the server closes the connection
            self._lose()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail("bad answer", f"{error}: {data[:100]!r}")
            return
        except httptools.HttpParserUpgrade:
            self._fail("bad answer", "the server changed to another protocol")
            return
        if self._complete:
            self._respond(keep_alive=self._keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._awaiting:
            self._lose()
        elif self._status and not self._has_length and exc is None:  # the end of the connection ends such a body
            self._respond(keep_alive=False)
        else:
            self._fail("connection closed", str(exc or "before the whole answer"))

    def _lose(self) -> None:
        if self._connection is not None:
            self._connection.on_lost()

    def _fail(self, failure: str, reason: str) -> None:
        self._tell(RequestResult(failure, reason.encode(), received=self._received), keep_alive=False)

    def _respond(self, *, keep_alive: bool) -> None:
        status, location = self._status, self._location
        failure = OK if 200 <= status < 300 else f"status {status}"
        body = b"".join(self._body) or (b"redirect to " + location if location else b"")
        self._tell(RequestResult(failure, body, self._timing, self._received, status, location), keep_alive=keep_alive)

    def _tell(self, result: RequestResult, *, keep_alive: bool) -> None:
        if self._connection is not None:
            self._awaiting = False
            self._reset()
            self._connection.on_response(result, keep_alive)

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name)  # a comparison of numbers leaves out most headers
        if size == 13 and name.lower() == b"server-timing":
            self._timing = value
        elif size in (14, 17) and name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True
        elif size == 8 and name.lower() == b"location":
            self._location = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._status >= 200  # 1xx announces the response
        self._keep_alive = self._parser.should_keep_alive()  # which the parser forgets when this returns
