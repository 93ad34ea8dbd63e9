"""The composition root: builds everything from the settings, starts it, and stops it in the right order."""

import asyncio
import logging
from functools import partial

from models.catalog import CATALOG, Catalog
from service.common.clock import LoopClock
from service.common.cpus import cpu_quota
from service.common.gpus import cards
from service.common.metrics import Metrics
from service.common.settings import Settings
from service.common.types import BatchLimits
from service.common.upload_budget import UploadBudget
from service.engines.base import CPU, Engine
from service.engines.selection.opening import OpenEngine
from service.engines.selection.select import EngineOptions
from service.inference.local import LocalDataPlane
from service.preprocessing.preprocessor import Preprocessor
from service.repository.device_discovery import devices
from service.repository.device_memory import Device
from service.repository.recovery import Recovery
from service.repository.repository import Repository
from service.rest.app import create_app
from service.rest.image_request import ImageReader
from service.rest.server import RestServer, listen
from service.rpc.server import RpcServer
from service.rpc.servicer import Servicer
from service.server.process import DrainLimit, Fatal, drain, pre_stop, run_until_stopped

log = logging.getLogger(__name__)


class Core:
    """What answers, without any transport: a data plane over a repository."""

    def __init__(
        self,
        settings: Settings,
        *,
        catalog: Catalog = CATALOG,
        opener: OpenEngine | None = None,
    ) -> None:
        cpus = settings.cpus or cpu_quota()
        options = EngineOptions(
            settings.runtime,
            settings.precision,
            cpus,
            settings.max_batch,
            cache=settings.cache_folder,
            keep_compiled=True,
        )
        self.settings = settings
        self.clock = LoopClock()
        self.metrics = Metrics()
        self.repository = Repository(
            settings.artifacts,
            catalog,
            partial(_devices, options, settings.memory_budget_mib, opener),
            limits=self._limits,
            clock=self.clock,
            metrics=self.metrics,
        )
        preprocessor = Preprocessor(settings.limits, threads=cpus, clock=self.clock, mode=settings.decode)
        self.data_plane = LocalDataPlane(self.repository, preprocessor, clock=self.clock, metrics=self.metrics)

    def _limits(self, engine: Engine) -> BatchLimits:
        return BatchLimits(
            slots=engine.slots,
            max_batch=engine.max_batch,
            capacity=self.settings.capacity,
            slo_s=self.settings.slo_ms / 1000,
            apart=engine.device == CPU,
        )

    async def aclose(self, drain_s: float) -> None:
        """Finish what was accepted within `drain_s` seconds and give everything back."""
        await self.data_plane.aclose(drain_s)


class Service:
    """A core under both transports. Made on the event loop; raises OSError where a port is taken.

    `fatal` is called with the reason once an NVIDIA card is lost to the process.
    """

    def __init__(self, core: Core, fatal: Fatal = log.critical) -> None:
        settings = core.settings
        self._core = core
        self._fatal = fatal
        budget = UploadBudget(settings.max_upload_bytes)
        reader = ImageReader(settings.limits, budget, settings.timeout_s, core.clock, core.metrics)
        app = create_app(core.data_plane, reader, core.metrics)
        servicer = Servicer(
            core.data_plane,
            limits=settings.limits,
            budget=budget,
            timeout_s=settings.timeout_s,
            clock=core.clock,
            metrics=core.metrics,
        )
        self.rest = RestServer(app, listen(settings.host, settings.port))
        try:
            self.rpc = RpcServer(servicer, settings.host, settings.grpc_port)
        except OSError:
            self.rest.close()
            raise
        self._announcing: set[asyncio.Task[None]] = set()
        core.repository.on_change(self._announce)
        core.repository.on_change(self._check_card)
        self._recovery = Recovery(core.repository, core.clock, settings.recover_s)

    async def start(self) -> None:
        """Listen on both ports; not ready until `load` has ended."""
        await self.rest.start()
        await self.rpc.start()
        host = self._core.settings.host
        log.info("REST on http://%s:%d, gRPC on %s:%d", host, self.rest.port, host, self.rpc.port)

    async def load(self) -> None:
        """Load the configured models. Raises TopfiveError where one cannot be."""
        await self._core.repository.start(self._core.settings.models)
        log.info("ready")

    async def stop(self, hurry: asyncio.Event) -> None:
        """Turn readiness off, wait `pre_stop_s`, close the listeners, and answer what was accepted.

        At the drain limit or `hurry` the rest is refused.
        """
        self._core.repository.turn_unready()
        await pre_stop(self._core.settings.pre_stop_s, hurry)
        self._core.repository.stop()
        limit = DrainLimit(self._core.settings.drain_s, hurry)
        await drain(self.rest, self._answered, partial(self._core.repository.aclose, 0), limit)
        await self._core.aclose(0)

    async def _answered(self, over: asyncio.Task[None]) -> None:
        """Once both servers have given every answer they owe."""
        await asyncio.gather(self.rest.stop(), self.rpc.stop(over))

    def _check_card(self) -> None:
        """Nothing on a card that is lost can be repaired from here."""
        if (reason := self._core.repository.card_lost) is not None:
            self._fatal(reason)

    def _announce(self) -> None:
        """Tell gRPC health checks; REST reads the repository at each request."""
        task = asyncio.get_running_loop().create_task(self.rpc.set_serving(self._core.repository.ready))
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)


def _devices(options: EngineOptions, budget_mib: int, opener: OpenEngine | None) -> list[Device]:
    return [Device(CPU, opener)] if opener else devices(options, budget_mib, cards)


def run(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit status: 0 after a clean stop, 1 where it could not start or go on."""
    return run_until_stopped(lambda fatal: Service(Core(settings), fatal), settings.log_level)
