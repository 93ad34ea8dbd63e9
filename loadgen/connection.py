"""What the load generator needs of a connection, whatever it speaks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

RECONNECT_PAUSE_S = 0.05  # after a failed connection: without it the generator would connect in a tight loop

_SHOWN_BYTES = 400


class LoadTestError(Exception):
    """The servers cannot be measured; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Response:
    """How a request ended. `failure` is the kind of error, such as `status 429`; it is empty on success.

    `body` is the response body or the error message.
    """

    failure: str
    body: bytes = b""

    @property
    def text(self) -> str:
        """The beginning of the body on one line."""
        text = " ".join(self.body[:_SHOWN_BYTES].decode("utf-8", "replace").split())
        return f"{text} ..." if len(self.body) > _SHOWN_BYTES else text


class Connection(Protocol):
    """Sends one request at a time, and connects again if the connection was lost."""

    async def send(self, image: int, timeout_s: float) -> Response:
        """The response to the request with that image, by its index; where none comes in time, a failure."""

    async def aclose(self) -> None:
        """Close the connection."""


Connect = Callable[[int], Connection]
"""Makes the connection with that number, which connects at its first request; numbers are spread over the servers."""
