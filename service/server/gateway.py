"""The server of `topfive gateway`: REST over a data plane that calls inference servers. It loads no model."""

import asyncio
import logging
from collections.abc import Sequence

from service.common.clock import LoopClock
from service.common.metrics import Metrics
from service.common.settings import Settings
from service.common.upload_budget import UploadBudget
from service.gateway.dataplane import GatewayDataPlane
from service.gateway.replicas import ReplicaAccess, ReplicaClient, Target
from service.rest.app import create_app
from service.rest.image_request import ImageReader
from service.rest.server import RestServer, listen
from service.server.process import DrainLimit, drain, pre_stop, run_until_stopped
from service.server.security import api_keys, server_tls

log = logging.getLogger(__name__)


class Gateway:
    """REST over the replicas of `targets`. Made on the event loop; raises OSError if the port is taken."""

    def __init__(self, settings: Settings, targets: Sequence[Target], access: ReplicaAccess) -> None:
        self._settings = settings
        self.metrics = Metrics()
        clock = LoopClock()
        self.replicas = ReplicaClient(targets, clock, self.metrics, access=access)
        self._data_plane = GatewayDataPlane(self.replicas, clock, self.metrics, settings.timeout_s)
        budget = UploadBudget(settings.max_upload_bytes)
        reader = ImageReader(settings.limits, budget, settings.timeout_s, clock, self.metrics)
        keys = api_keys(settings, clock, self.metrics)
        app = create_app(self._data_plane, reader, self.metrics, settings.rest_access, keys)
        self.rest = RestServer(app, listen(settings.host, settings.port), settings.keep_alive_s, server_tls(settings))

    async def start(self) -> None:
        """Listen, and connect to the inference servers."""
        self.replicas.start()
        await self.rest.start()
        log.info("REST on http://%s:%d, for the models of %s", self._settings.host, self.rest.port, self.replicas)

    async def load(self) -> None:
        """Wait until the first inference server is ready."""
        await self.replicas.until_ready()
        log.info("ready")

    async def stop(self, hurry: asyncio.Event) -> None:
        """Turn readiness off, wait `pre_stop_s`, close the listener, and answer accepted requests.

        At the drain limit or `hurry` the rest is refused.
        """
        self._data_plane.stop()
        await pre_stop(self._settings.pre_stop_s, hurry)
        await drain(self.rest, self._answered, self._refuse, DrainLimit(self._settings.drain_s, hurry))
        await self.replicas.aclose()

    async def _answered(self, _over: asyncio.Task[None]) -> None:
        await self.rest.stop()

    async def _refuse(self) -> None:
        """Refuse the calls that wait for a server. A call that a server works on is cancelled with its request."""
        self.replicas.stop()


def run_gateway(settings: Settings, targets: Sequence[Target], access: ReplicaAccess) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns the exit status: 0 after a clean stop, 1 on a failed start."""
    return run_until_stopped(lambda _fatal: Gateway(settings, targets, access), settings)
