"""A front process: both transports over the engine process that started it, which it ends with."""

import asyncio
import json
import logging
import signal
import socket
from dataclasses import dataclass
from functools import partial

from service.common.clock import LoopClock
from service.common.cpus import cpu_quota
from service.common.errors import NotReady, ShuttingDown
from service.common.metrics import UNKNOWN
from service.common.settings import Settings
from service.common.upload_budget import UploadBudget
from service.front.calls import Calls
from service.front.classifier import FrontClassifier, FrontDirectory, FrontMetrics
from service.front.messages import Listening
from service.front.region import Arena
from service.preprocessing.preprocessor import Decoder
from service.rest import endpoints
from service.rest.app import create_app
from service.rest.image_request import Intake
from service.rest.listener import Counts, SharedDoor
from service.rest.server import RestServer
from service.rpc.server import PortUse, RpcServer
from service.rpc.servicer import Servicer
from service.server.process import STOPS, DrainLimit, drain, run_until_stopped

_STOP = signal.SIGUSR1
"""What a front takes for the order to stop. SIGTERM and Ctrl-C reach whole groups: the engine process alone heeds them,
and says in which order all end."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inherited:
    """What the engine process gives a front: its number, the gRPC port, and open descriptors.

    These are one end of the pair of sockets, the region for samples, the socket that listens for REST, and the table of
    how many connections each front has.
    """

    number: int
    grpc_port: int
    link: int
    region: int
    listener: int
    counts: int

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All of them."""
        return self.link, self.region, self.listener, self.counts


class Front:
    """Both transports, with the engine process behind them. Made on the event loop; raises OSError at a taken port."""

    def __init__(self, settings: Settings, inherited: Inherited) -> None:
        self._settings = settings
        self._end = socket.socket(fileno=inherited.link)
        self._stopping = False
        self._announcing: set[asyncio.Task[None]] = set()
        clock = LoopClock()
        self._decoder = Decoder(
            settings.limits,
            threads=share(settings.cpus or cpu_quota(), settings),
            clock=clock,
            decode=settings.decode,
        )
        self._calls = Calls(
            clock,
            self._decoder,
            Arena(inherited.region),
            on_standing=self._announce,
            on_stop=partial(signal.raise_signal, _STOP),
        )
        directory = FrontDirectory(self._calls, clock, settings.timeout_s)
        metrics = FrontMetrics(self._calls, clock, settings.timeout_s)
        classifier = FrontClassifier(self._calls)
        budget = UploadBudget(share(settings.max_upload_bytes, settings))
        intake = Intake(settings.limits, budget, settings.timeout_s, clock, metrics)
        app = create_app(
            endpoints.predictions(classifier, intake),
            endpoints.models(directory),
            endpoints.health(directory, metrics),
            refused=partial(metrics.answered, UNKNOWN),
        )
        listener = socket.socket(fileno=inherited.listener)
        servicer = Servicer(classifier, directory, budget=budget, timeout_s=settings.timeout_s, clock=clock)
        self._rest = RestServer(app, SharedDoor(listener, Counts(inherited.counts), inherited.number))
        self._rpc = RpcServer(servicer, settings.host, inherited.grpc_port, PortUse.SHARED)

    async def start(self) -> None:
        """Listen on both ports, and say so."""
        await self._calls.connect(self._end)
        await self._rest.start()
        await self._rpc.start()
        self._announce()
        self._calls.link.send(Listening())

    async def load(self) -> None:
        """Until the engine process is gone: raises NotReady then, or ShuttingDown where this one was stopped."""
        await self._calls.ended.wait()
        if self._stopping:
            raise ShuttingDown
        raise NotReady("the engine process is gone; this front ends")

    async def stop(self, hurry: asyncio.Event) -> None:
        """No new connections, answer what was accepted; at the drain limit or `hurry` refuse the rest."""
        self._stopping = True
        await drain(self._rest, self._answered, self._refuse, DrainLimit(self._settings.drain_s, hurry))
        self._decoder.close()
        self._calls.link.close()

    async def _answered(self, over: asyncio.Task[None]) -> None:
        """Once both servers have given every answer they owe."""
        await asyncio.gather(self._rest.stop(), self._rpc.stop(over))

    async def _refuse(self) -> None:
        self._calls.refuse()

    def _announce(self) -> None:
        """Tell gRPC health checks; REST reads it at each request."""
        task = asyncio.get_running_loop().create_task(self._rpc.set_serving(self._calls.standing.ready is None))
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)


def share(whole: int, settings: Settings) -> int:
    """One front's part of what all have together, at least 1."""
    return max(1, whole // max(1, settings.gateways))


def main(arguments: list[str]) -> int:
    """Serve until the engine process says to stop, or is gone: with status 1 then."""
    values, inherited = Settings.model_validate_json(arguments[0]), Inherited(**json.loads(arguments[1]))
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    name = f"front {inherited.number}"
    return run_until_stopped(lambda _fatal: Front(values, inherited), values.log_level, signals=(_STOP,), name=name)
