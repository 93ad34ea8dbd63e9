"""What carries requests to a server one at a time, and what comes back of each."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

OK = ""
"""The `failure` of an answer that is none."""

TIMEOUT = "timeout"
"""The `failure` of a request that was given up."""

_SHOWN_BYTES = 400


class LoadError(Exception):
    """Nothing can be measured, or no more; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended.

    `failure` is the kind of error, such as `status 429`, `timeout` or `connection refused`, and `OK` where there was
    none. `body` is the beginning of what the server said where that is an error. `timing` is what the server said of
    its own steps, in the form of the header Server-Timing. `received` counts bytes, head included.
    """

    failure: str
    body: bytes = b""
    timing: bytes = b""
    received: int = 0

    @property
    def said(self) -> str:
        """The beginning of the body on one line, for a person."""
        text = " ".join(self.body[:_SHOWN_BYTES].decode("utf-8", "replace").split())
        return f"{text} ..." if len(self.body) > _SHOWN_BYTES else text


class Line(ABC):
    """One place for one request at a time, with its own connection, which it makes again where it is gone.

    `payloads` are the requests that it can send, ready to go. `done` is called on the event loop once for each request
    with the line itself and the outcome; then the next one may be sent, from within that call if you like. `index` and
    `began` are what the request under way was sent with.
    """

    def __init__(self, payloads: "Payloads", done: "Done") -> None:
        self.payloads = payloads
        self.index = 0
        self.began = 0.0
        self.busy = False
        self.connects = 0
        self._done = done

    def send(self, index: int, began: float) -> None:
        """Send `payloads[index]`; `began` in seconds of the caller's clock counts as its start."""
        assert not self.busy
        self.index, self.began, self.busy = index, began, True
        self._send(self.payloads[index])

    def finish(self, outcome: Outcome) -> None:
        """The request under way has ended so."""
        self.busy = False
        self._done(self, outcome)

    @abstractmethod
    def _send(self, payload: bytes) -> None:
        """Send it, and call `finish` later."""

    @abstractmethod
    def give_up(self) -> None:
        """End the request under way as a `timeout`, and its connection."""

    @abstractmethod
    async def aclose(self) -> None:
        """End the connection; what is under way has no outcome."""


Payloads = list[bytes]
"""Requests, ready to be sent, one for each image."""

Done = Callable[[Line, Outcome], None]
"""Told how a request ended."""

MakeLine = Callable[[int, Done], Line]
"""Makes the line of that number; numbers spread over the addresses of the servers."""
