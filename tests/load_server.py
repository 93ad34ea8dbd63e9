"""An HTTP server that answers as it is told, byte for byte, and keeps what it was asked."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came, headers in lower case, and the connection it came on, from 0."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass(frozen=True, slots=True)
class Say:
    """The pieces to send, each on its own, and whether the connection ends then."""

    pieces: tuple[bytes, ...]
    close: bool = False


SILENCE = Say(())
HANG_UP = Say((), close=True)

Script = Callable[[int, Asked], Say]
"""What to say to the request of that number, from 0."""


def reply(body: bytes = b"{}", status: str = "200 OK", *headers: str) -> Say:
    """A whole answer with its length."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])
    return Say((head.encode() + body,))


@dataclass(slots=True)
class Scripted:
    """The running server: its address and all that it was asked."""

    script: Script
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        number = self.connections
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                method, path, _ = first.split(" ")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(method, path, headers, body, number)
                self.asked.append(asked)
                say = self.script(len(self.asked) - 1, asked)
                for piece in say.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if say.close:
                    return
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def scripted(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Scripted]:
    """A server that follows the script, on a free port of this machine; over TLS where that is given."""
    running = Scripted(script)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(running.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    running.url = ("https" if tls else "http") + "://{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield running
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
