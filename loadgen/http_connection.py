"""HTTP/1.1 as a load generator needs it: ready bytes go out, as little as possible is done with what comes back."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from loadgen.connection import OK, TIMEOUT, Done, Line, LoadError, Outcome, Payloads

_CONNECT_AGAIN_S = 0.1  # after a refusal: without it a server that is gone would be asked in a tight circle
_BODY_BYTES = 64 << 10  # that are kept of an error


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and the path that was given with it, `/` where there was none."""

    host: str
    port: int
    path: str
    tls: bool

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> "Address":
        """The address in `http://HOST:PORT/PATH`, where http:// may be left out. Raises LoadError."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
            (parts.hostname or "").encode("idna")
        except ValueError as error:
            raise LoadError(f"{url} is no address of a server: {error}; give http://HOST:PORT") from error
        if parts.username is not None:
            raise LoadError("a name and a password in the address are not sent; leave them out, up to the @")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoadError(f"{url} is no address of a server; give http://HOST:PORT or https://HOST:PORT")
        tls = parts.scheme == "https"
        path = parts.path or "/"
        return cls(parts.hostname, port or (443 if tls else 80), f"{path}?{parts.query}" if parts.query else path, tls)


class HttpLine(Line):
    """A keep-alive connection. A redirect is not followed: it is an error, as every status but 2xx."""

    def __init__(self, address: Address, payloads: Payloads, done: Done) -> None:
        super().__init__(payloads, done)
        self._address = address
        self._tls = ssl.create_default_context() if address.tls else None
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[None] | None = None

    def _send(self, payload: bytes) -> None:
        if self._connection is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(payload))
        else:
            self._connection.ask(payload)

    async def _connect(self, payload: bytes) -> None:
        loop, address = asyncio.get_running_loop(), self._address
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self), address.host, address.port, ssl=self._tls
            )
        except OSError as error:
            await asyncio.sleep(_CONNECT_AGAIN_S)
            refused = isinstance(error, ConnectionRefusedError)
            self.finish(Outcome("connection refused" if refused else "no connection", str(error).encode()))
            return
        self.connects += 1
        self._connection = connection
        connection.ask(payload)

    def answered(self, outcome: Outcome, lasts: bool) -> None:
        """The connection has the answer; whether it can be used again."""
        if not lasts:
            self.lost()
        self.finish(outcome)

    def lost(self) -> None:
        """The connection is gone."""
        if self._connection is not None:
            self._connection.leave()
            self._connection = None

    def give_up(self) -> None:
        """End the request under way as a timeout, and its connection."""
        if self._connecting is not None:
            self._connecting.cancel()
        self.lost()
        self.finish(Outcome(TIMEOUT))

    async def aclose(self) -> None:
        """End the connection."""
        self.busy = False
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self.lost()


class _Connection(asyncio.Protocol):
    """One connection of a line; the line hears of it until `leave`."""

    def __init__(self, line: HttpLine) -> None:
        self._line: HttpLine | None = line
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._asked = False
        self._renew()

    def _renew(self) -> None:
        self._status = 0
        self._framed = False
        self._complete = False
        self._lasts = False
        self._timing = b""
        self._location = b""
        self._body = b""
        self._received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def ask(self, payload: bytes) -> None:
        assert self._transport is not None
        self._asked = True
        self._transport.write(payload)

    def leave(self) -> None:
        self._line = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if not self._asked:  # bytes that nobody asked for, such as a 408 before the connection ends
            self._line_lost()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._answer("bad answer", lasts=False, body=f"{error}: {data[:100]!r}".encode())
            return
        except httptools.HttpParserUpgrade:
            self._answer("bad answer", lasts=False, body=b"the server changed to another protocol")
            return
        if self._complete:
            self._answer(self._failure(), lasts=self._lasts)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._line is None:
            return
        if not self._asked:
            self._line_lost()
        elif self._status and not self._framed and exc is None:  # a body without a length ends with its connection
            self._answer(self._failure(), lasts=False)
        else:
            self._answer("connection closed", lasts=False, body=str(exc or "before the whole answer").encode())

    def _line_lost(self) -> None:
        if self._line is not None:
            self._line.lost()

    def _failure(self) -> str:
        return OK if 200 <= self._status < 300 else f"status {self._status}"

    def _answer(self, failure: str, *, lasts: bool, body: bytes = b"") -> None:
        if self._line is None:
            return
        said = body or self._body or (b"redirect to " + self._location if self._location else b"")
        outcome = Outcome(failure, said, self._timing, self._received)
        self._asked = False
        self._renew()
        self._line.answered(outcome, lasts)

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name)  # a comparison of numbers leaves out most headers
        if size == 13 and name.lower() == b"server-timing":
            self._timing = value
        elif (size == 14 and name.lower() == b"content-length") or (
            size == 17 and name.lower() == b"transfer-encoding"
        ):
            self._framed = True
        elif size == 8 and name.lower() == b"location":
            self._location = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._status != 200 and len(self._body) < _BODY_BYTES:
            self._body += body

    def on_message_complete(self) -> None:
        self._complete = self._status >= 200  # 1xx announces the answer
        self._lasts = self._parser.should_keep_alive()  # which the parser forgets when this returns
