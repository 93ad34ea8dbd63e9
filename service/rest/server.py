"""The HTTP server under REST: uvicorn, without its signal handlers, stopped without losing a request."""

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from service.common.tls import ServerTls
from service.rest.http_protocol import BoundedHeadProtocol

_CLOSE = (b"connection", b"close")

_BACKLOG = 2048
_MAX_CONNECTIONS = 10_000

# At the stop: how long open connections may still send, and how old a connection may be that has sent nothing.
_SETTLE_S = 0.1
_FIRST_REQUEST_S = 5.0
_REFUSAL_S = 0.05


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError that names the option to change."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(
            f"REST cannot listen on {host}:{port} ({error.strerror}); choose another --host or --port"
        ) from error


class RestServer:
    """A uvicorn server for the connections to `listener`. `port` is the real one.

    A connection may be idle for `keep_alive_s` after an answer. Connections beyond 3/8 of the descriptors that the
    process may open are closed at once, so that descriptors are left for gRPC and files.
    """

    def __init__(
        self, app: ASGIApp, listener: socket.socket, keep_alive_s: float, tls: ServerTls | None = None
    ) -> None:
        self._listener = listener
        self.port: int = listener.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=BoundedHeadProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # `ProxyHeaders` reads them, from trusted addresses only
            timeout_keep_alive=keep_alive_s,  # type: ignore[arg-type] # uvicorn adds it to the time of the loop
            limit_concurrency=1 + min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 8, _MAX_CONNECTIONS),
        )
        if tls is not None:
            config.load()
            config.ssl = tls.context()
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve([self._listener]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)

    async def stop_listening(self, over: asyncio.Task[None]) -> None:
        """Accept no new connection. Accepted ones may send their requests, until `over` at the latest."""
        self._server.announce_close()
        await self._server.close_listener(self._listener)
        await asyncio.wait({over}, timeout=_SETTLE_S)
        while self._server.expects_requests() and not over.done():
            await asyncio.wait({over}, timeout=0.02)

    async def stop(self) -> None:
        """Answer accepted requests, close the connections, and end."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task

    def close(self) -> None:
        """Close the listening socket of a server that never started."""
        self._listener.close()

    async def cancel_requests(self) -> None:
        """Cancel the requests that are still open. Those without an answer get 503."""
        await asyncio.sleep(_REFUSAL_S)
        for task in list(self._server.server_state.tasks):
            task.cancel()
        await asyncio.sleep(_REFUSAL_S)
        self._server.force_exit = True


class _Server(uvicorn.Server):
    """Uvicorn's server without its signal handling, which would end the process by raising the signals again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def close_listener(self, listener: socket.socket) -> None:
        """Accept the connections in the kernel's queue, which closing would reset, and no later ones."""
        waiting: list[socket.socket] = []
        with suppress(OSError):  # until the queue is empty or no file descriptor is left
            while True:
                waiting.append(listener.accept()[0])
        with suppress(OSError):  # not every system lets a listener be shut down before it is closed
            listener.shutdown(socket.SHUT_RDWR)
        for server in self.servers:
            server.close()
        for connection in waiting:
            connection.setblocking(False)
            await self._begin(connection)

    def announce_close(self) -> None:
        """Add `Connection: close` to every response, so that clients send no further request on the connection."""
        for headers in (
            self.server_state.default_headers,
            self.config.encoded_headers,
        ):  # the second is made from the first
            headers.append(_CLOSE)

    def expects_requests(self) -> bool:
        """Whether an open connection has not sent its first request yet and is new enough to wait for."""
        oldest_s = asyncio.get_running_loop().time() - _FIRST_REQUEST_S
        return any(
            isinstance(connection, BoundedHeadProtocol) and connection.cycle is None and connection.opened_s > oldest_s
            for connection in self.server_state.connections
        )

    async def _begin(self, connection: socket.socket) -> None:
        with suppress(OSError):  # the connection is closed already
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)

    def _protocol(self) -> asyncio.Protocol:
        protocol: type[Any] = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made
