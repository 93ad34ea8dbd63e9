"""The HTTP server under REST: uvicorn, with signals left to the service and a shutdown that loses nothing."""

import asyncio
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

_BACKLOG = 2048
_SETTLE_S = 0.2  # connections accepted a moment ago may not have sent their request yet


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
        await self._server.close_listeners()
        await asyncio.sleep(_SETTLE_S)

    async def stop(self) -> None:
        """Answer what was asked, close the connections, and end."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task

    def hurry(self) -> None:
        """Do not wait for open connections any longer."""
        self._server.force_exit = True


class _Server(uvicorn.Server):
    """Uvicorn's server, which would otherwise take the signals and end the process by raising them again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def close_listeners(self) -> None:
        """Stop listening once the connections that the kernel has queued were accepted."""
        await asyncio.sleep(0.01)
        for server in self.servers:
            server.close()


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"REST cannot listen on {host}:{port} ({error.strerror}); choose another --port") from error
