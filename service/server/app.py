"""Starts REST and gRPC over a data plane, and stops them in the right order."""

import asyncio
import logging
from functools import partial
from pathlib import Path

from service.common.settings import Settings
from service.common.types import ModelControl
from service.common.upload_budget import UploadBudget
from service.inference.local import LocalDataPlane
from service.repository.recovery import Recovery
from service.repository.watch import Watch
from service.rest.app import create_app
from service.rest.image_request import ImageReader
from service.rest.server import RestServer, listen
from service.rpc.in_flight import RequestsInFlight
from service.rpc.server import RpcLimits, RpcServer
from service.server.data_plane import build_data_plane
from service.server.process import DrainLimit, Fatal, drain, pre_stop, run_until_stopped
from service.server.security import api_keys, server_tls

log = logging.getLogger(__name__)


class Service:
    """A data plane under REST and gRPC. Made on the event loop; raises OSError if a port is taken.

    `fatal` is called with the reason if this process loses an NVIDIA GPU.
    """

    def __init__(self, settings: Settings, data_plane: LocalDataPlane, fatal: Fatal = log.critical) -> None:
        self._settings = settings
        self._data_plane = data_plane
        self._repository = repository = data_plane.repository
        self._fatal = fatal
        budget = UploadBudget(settings.max_upload_bytes)
        reader = ImageReader(settings.limits, budget, settings.timeout_s, data_plane.clock, data_plane.metrics)
        keys = api_keys(settings, data_plane.clock, data_plane.metrics)
        app = create_app(data_plane, reader, data_plane.metrics, settings.rest_access, keys)
        in_flight = RequestsInFlight(
            limits=settings.limits,
            budget=budget,
            timeout_s=settings.timeout_s,
            clock=data_plane.clock,
            metrics=data_plane.metrics,
        )
        tls = server_tls(settings)
        self.rest = RestServer(app, listen(settings.host, settings.port), settings.keep_alive_s, tls)
        try:
            self.rpc = RpcServer(
                data_plane, in_flight, settings.host, settings.grpc_port, _rpc_limits(settings), keys, tls
            )
        except OSError:
            self.rest.close()
            raise
        self._announcing: set[asyncio.Task[None]] = set()
        data_plane.on_change(self._announce)
        repository.on_change(self._check_card)
        self._recovery = Recovery(repository, data_plane.clock, settings.recover_s)
        self._watch = Watch(repository, data_plane.clock)

    async def start(self) -> None:
        """Listen on both ports. Readiness stays off until `load` has ended."""
        await self.rest.start()
        await self.rpc.start()
        host = self._settings.host
        scheme = "https" if self._settings.tls_cert else "http"
        log.info("REST on %s://%s:%d, gRPC on %s:%d", scheme, host, self.rest.port, host, self.rpc.port)

    async def load(self) -> None:
        """Load the configured models. Raises TopfiveError if one cannot be loaded."""
        await self._repository.start(self._settings.models)
        if self._settings.model_control is ModelControl.WATCH:
            self._watch.start()
        url = f"{'https' if self._settings.tls_cert else 'http'}://{_host(self._settings.host)}:{self.rest.port}"
        key = " -H 'X-Api-Key: KEY'" if self._settings.api_keys_file else ""
        log.info("ready: open %s/docs, or run: curl%s -F image=@%s %s/predict", url, key, _photo(), url)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Turn readiness off, wait `pre_stop_s`, close the listeners, and answer accepted requests.

        At the drain limit or `hurry` the rest is refused.
        """
        self._repository.turn_unready()
        self._watch.stop()
        await pre_stop(self._settings.pre_stop_s, hurry)
        self._repository.stop()
        limit = DrainLimit(self._settings.drain_s, hurry)
        await drain(self.rest, self._answered, partial(self._repository.aclose, 0), limit)
        await self._data_plane.aclose(0)

    async def _answered(self, over: asyncio.Task[None]) -> None:
        """Wait until both servers have answered every accepted request."""
        await asyncio.gather(self.rest.stop(), self.rpc.stop(over))

    def _check_card(self) -> None:
        """Call `fatal` if a GPU is lost: this process cannot repair it."""
        if (reason := self._repository.card_lost) is not None:
            self._fatal(reason)

    def _announce(self) -> None:
        """Update gRPC health checks. REST reads the repository at each request."""
        task = asyncio.get_running_loop().create_task(self.rpc.set_serving(self._data_plane.ready))
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)


def _host(listens_on: str) -> str:
    """The host part of a URL for a client on this machine."""
    if listens_on in ("", "0.0.0.0", "::"):
        return "localhost"
    return f"[{listens_on}]" if ":" in listens_on else listens_on


def _photo() -> Path:
    """A photo that comes with topfive, relative to the working directory if it is below that."""
    working, photo = Path.cwd(), Path(__file__).resolve().parents[2] / "export" / "photos" / "zebra.jpeg"
    return photo.relative_to(working) if photo.is_relative_to(working) else photo


def _rpc_limits(settings: Settings) -> RpcLimits:
    return RpcLimits(
        max_image_bytes=settings.max_image_bytes,
        max_read_bytes=settings.max_upload_bytes,
        idle_s=settings.grpc_max_connection_idle_s,
        age_s=settings.grpc_max_connection_age_s,
        grace_s=settings.timeout_s,
    )


def run(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns the exit status: 0 after a clean stop, else 1."""
    return run_until_stopped(lambda fatal: Service(settings, build_data_plane(settings), fatal), settings)
