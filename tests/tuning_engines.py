"""Engines that are opened in the other process of `topfive tune`, where a test cannot reach: found by name."""

import os
import threading

from models.artifact.artifact import Artifact
from service.common.types import Probabilities, Rows
from service.engines.base import Engine, EngineUnavailableError
from service.offline.tuning.candidates import TuneCandidate
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


def open_fake(artifact: Artifact, one: TuneCandidate) -> Engine:
    """One of as many slots as are asked for."""
    return FakeEngine(artifact.manifest.classes, slots=one.slots)


def open_troubled(artifact: Artifact, one: TuneCandidate) -> Engine:
    """With one slot it answers; with two it is stuck, with three it takes its process with it, with four it refuses."""
    if one.slots == 2:
        return StuckEngine(artifact.manifest.classes, answered=1)
    if one.slots == 3:
        os._exit(11)  # as a fault in a library does
    return open_fake(artifact, one) if one.slots == 1 else open_refusing(artifact, one)


def open_refusing(_artifact: Artifact, _one: TuneCandidate) -> Engine:
    """It cannot be had here."""
    raise EngineUnavailableError("this CPU lacks something")


def open_announced(artifact: Artifact, one: TuneCandidate) -> Engine:
    """It is stuck at once; the number of its process is printed."""
    print(os.getpid(), flush=True)  # noqa: T201
    return StuckEngine(artifact.manifest.classes, answered=0, slots=one.slots)
