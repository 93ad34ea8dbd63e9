"""An HTTP server that sends scripted bytes, and keeps the requests that it got."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came, and the number of its connection, from 0."""

    path: str
    body: bytes
    connection: int


@dataclass(frozen=True, slots=True)
class Send:
    """The pieces to send one by one, and whether the connection closes then."""

    pieces: tuple[bytes, ...]
    close: bool = False


SILENCE = Send(())
HANG_UP = Send((), close=True)

Script = Callable[[int], Send]
"""What to send for the request of that number, from 0."""


def reply(body: bytes = b"{}", status: str = "200 OK", *headers: str) -> Send:
    """A response with its length."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])
    return Send((head.encode() + body,))


def always(send: Send) -> Script:
    """The same for each request."""
    return lambda _number: send


@dataclass(slots=True)
class ScriptedServer:
    """A running server: its URL and what it got."""

    script: Script
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        number = self.connections
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append(Request(first.split(" ")[1], body, number))
                send = self.script(len(self.requests) - 1)
                for piece in send.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if send.close:
                    return
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def serving_script(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
    """A server on a free port of this machine."""
    running = ScriptedServer(script)
    async with await asyncio.start_server(running.serve, "127.0.0.1", 0, ssl=tls) as server:
        running.url = ("https" if tls else "http") + "://{}:{}".format(*server.sockets[0].getsockname())
        yield running
