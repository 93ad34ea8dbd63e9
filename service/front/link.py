"""One end of the socket between a front process and the engine process."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

from service.front.messages import Message, Unframed, framed

log = logging.getLogger(__name__)


class Link(asyncio.Protocol):
    """Sends messages and hands over those that come: `received` each of them, `ended` once when the other is gone.

    What is sent in one turn of the event loop leaves together. Where `received` fails the link is closed: the two
    processes do not agree any more.
    """

    def __init__(self, received: Callable[[Any], None], ended: Callable[[], None]) -> None:
        self._received = received
        self._ended = ended
        self._unframed = Unframed()
        self._waiting: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    async def connect(self, end: socket.socket) -> None:
        """Begin on this end of a pair of sockets."""
        end.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket works."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        try:
            for message in self._unframed.feed(data):
                self._received(message)
        except Exception:
            log.critical("a message between the processes failed; its front ends", exc_info=True)
            self.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        """The other is gone, or `close` was called."""
        self._transport = None
        self._waiting.clear()
        self._ended()

    def send(self, message: Message) -> None:
        """Send it with the others of this turn; to an other that is gone nothing is sent."""
        if self._transport is None:
            return
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(framed(message))

    def close(self) -> None:
        """Send what waits, and end."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._waiting and self._transport is not None:
            self._transport.write(b"".join(self._waiting))
            self._waiting.clear()
