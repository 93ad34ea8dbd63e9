"""A connection that sends one request at a time, and how a request ends."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

OK = ""
"""The `failure` of a successful request."""

TIMEOUT = "timeout"
"""The `failure` of a request that had no response in time."""

_SHOWN_BYTES = 400


class LoadTestError(Exception):
    """The servers cannot be measured; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request's result.

    `failure` is the kind of error, such as `status 429`, `timeout` or `connection refused`; it is `OK`, the empty
    string, on success. `body` is the response body or the error message. `timing` is a Server-Timing header value.
    `received` is the size of the response in bytes: with the HTTP header, or of the gRPC message alone. `status` is the
    HTTP status (0 for gRPC), and `location` the Location header.
    """

    failure: str
    body: bytes = b""
    timing: bytes = b""
    received: int = 0
    status: int = 0
    location: bytes = b""

    @property
    def text(self) -> str:
        """The beginning of the body on one line."""
        text = " ".join(self.body[:_SHOWN_BYTES].decode("utf-8", "replace").split())
        return f"{text} ..." if len(self.body) > _SHOWN_BYTES else text


class Connection(ABC):
    """Sends one request at a time, and connects again if the connection was lost.

    `payloads` are the requests that it can send. It calls `on_result` on the event loop once for each request, with
    itself and the result; `on_result` may send the next request. Of the request in
    flight, `index` is the place in `payloads`, and `started` the time from which its latency counts.
    """

    def __init__(self, payloads: Sequence[bytes], on_result: "OnResult") -> None:
        self.payloads = payloads
        self.index = 0
        self.started = 0.0
        self.busy = False
        self.connects = 0
        self._on_result = on_result

    def send(self, index: int, started: float) -> None:
        """Send `payloads[index]`; latency counts from `started`, in seconds of the caller's clock."""
        assert not self.busy
        self.index, self.started, self.busy = index, started, True
        self._send(self.payloads[index])

    def time_out(self) -> None:
        """End the request in flight as a timeout."""
        self._abort()
        self._finish(RequestResult(TIMEOUT))

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connection; a request in flight has no result."""

    @abstractmethod
    def _send(self, payload: bytes) -> None:
        """Send the payload, and call `_finish` later."""

    @abstractmethod
    def _abort(self) -> None:
        """Drop the request in flight and ignore its response."""

    def _finish(self, result: RequestResult) -> None:
        self.busy = False
        self._on_result(self, result)


OnResult = Callable[[Connection, RequestResult], None]

OpenConnection = Callable[[int, OnResult], Connection]
"""Opens the connection with that number; numbers are spread over the servers."""


async def send_once(connect: Callable[[OnResult], Connection], timeout_s: float) -> RequestResult:
    """Send the first payload on its own connection, and return the result."""
    results: asyncio.Queue[RequestResult] = asyncio.Queue()
    connection = connect(lambda _connection, result: results.put_nowait(result))
    connection.send(0, 0.0)
    try:
        return await asyncio.wait_for(results.get(), timeout_s)
    except TimeoutError:
        return RequestResult(TIMEOUT)
    finally:
        await connection.aclose()
