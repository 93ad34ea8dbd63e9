"""REST as an ASGI application, for platforms that host one, such as Ray Serve. It opens no port and has no gRPC."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.routing import Router
from starlette.types import ASGIApp

from service.common.settings import Settings
from service.common.types import ModelControl
from service.common.upload_budget import UploadBudget
from service.inference.local import LocalDataPlane
from service.repository.recovery import Recovery
from service.repository.watch import Watch
from service.rest.app import create_app
from service.rest.image_request import ImageReader
from service.server.data_plane import build_data_plane
from service.server.security import api_keys

_PLATFORM_SETTINGS = ("host", "port", "grpc_port")  # the platform listens, not topfive


class HostedApp(Router):
    """The application. It loads the configured models at the startup of its lifespan, and closes them at the shutdown.

    The host stops sending requests before the shutdown; those in flight have `drain_s` seconds.
    """

    def __init__(self, settings: Settings, data_plane: LocalDataPlane) -> None:
        clock, metrics = data_plane.clock, data_plane.metrics
        budget = UploadBudget(settings.max_upload_bytes)
        reader = ImageReader(settings.limits, budget, settings.timeout_s, clock, metrics)
        app = create_app(data_plane, reader, metrics, settings.rest_access, api_keys(settings, clock, metrics))
        super().__init__(default=app, redirect_slashes=False, lifespan=self._serve)
        self.data_plane = data_plane
        self._settings = settings
        self._recovery = Recovery(data_plane.repository, clock, settings.recover_s)
        self._watch = Watch(data_plane.repository, clock)

    @asynccontextmanager
    async def _serve(self, _app: ASGIApp) -> AsyncIterator[None]:
        repository = self.data_plane.repository
        try:
            await repository.start(self._settings.models)
            if self._settings.model_control is ModelControl.WATCH:
                self._watch.start()
            yield
        finally:
            self._watch.stop()
            repository.stop()
            await self.data_plane.aclose(self._settings.drain_s)


def settings_of(environment: Mapping[str, str], **values: Any) -> Settings:
    """Settings of the variables TOPFIVE_*, of which `values` replace some. Any host name is allowed by default."""
    given = {name: environment.get(f"TOPFIVE_{name.upper()}") for name in Settings.model_fields}
    read = {name: text for name, text in given.items() if text and name not in _PLATFORM_SETTINGS}
    return Settings.model_validate({"allowed_hosts": "*", **read, **values})


def create(**values: Any) -> HostedApp:
    """The application with the settings of the environment, of which `values` replace some.

    Raises pydantic.ValidationError if one does not fit, OSError if the file of API keys cannot be read.
    """
    settings = settings_of(os.environ, **values)
    return HostedApp(settings, build_data_plane(settings))
