"""Runs a server as a process: logging, signals, drain, exit status."""

import asyncio
import gc
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import uvloop

from service.common.errors import ShuttingDown, TopfiveError
from service.common.logs import configure_logging
from service.common.settings import Settings
from service.rest.server import RestServer

_REFUSALS_S = 0.3  # part of the drain limit, in which the refusals at its end reach their clients
_JOIN_S = 0.5

_STOPS = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger(__name__)


class Server(Protocol):
    """A server that a process runs. Its constructor raises OSError if a port is taken."""

    async def start(self) -> None:
        """Listen. Readiness stays off until `load` has ended."""

    async def load(self) -> None:
        """Become ready. Raises TopfiveError if that fails, ShuttingDown if `stop` comes first."""

    async def stop(self, hurry: asyncio.Event) -> None:
        """Answer accepted requests, refuse them at `hurry`, and end."""


class ExitReason(Enum):
    """Why a server ended: a signal, a failed start, or a failure that only a new process can fix."""

    STOPPED = 0
    FAILED = 1
    FATAL = 2

    @property
    def status(self) -> int:
        return int(self is not ExitReason.STOPPED)


Fatal = Callable[[str], None]
"""Called on the event loop with the reason if only a new process can serve. This process then ends at once."""


@dataclass(frozen=True, slots=True)
class DrainLimit:
    """The end of the drain: after `drain_s` seconds, or when `hurry` is set."""

    drain_s: float
    hurry: asyncio.Event

    async def over(self) -> None:
        """Wait until the limit, less the time that the refusals take to reach their clients."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self.drain_s - _REFUSALS_S)):
                await self.hurry.wait()


async def pre_stop(seconds: float, hurry: asyncio.Event) -> None:
    """Wait for `seconds` or until `hurry`, so that load balancers see readiness off and send requests elsewhere."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await hurry.wait()


async def drain(
    rest: RestServer,
    answered: Callable[[asyncio.Task[None]], Awaitable[None]],
    refuse: Callable[[], Awaitable[None]],
    limit: DrainLimit,
) -> None:
    """Accept no new connection, and wait for `answered`. At the limit `refuse` the rest and cancel its requests.

    `answered` gets the task that ends at the limit. It stops the servers, and ends once every answer is sent.
    """
    over = asyncio.create_task(limit.over())
    await rest.stop_listening(over)
    answering = asyncio.ensure_future(answered(over))
    await asyncio.wait({answering, over}, return_when=asyncio.FIRST_COMPLETED)
    if not answering.done():
        log.warning("the drain limit is over: open requests are refused")
        await refuse()
        await rest.cancel_requests()
    await answering
    over.cancel()


def run_until_stopped(make: Callable[[Fatal], Server], settings: Settings) -> int:
    """Run the server that `make` returns on an event loop, until SIGTERM or Ctrl-C.

    Returns the exit status: 0 after a clean stop, 1 if it could not start or had a fatal error.
    """
    configure_logging(settings.log_level, settings.log_format, answers=settings.access_log)
    with suppress(ValueError, OSError):  # some systems say "unlimited" and do not allow it
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its starts and stops are logged here
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            exit_reason = runner.run(_serve(make))
    except Exception:  # a bug; pool threads that are still open would keep the process from ending
        log.critical("the server failed", exc_info=True)
        exit_reason = ExitReason.FAILED
    if stuck := _threads_left():
        log.error("%s did not return; the process ends without it", ", ".join(thread.name for thread in stuck))
        _exit(exit_reason.status)  # a plain exit would wait for those threads for ever
    if exit_reason is ExitReason.FATAL:
        _exit(exit_reason.status)  # a library that releases a lost GPU at exit may abort with another status
    return exit_reason.status


def _threads_left() -> list[threading.Thread]:
    """The non-daemon threads that are still alive after a total wait of `_JOIN_S` seconds."""
    until = time.monotonic() + _JOIN_S
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    for thread in others:
        thread.join(max(0.0, until - time.monotonic()))
    return [thread for thread in others if thread.is_alive()]


def _exit(status: int) -> None:
    """End the process without waiting for threads."""
    logging.shutdown()
    os._exit(status)


async def _serve(make: Callable[[Fatal], Server]) -> ExitReason:
    stop, hurry, fatal = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.info("stopping at once")
            hurry.set()
        else:
            log.info("stopping: answering accepted requests; send the signal again to stop at once")
            stop.set()

    def on_fatal(reason: str) -> None:
        if not fatal.is_set():
            log.critical("ending, so that a new process can take over: %s", reason)
        for event in (fatal, hurry, stop):
            event.set()

    loop = asyncio.get_running_loop()
    for number in _STOPS:
        loop.add_signal_handler(number, on_signal)
    try:
        server = make(on_fatal)
    except OSError as error:
        log.error("%s", error)
        return ExitReason.FAILED
    await server.start()
    loading = asyncio.create_task(server.load())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({loading, stopped}, return_when=asyncio.FIRST_COMPLETED)
    failed = await _failed(loading) if loading.done() else False
    if not failed:
        gc.freeze()  # not garbage: a full collection took 58 ms, once in some thousand requests
        await stop.wait()
    stopped.cancel()
    await server.stop(hurry)
    log.info("stopped")
    await asyncio.gather(loading, stopped, return_exceptions=True)
    if fatal.is_set():
        return ExitReason.FATAL
    return ExitReason.FAILED if failed else ExitReason.STOPPED


async def _failed(loading: asyncio.Task[None]) -> bool:
    """Whether the configured models could not be loaded; logs the reason."""
    try:
        await loading
    except ShuttingDown:
        return False
    except TopfiveError as error:
        log.error("%s", error.detail)
        return True
    return False
