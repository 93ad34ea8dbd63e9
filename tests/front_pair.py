"""Both sides of a front in the test's process: a desk over a core, and a front's classifier at the other end."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service.common.clock import Clock, LoopClock
from service.common.metrics import Metrics
from service.common.settings import Settings
from service.front.calls import Calls
from service.front.classifier import FrontClassifier, FrontDirectory, FrontMetrics
from service.front.desk import Desk, House
from service.front.photo import FrontPhotos
from service.front.region import REGION_BYTES, Arena, make_region
from service.inference.classifier import LocalClassifier
from service.inference.model_directory import LocalDirectory
from service.preprocessing.preprocessor import Decoder
from service.server.app import Core
from tests.fakes import FakeEngine, opener
from tests.fleet import Counted


@dataclass(frozen=True, slots=True)
class Clocks:
    """What either side goes by."""

    desk: Clock = field(default_factory=LoopClock)
    front: Clock = field(default_factory=LoopClock)


_REAL = Clocks()


@dataclass
class Pair(Counted):
    """The engine process's side (core, desk) and the front's (arena, calls, and what the transports get)."""

    core: Core
    metrics: Metrics
    desk: Desk
    arena: Arena
    calls: Calls
    classifier: FrontClassifier
    directory: FrontDirectory
    counts: FrontMetrics

    def places(self) -> int:
        """Places taken at the model's batcher."""
        return self.core.repository._loaded["tiny"].batcher.places

    def deadline(self, within_s: float = 30.0) -> float:
        """So many seconds from now."""
        return self.core.clock.now() + within_s


@asynccontextmanager
async def front_pair(
    artifacts: Path, engine: FakeEngine, *, region_bytes: int = REGION_BYTES, clocks: Clocks = _REAL, **settings: object
) -> AsyncIterator[Pair]:
    """Such a pair with `tiny` on `engine`, ready; the sides of the link go by `clocks`."""
    values = Settings.model_validate({"artifacts": artifacts, "models": ("tiny",), "cpus": 2, **settings})
    core = Core(values, opener=opener(engine))
    await core.repository.start(values.models)
    classifier = LocalClassifier(core.repository, FrontPhotos(values.limits), clock=core.clock, metrics=core.metrics)
    ours, theirs = socket.socketpair()
    region = make_region(region_bytes)
    desk = Desk(House(classifier, LocalDirectory(core.repository), core.metrics, clocks.desk), region)
    decoder = Decoder(values.limits, threads=2, clock=core.clock)
    arena = Arena(region)
    calls = Calls(clocks.front, decoder, arena)
    os.close(region)
    await calls.connect(theirs)
    await desk.connect(ours)
    try:
        yield Pair(
            core,
            core.metrics,
            desk,
            arena,
            calls,
            FrontClassifier(calls),
            FrontDirectory(calls, clocks.front, values.timeout_s),
            FrontMetrics(calls, clocks.front, values.timeout_s),
        )
    finally:
        engine.gate.set()
        calls.link.close()
        desk.link.close()
        await asyncio.gather(calls.ended.wait(), desk.ended.wait())
        decoder.close()
        await core.aclose(5)
