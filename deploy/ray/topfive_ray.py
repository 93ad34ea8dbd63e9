"""topfive on Ray Serve. Each replica answers REST with models of its own; docs/deployment.md says how to start it."""

import os

import ray
from ray import serve

from service.server.asgi import HostedApp, create, settings_of


@serve.deployment
@serve.ingress()
class Topfive:
    """A replica. It has as many threads as Ray gives it CPUs."""

    def __init__(self) -> None:
        assigned = ray.get_runtime_context().get_assigned_resources()
        self.hosted = create(cpus=max(1, int(assigned.get("CPU", 1))))

    def __serve_build_asgi_app__(self) -> HostedApp:
        return self.hosted

    def check_health(self) -> None:
        """Raise NotReady if only a new process can answer. Ray then replaces the replica."""
        self.hosted.data_plane.check_alive()


def app(_arguments: dict[str, str]) -> serve.Application:
    """The application. Ray sends a replica no more requests than it admits; further ones wait in Ray's proxy."""
    return Topfive.options(max_ongoing_requests=settings_of(os.environ).capacity).bind()
