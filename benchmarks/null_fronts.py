"""A real service with or without front processes, over an engine that does nothing: `benchmarks.fronts` measures it."""

import asyncio
from pathlib import Path

import click
import uvloop

from benchmarks.null_server import NullEngine
from benchmarks.spending import tell
from models.artifact.artifact import Artifact
from service.common.settings import Settings
from service.engines.selection.result import Opened
from service.front.fronts import Fronts
from service.server.app import Core, Service


async def serve(gateways: int, model: str, artifacts: Path) -> None:
    """Serve `model` on free ports; the first line tells that of REST. It ends with its standard input."""
    settings = Settings(models=(model,), artifacts=artifacts, port=0, grpc_port=0, gateways=gateways)
    core = Core(settings, opener=_open)
    service = Fronts(core) if gateways else Service(core)
    await service.start()
    await service.load()
    await tell({"port": service.port if isinstance(service, Fronts) else service.rest.port})
    await service.stop(asyncio.Event())


def _open(artifact: Artifact) -> Opened:
    return Opened(NullEngine(artifact.manifest.classes))


@click.command()
@click.option("--gateways", type=click.IntRange(min=0), required=True)
@click.option("--model", required=True)
@click.option("--artifacts", type=click.Path(path_type=Path, exists=True), required=True)
def main(gateways: int, model: str, artifacts: Path) -> None:
    """Serve for `benchmarks.fronts`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(gateways, model, artifacts))


if __name__ == "__main__":
    main()
