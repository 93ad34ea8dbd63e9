"""Functions that open fake engines in the measuring process of `topfive tune`, which imports them by name."""

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
    """An engine that answers."""
    return FakeEngine(artifact.manifest.classes, slots=one.slots)


def open_troubled(artifact: Artifact, one: TuneCandidate) -> Engine:
    """With one slot the engine answers, with two it is stuck, with three its process dies, with four it cannot open."""
    if one.slots == 2:
        return StuckEngine(artifact.manifest.classes, answered=1)
    if one.slots == 3:
        os._exit(11)  # as a fault in a library does
    return open_fake(artifact, one) if one.slots == 1 else open_refusing(artifact, one)


def open_refusing(_artifact: Artifact, _one: TuneCandidate) -> Engine:
    """Raises EngineUnavailableError."""
    raise EngineUnavailableError("this CPU lacks something")


def open_announced(artifact: Artifact, one: TuneCandidate) -> Engine:
    """An engine that is stuck at once, after the number of its process is printed."""
    print(os.getpid(), flush=True)  # noqa: T201
    return StuckEngine(artifact.manifest.classes, answered=0, slots=one.slots)
