"""The HTTP server under REST: uvicorn, with signals left to the service and a shutdown that loses nothing."""

import asyncio
import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI

_BACKLOG = 2048

_KEEP_ALIVE_S = 75  # longer than the idle time of common load balancers, so that they close first

# When it stops: how long open connections may still send, and how long those that never have.
_SETTLE_S = 0.1
_FIRST_REQUEST_S = 1.0


class RestServer:
    """A uvicorn server, bound when it is made. `port` is the real one. Raises OSError where it cannot be bound."""

    def __init__(self, app: FastAPI, host: str, port: int, *, drain_s: float) -> None:
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(drain_s) + 1,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections."""
        self._task = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)

    async def settle(self) -> None:
        """Accept no new connection, and let those accepted send what they came with."""
        await self._server.stop_listening(self._socket)
        await asyncio.sleep(_SETTLE_S)
        limit = time.monotonic() + _FIRST_REQUEST_S
        while self._server.expects_requests() and time.monotonic() < limit:  # noqa: ASYNC110 - no event says it
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Answer what was asked, close the connections, and end."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task

    def close(self) -> None:
        """Give the port back without ever having started."""
        self._socket.close()

    def hurry(self) -> None:
        """Do not wait for open connections any longer."""
        self._server.force_exit = True


class _Server(uvicorn.Server):
    """Uvicorn's server, which would otherwise take the signals and end the process by raising them again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def stop_listening(self, listener: socket.socket) -> None:
        """Accept the connections that the kernel holds in its queue, which closing would reset, and no later ones."""
        waiting: list[socket.socket] = []
        with suppress(BlockingIOError):
            while True:
                waiting.append(listener.accept()[0])
        listener.shutdown(socket.SHUT_RDWR)
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)

    def expects_requests(self) -> bool:
        """Whether a connection is open that has not sent its first request yet."""
        return any(getattr(connection, "cycle", None) is None for connection in self.server_state.connections)

    def _protocol(self) -> asyncio.Protocol:
        protocol: type[Any] = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"REST cannot listen on {host}:{port} ({error.strerror}); choose another --port") from error
