"""Engines that are opened in the other process of `topfive tune`, where a test cannot reach: found by name."""

import os
import threading

from models.artifact.artifact import Artifact
from service.common.types import Probabilities, Rows
from service.engines.base import Engine, EngineUnavailableError
from service.offline.tuning.candidates import EngineSetup
from tests.fakes import FakeEngine


class StuckEngine(FakeEngine):
    """Never returns from a batch that is larger than `answered`."""

    def __init__(self, classes: int, answered: int, slots: int = 1) -> None:
        super().__init__(classes, slots=slots)
        self._answered = answered

    def run(self, rows: Rows) -> Probabilities:
        if len(rows) > self._answered:
            threading.Event().wait()
        return super().run(rows)


def open_fake(artifact: Artifact, setup: EngineSetup) -> Engine:
    """One of as many slots as are asked for."""
    return FakeEngine(artifact.manifest.classes, slots=setup.slots)


def open_troubled(artifact: Artifact, setup: EngineSetup) -> Engine:
    """With one slot it answers; with two it is stuck, with three it takes its process with it, with four it refuses."""
    if setup.slots == 2:
        return StuckEngine(artifact.manifest.classes, answered=1)
    if setup.slots == 3:
        os._exit(11)  # as a fault in a library does
    return open_fake(artifact, setup) if setup.slots == 1 else open_refusing(artifact, setup)


def open_refusing(_artifact: Artifact, _setup: EngineSetup) -> Engine:
    """It cannot be had here."""
    raise EngineUnavailableError("this CPU lacks something")


def open_announced(artifact: Artifact, setup: EngineSetup) -> Engine:
    """It is stuck at once; the number of its process is printed."""
    print(os.getpid(), flush=True)  # noqa: T201
    return StuckEngine(artifact.manifest.classes, answered=0, slots=setup.slots)
