"""Engines that are opened in the other process of `topfive tune`, where a test cannot reach: found by name."""

import os
import threading

from models.artifact.artifact import Artifact
from service.common.types import Probabilities, Rows
from service.engines.base import Engine, EngineUnavailableError
from service.offline.tuning.candidates import Setup
from tests.fakes import FakeEngine


class HangingEngine(FakeEngine):
    """Answers single rows, and never returns from a larger batch."""

    def run(self, rows: Rows) -> Probabilities:
        if len(rows) > 1:
            threading.Event().wait()
        return super().run(rows)


class StuckEngine(FakeEngine):
    """Never returns from any batch."""

    def run(self, rows: Rows) -> Probabilities:
        threading.Event().wait()
        return super().run(rows)


def open_fake(artifact: Artifact, setup: Setup) -> Engine:
    """One of as many slots as are asked for."""
    return FakeEngine(artifact.manifest.classes, slots=setup.slots)


def open_hanging(artifact: Artifact, setup: Setup) -> Engine:
    """With one slot it answers; with more it hangs."""
    return open_fake(artifact, setup) if setup.slots == 1 else HangingEngine(artifact.manifest.classes)


def open_dying(artifact: Artifact, setup: Setup) -> Engine:
    """With one slot it answers; with more it takes its process with it, as a fault in a library does."""
    if setup.slots > 1:
        os._exit(11)
    return open_fake(artifact, setup)


def open_refusing(_artifact: Artifact, _setup: Setup) -> Engine:
    """It cannot be had here."""
    raise EngineUnavailableError("this CPU lacks something")


def open_announced(artifact: Artifact, setup: Setup) -> Engine:
    """It hangs at once; the number of its process is printed."""
    print(os.getpid(), flush=True)  # noqa: T201
    return StuckEngine(artifact.manifest.classes, slots=setup.slots)
