"""uvicorn's HTTP/1.1 protocol, with bounds on the time and memory that a client can take."""

import asyncio
import logging
import re
import socket
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.rest.errors import DISCONNECTED

MAX_HEAD_BYTES = 64 << 10  # also of what nothing reads: blank lines, extensions of chunks, trailers
MAX_HEADERS = 200
MAX_PIPELINED = 16  # requests of a connection that wait for the answer to the one before
MIN_WINDOW_BYTES = 10 << 10  # of a body, in each of its times below

# What a client may let the server wait for, and how many seconds; beside them there is the keep-alive time.
HEAD = "sent no request", 20.0
BODY = "sent its body too slowly", 10.0
ANSWER = "did not take its answer", 20.0
CLOSE = "did not close", 5.0  # after an answer that came before the whole request
GONE = "left before its answer", 0.1

_HIGH_WATER_BYTES = 256 << 10  # of a body, until the application takes them

# A client that offers HTTP/2 on a plain connection (Java's does by default) may be answered in HTTP/1.1; but the parser
# would take everything after the head for the other protocol. Under another name the offer is just a header.
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_NOT_TAKEN = b"\r\nx-offer:"
_SOUGHT = (b"\r\nupgrade:", b"\r\n\r\n")
_VERSION, _CONTINUE = b"HTTP/1.1 ", b"HTTP/1.1 100 "  # the starts of an answer and of an interim response

_ERROR = socket.SOL_SOCKET, socket.SO_ERROR

_TRAILERS: Any = deque(maxlen=0)  # headers after a body are dropped, because nothing reads them

log = logging.getLogger(__name__)


class _AnswerTransport:
    """The transport as uvicorn uses it: head and first body of an answer leave in one packet, and `close` closes it."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport, self.close = transport, close
        self._head: bytes | None = None
        self._begun = False
        self._probed = 0  # bytes of the head that are sent
        self.get_extra_info, self.is_closing = transport.get_extra_info, transport.is_closing
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading

    def write(self, data: bytes) -> None:
        if self._begun:
            self._transport.write(data if self._head is None else self._head + data)
            self._head = None
        elif data.startswith(_CONTINUE):
            self._transport.write(data)
        else:
            self._head, self._begun = data[self._probed :], True

    def end_answer(self) -> None:
        if self._head is not None:  # it has no body
            self._transport.write(self._head)
        self._head, self._begun, self._probed = None, False, 0

    def probe(self) -> None:
        """Send the first bytes of the answer: the system of a client that is gone replies with a reset."""
        if not self._begun:
            self._transport.write(_VERSION[self._probed :])
            self._probed = len(_VERSION)


class BoundedHeadProtocol(HttpToolsProtocol):
    """One connection. uvicorn's keep-alive timer limits each step of the client. `opened_s` is in the loop's time.

    An answer sent before the whole request is read ends the connection. uvicorn has no hook for any of this;
    its private methods are called only for its timer.
    """

    opened_s = 0.0
    _held = b""  # the end of the bytes of a head so far, which may be the start of something sought
    _in_head = True
    _keeps_alive = True  # after the request that is read
    _last = False  # no further request is read
    _lingers = False
    _unread = False  # unread bytes may be left, so that closing at once would reset the connection
    _progress = False
    _idle_bytes = _window_bytes = 0  # since the last progress; in this time for a body
    _waits: tuple[str, float] | None = None
    _due_s = 0.0
    _refusal = HTTPStatus.BAD_REQUEST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._raw = self.transport = transport
        self._gone = self.loop.create_future()
        self.app_state = {**self.app_state, DISCONNECTED: self._gone}
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency - 1:
            log.info("closed a connection at once: %d are open", len(self.connections))
            transport.abort()
            return
        self._answers = _AnswerTransport(transport, self._close)
        super().connection_made(self._answers)  # type: ignore[arg-type]
        self.opened_s = self.loop.time()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._gone.set_result(None)
        self._unset_keepalive_if_required()  # uvicorn leaves it after a reset
        if self.flow is not None:
            self._answers.close = self._raw.close  # else a reference cycle keeps the request

    def data_received(self, data: bytes) -> None:
        if self._last or self._lingers or self.transport.is_closing():
            return
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
        self._window_bytes += len(data)
        self._idle_bytes = 0 if self._progress else self._idle_bytes + len(data)
        if self._idle_bytes > MAX_HEAD_BYTES and not self._lingers:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.send_400_response("")
        self._watch()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to stay open after the client's EOF: only to answer a whole request, and never with TLS."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self.scheme == "https":
            return False
        self._last, cycle.keep_alive = True, False
        self._answers.probe()
        self._watch()
        return not self._raw.is_closing()

    def on_headers_complete(self) -> None:
        hosts = [name for name, _ in self.headers].count(b"host")
        taken = hosts == 1 or (hosts == 0 and self.parser.get_http_version() == "1.0")
        if len(self.headers) > MAX_HEADERS:
            self._refusal, taken = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, False
        if not taken or self.parser.should_upgrade() or len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("refused")  # `send_400_response` follows
        super().on_headers_complete()
        self._in_head, self._progress = False, True
        self.headers = _TRAILERS
        self._keeps_alive, self.cycle.keep_alive = self.cycle.keep_alive, False  # until the body is there

    def on_body(self, body: bytes) -> None:
        """A part of the body: kept as it is if it is the only one so far, which spares a copy, else grown in place."""
        cycle = self.cycle
        self._progress = True
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
        super().on_message_complete()
        self._in_head = self._progress = True
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps_alive

    def on_response_complete(self) -> None:
        self._answers.end_answer()
        if not self._lingers:
            super().on_response_complete()
        self._watch()

    def shutdown(self) -> None:
        self._keeps_alive = False
        super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse an unreadable request and close. If an earlier answer is due, no refusal is sent."""
        cycle = self.cycle
        self._unread = True
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            self._last, cycle.keep_alive = True, False
        elif self.pipeline or (cycle is not None and cycle.response_started and not cycle.response_complete):
            self._raw.abort()
        else:
            if cycle is not None:
                cycle.disconnected, cycle.waiting_for_100_continue = True, False
                cycle.message_event.set()
            status, text = self._refusal, f"{msg} {self._refusal.description}".encode()
            head = f"HTTP/1.1 {status} {status.phrase}\r\nconnection: close\r\ncontent-length: {len(text)}\r\n\r\n"
            self._raw.write(head.encode() + text)
            self.transport.close()

    def _close(self) -> None:
        """Close. A client that may still be sending would lose its answer by a reset, so what it sends is dropped."""
        if self._raw.is_closing():
            return
        self._answers.end_answer()
        if not self._lingers and (self._unread or (self.cycle is not None and self.cycle.more_body)):
            self._lingers = True
            self.flow.resume_reading()
            if self._raw.can_write_eof():
                self._raw.write_eof()
        else:
            self._raw.close()
        self._watch()

    def _watch(self) -> None:
        """Set the timer for the next step of the client. Its time runs from when that step became due."""
        cycle, waits = self.cycle, None
        if self not in self.connections:  # it is lost already
            return
        if self.flow.write_paused:
            waits = ANSWER
        elif self._lingers or self.transport.is_closing():
            waits = CLOSE
        elif cycle is None or (cycle.response_complete and self.headers is not _TRAILERS):
            waits = HEAD
        elif cycle.response_complete:
            waits = "sent no further request", self.timeout_keep_alive
        elif cycle.more_body:
            waits = BODY
        elif self._last:
            waits = GONE
        self._unset_keepalive_if_required()
        if waits != self._waits:
            self._waits = waits
            self._due_s = self.loop.time() + (waits[1] if waits else 0.0)
        if waits:
            self.timeout_keep_alive_task = self.loop.call_at(self._due_s, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, or restart the timer if enough of a body came or the client awaits its answer."""
        waited, self._waits = self._waits, None
        if waited == BODY:
            paused = self.flow.read_paused or self.cycle.waiting_for_100_continue
            over = not paused and self._window_bytes < MIN_WINDOW_BYTES
        else:
            over = waited != GONE or bool(self._raw.get_extra_info("socket").getsockopt(*_ERROR))
        self._window_bytes = 0
        if not over:
            self._watch()
            return
        log.info("closed a connection whose client %s", waited and waited[0])
        if waited == BODY:
            self._refusal = HTTPStatus.REQUEST_TIMEOUT
            self.send_400_response("")
        else:
            self._raw.abort()


def _begun_bytes(end: bytes) -> int:
    """Return the length of the longest suffix of `end` that is a prefix of an entry of `_SOUGHT`."""
    starts = (start for start in range(len(end)) if any(sought.startswith(end[start:]) for sought in _SOUGHT))
    return len(end) - next(starts, len(end))
