"""The engine process of `topfive serve --gateways N`: it holds the models, and starts and tends N front processes."""

import asyncio
import json
import logging
import os
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from service.common.errors import NotReady
from service.common.settings import Settings
from service.front.desk import Desk, House
from service.front.photo import FrontPhotos
from service.front.region import make_region
from service.front.server import Inherited
from service.inference.classifier import LocalClassifier
from service.inference.model_directory import LocalDirectory
from service.repository.recovery import Recovery
from service.rest.listener import Counts, deafen, listen
from service.server.app import Core
from service.server.process import DrainLimit, Fatal, run_until_stopped

_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_WELL_S = 10.0  # a front that has lived so long starts again without a longer pause
_LAST_S = 3.0  # for a front to end after its link, or after the drain limit

log = logging.getLogger(__name__)


class Fronts:
    """A core, with front processes for transports. Made on the event loop; raises OSError where a port is taken.

    `fatal` is called with the reason once an NVIDIA card is lost to the process.
    """

    def __init__(self, core: Core, fatal: Fatal = log.critical) -> None:
        settings = core.settings
        if not hasattr(os, "memfd_create"):
            raise OSError("front processes share memory as only Linux has it; serve with --gateways 0")
        self._core = core
        self._fatal = fatal
        classifier = LocalClassifier(
            core.repository, FrontPhotos(settings.limits), clock=core.clock, metrics=core.metrics
        )
        self._house = House(classifier, LocalDirectory(core.repository), core.metrics, core.clock)
        self._listener = listen(settings.host, settings.port)
        try:
            self._reserved = reserve(settings.host, settings.grpc_port)
        except OSError:
            self._listener.close()
            raise
        self._counts = Counts.make()
        self.port: int = self._listener.getsockname()[1]
        self.grpc_port: int = self._reserved.getsockname()[1]
        self.fronts = [
            _Tended(number + 1, core.settings, self._house, _Ports(self._listener, self.grpc_port, self._counts))
            for number in range(settings.gateways)
        ]
        core.repository.on_change(self._changed)
        self._recovery = Recovery(core.repository, core.clock, settings.recover_s)

    async def start(self) -> None:
        """Start the fronts, which listen on both ports as soon as they are there; not ready until `load` has ended."""
        for front in self.fronts:
            front.start()
        host = self._core.settings.host
        log.info("REST on http://%s:%d, gRPC on %s:%d", host, self.port, host, self.grpc_port)

    async def load(self) -> None:
        """Load the configured models, and wait for the fronts. Raises TopfiveError where that cannot be."""
        await self._core.repository.start(self._core.settings.models)
        for front in self.fronts:
            await front.first()
        log.info("ready")

    async def stop(self, hurry: asyncio.Event) -> None:
        """Not ready, no new connections, answer what was accepted; at the drain limit or `hurry` refuse the rest."""
        self._core.repository.stop()
        with suppress(OSError):  # not every system has such filters
            deafen(self._listener)
        over = asyncio.create_task(DrainLimit(self._core.settings.drain_s, hurry).over())
        ends = {asyncio.create_task(front.stop()) for front in self.fronts}
        over.add_done_callback(self._hurry)
        await asyncio.wait(ends)
        over.cancel()
        self._listener.close()
        self._reserved.close()
        os.close(self._counts)
        await self._core.aclose(0)

    def _hurry(self, over: asyncio.Task[None]) -> None:
        if not over.cancelled():
            log.warning("the drain limit is over: what is left is refused")
            for front in self.fronts:
                front.hurry()

    def _changed(self) -> None:
        for front in self.fronts:
            front.tell_standing()
        if (reason := self._core.repository.card_lost) is not None:  # nothing on that card can be repaired from here
            self._fatal(reason)


@dataclass(frozen=True, slots=True)
class _Ports:
    """What all fronts share: the listener of REST, the number of the port of gRPC, and the table of connections."""

    listener: socket.socket
    grpc: int
    counts: int


class _Tended:
    """One front process after the other: when it ends unasked, the next is started, after a pause that grows."""

    def __init__(self, number: int, settings: Settings, house: House, ports: "_Ports") -> None:
        self._number = number
        self._settings = settings
        self._house = house
        self._ports = ports
        self._counts = Counts(ports.counts)
        self._desk: Desk | None = None
        self._leave = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._began = asyncio.Event()

    @property
    def listening(self) -> bool:
        """Whether a process of it takes connections now."""
        return self._desk is not None and self._desk.listening

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._tend())

    async def first(self) -> None:
        """Until it has listened once. Raises NotReady where its process ends before."""
        assert self._task is not None, "it was started"
        began = asyncio.create_task(self._began.wait())
        await asyncio.wait(set[asyncio.Future[Any]]({began, self._task}), return_when=asyncio.FIRST_COMPLETED)
        began.cancel()
        if not self._began.is_set() and not self._leave.is_set():
            self._task.result()

    def tell_standing(self) -> None:
        """Tell its process how the service stands."""
        if self._desk is not None:
            self._desk.tell_standing()

    async def stop(self) -> None:
        """Let its process answer what it has accepted, and end."""
        self._leave.set()
        if self._desk is not None:
            self._desk.tell_stop()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)  # what it failed with, `first` has told

    def hurry(self) -> None:
        """Let its process refuse the rest; it is killed where it does not end."""
        if self._desk is not None:
            self._desk.tell_stop()
        self._hurrying.set()

    async def _tend(self) -> None:
        loop, pause_s = asyncio.get_running_loop(), _PAUSE_S
        while True:
            began_s = loop.time()
            try:
                ended = f"ended with status {await self._live()}"
            except OSError as error:  # no descriptors or no memory for another process
                ended = f"cannot be started: {error}"
            if self._leave.is_set():
                return
            if not self._began.is_set():
                raise NotReady(f"front {self._number} {ended} before it listened; what the log says above may help")
            pause_s = _PAUSE_S if loop.time() - began_s >= _WELL_S else min(2 * pause_s, _LONGEST_PAUSE_S)
            log.error("front %d %s; starting it again in %g s", self._number, ended, pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._leave.wait()
            if self._leave.is_set():
                return

    async def _live(self) -> int:
        """One process from its start to its end; its exit status."""
        ours, theirs = socket.socketpair()
        region = make_region()
        ports = self._ports
        inherited = Inherited(self._number, ports.grpc, theirs.fileno(), region, ports.listener.fileno(), ports.counts)
        with ours, theirs:
            try:
                desk = self._desk = Desk(self._house, region, self._began.set)
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "service.front"),
                    *(self._settings.model_dump_json(), json.dumps(asdict(inherited))),
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=inherited.descriptors,
                    start_new_session=True,  # Ctrl-C is for the engine process alone
                )
            finally:
                os.close(region)
            theirs.close()
            await desk.connect(ours.dup())
        if self._leave.is_set():
            desk.tell_stop()
        try:
            return await self._ended(process, desk)
        finally:
            desk.link.close()
            self._counts.leave(self._number)  # or the others would let it go first
            self._desk = None

    async def _ended(self, process: asyncio.subprocess.Process, desk: Desk) -> int:
        """Its exit status. One that hangs is killed; so is one without its link, or in a hurry, that does not end."""
        ending = asyncio.create_task(process.wait())
        reasons = {asyncio.create_task(event.wait()) for event in (desk.ended, desk.hangs, self._hurrying)}
        try:
            await asyncio.wait({ending, *reasons}, return_when=asyncio.FIRST_COMPLETED)
            hangs = desk.hangs.is_set()
            if not hangs:
                await asyncio.wait({ending}, timeout=_LAST_S)
            if not ending.done():
                log.error("front %d %s; killing it", self._number, "hangs" if hangs else "does not end")
                process.kill()
            return await ending
        finally:
            for task in (ending, *reasons):
                task.cancel()


def reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps a port for those who share it; port 0 takes a free one. Raises OSError where it is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.create_server(address[:2], family=family) as alone:  # fails where another server is there
            address = alone.getsockname()
        kept = socket.socket(family, socket.SOCK_STREAM)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)  # it does not listen, so it takes none of their connections
        return kept
    except OSError as error:
        raise OSError(
            f"gRPC cannot listen on {host}:{port} ({error.strerror}); is another server there? "
            f"Choose another --grpc-port"
        ) from error


def run_fronted(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit status: 0 after a clean stop, 1 where it could not start or go on."""
    return run_until_stopped(lambda fatal: Fronts(Core(settings), fatal), settings.log_level)
