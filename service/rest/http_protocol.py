"""HTTP/1.1 as uvicorn implements it, with limits on the request head: its size, and the time until it is complete."""

import asyncio
import logging
import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
HEAD_TIMEOUT_S = 20.0

_HIGH_WATER_BYTES = 256 << 10  # of a body, until the application takes them

# A client that offers HTTP/2 on a plain connection (Java's does by default) may be answered in HTTP/1.1. But the parser
# would take everything after the head for the other protocol. Under another name the offer is just a header.
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_CONTINUE = b"HTTP/1.1 100 "
_NOT_TAKEN = b"\r\nx-offer:"
_SOUGHT = (b"\r\nupgrade:", b"\r\n\r\n")

log = logging.getLogger(__name__)


class _OneWrite:
    """The transport of one response: it sends the head together with the first part of the body, in one packet."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._begun = False
        self.is_closing = transport.is_closing
        self.close = transport.close

    def write(self, data: bytes) -> None:
        """Send the data, or keep it if it is the head."""
        if self._begun:
            self._transport.write(data if self._head is None else self._head + data)
            self._head = None
        elif data.startswith(_CONTINUE):
            self._transport.write(data)
        else:
            self._head, self._begun = data, True


class BoundedHeadProtocol(HttpToolsProtocol):
    """One connection. It is closed if no complete head arrives in time; a head that is too large gets 431.

    `opened_s` is when the connection was made, in seconds of the event loop's time.
    """

    opened_s = 0.0
    _head_bytes = 0
    _held = b""  # the last bytes of the head so far, which may be the start of a searched sequence
    _in_head = True
    _begun = False  # whether a head has begun and not ended
    _progress = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.opened_s = self.loop.time()
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            data, self._held = self._held + data, b""
            end = data.find(b"\r\n\r\n")
            if end < 0:
                end = len(data) - _begun_bytes(data[-len(_SOUGHT[0]) :].lower())
                data, self._held = data[:end], data[end:]
                if not data:
                    return
            if _UPGRADE.search(data, 0, end):
                data = _UPGRADE.sub(_NOT_TAKEN, data[:end]) + data[end:]
        self._progress = False
        super().data_received(data)
        if self._in_head and not self._progress:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse()
        if self._begun and self._timer is None:
            self._set_timer()

    def on_message_begin(self) -> None:
        """A request begins, possibly in the same bytes as the previous one ends."""
        super().on_message_begin()
        self._stop_timer()  # set again if the head does not end in these bytes, which is rare
        self._in_head = self._begun = True

    def on_headers_complete(self) -> None:
        self._in_head = self._begun = False
        self._progress = True
        self._head_bytes = 0
        self._stop_timer()
        super().on_headers_complete()
        if self.scope["method"] == "POST":  # its response always has a body
            self.cycle.transport = _OneWrite(self.transport)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """A part of the body: kept as it is if it is the only one so far, which spares a copy, else grown in place."""
        cycle = self.cycle
        if cycle.response_complete:
            return
        kept: object = cycle.body
        if not kept:
            cycle.body = body  # type: ignore[assignment]
        elif isinstance(kept, bytearray):
            kept += body
        else:
            cycle.body = bytearray().join((cycle.body, body))
        if len(cycle.body) > _HIGH_WATER_BYTES:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The body is complete. What follows is another head, for which uvicorn's keep-alive timeout counts."""
        super().on_message_complete()
        self._in_head = True
        self._progress = True

    def _set_timer(self) -> None:
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._too_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        log.info("closed a connection that sent no request in %g s", HEAD_TIMEOUT_S)
        self.transport.close()

    def _refuse(self) -> None:
        log.info("refused a request whose head is over %d bytes", MAX_HEAD_BYTES)
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )
        self.transport.close()


def _begun_bytes(end: bytes) -> int:
    """The length of the longest suffix of `end` that is a prefix of an entry of `_SOUGHT`."""
    starts = (start for start in range(len(end)) if any(sought.startswith(end[start:]) for sought in _SOUGHT))
    return len(end) - next(starts, len(end))
