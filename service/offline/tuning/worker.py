"""Measures candidates in a process of its own, so that an engine that hangs or crashes takes nothing else with it."""

import multiprocessing
import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType

import numpy as np

from models.artifact.artifact import Artifact
from service.common.types import Layout
from service.engines.base import Engine
from service.engines.selection.opening import build_engine
from service.engines.selection.select import EngineOptions
from service.offline.tuning.candidates import Candidate, Setup
from service.offline.tuning.rig import Figures, Load, measure
from service.offline.tuning.search import FINALISTS, CandidateFailedError, CandidateHangsError

HANG_S = 20.0  # an engine of VGG-19 opens in three; what takes longer is of no use to a server either
_START_S = 60.0
_END_S = 5.0

Open = Callable[[Artifact, Setup], Engine]
"""Opens an engine in the other process: a function of a module, because it is sent by name."""


def open_setup(artifact: Artifact, setup: Setup) -> Engine:
    """The engine itself, not warmed up."""
    layout = Layout(setup.slots, setup.threads, 1)
    return build_engine(artifact, setup.runtime, setup.precision, EngineOptions(layout=layout))


@dataclass(frozen=True, slots=True)
class _Order:
    """What the other process is asked."""

    candidate: Candidate
    seconds: float


@dataclass(frozen=True, slots=True)
class _Done:
    """What it answers."""

    version: str
    figures: Figures


class Worker:
    """The process, started when it is first asked and anew after a hang; use it as a context manager.

    A candidate hangs where it takes `hang_s` longer than it is measured.
    """

    def __init__(self, artifact: Artifact, load: Load, *, open_engine: Open = open_setup, hang_s: float = HANG_S):
        self._work = artifact, load, open_engine
        self._hang_s = hang_s
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def __call__(self, candidate: Candidate, seconds: float) -> tuple[str, Figures]:
        """As `search.Measure`."""
        bound_s = seconds + self._hang_s
        try:
            connection = self._started()
            connection.send(_Order(candidate, seconds))
            if not connection.poll(bound_s):
                self._kill()
                raise CandidateHangsError(f"it has not returned for {bound_s:g} s")
            answer = connection.recv()
        except (EOFError, OSError) as error:
            raise CandidateFailedError(f"its process died ({self._death()})") from error
        if isinstance(answer, _Done):
            return answer.version, answer.figures
        raise CandidateFailedError(str(answer))

    def _started(self) -> Connection:
        if self._connection is not None:
            return self._connection
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._work), daemon=True)
        # Ctrl-C is sent to the whole group: it is for this process to end the other, which inherits that it is blocked.
        resource_tracker.ensure_running()  # by itself it would be started below, and unblock it again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        if not self._connection.poll(_START_S):
            self._kill()
            raise CandidateHangsError(f"its process has not started for {_START_S:g} s")
        self._connection.recv()
        return self._connection

    def _death(self) -> str:
        """How the process ended."""
        assert self._process is not None
        self._process.join(_END_S)
        status = self._process.exitcode
        self._kill()
        return f"exit status {status}"

    def _kill(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join(_END_S)
        self._connection = self._process = None


@dataclass(frozen=True, slots=True)
class _Warm:
    """An open engine, and the batch sizes that it has run."""

    engine: Engine
    sizes: set[int] = field(default_factory=set)


def _serve(connection: Connection, artifact: Artifact, load: Load, open_engine: Open) -> None:
    """In the other process: measure what is asked for until nobody asks any more.

    It ends with the process that asks, however that ends and whatever an engine does meanwhile.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    engines: OrderedDict[Setup, _Warm] = OrderedDict()
    connection.send(None)  # the imports are done: from here on time counts
    while True:
        try:
            order: _Order = connection.recv()
        except EOFError:
            return
        try:
            engine = _opened(engines, artifact, order.candidate, open_engine)
            figures = measure(engine, load, order.candidate.max_batch, order.seconds)
            connection.send(_Done(engine.describe().version, figures))
        except Exception as error:  # a runtime's own exceptions have no common base
            connection.send(str(error) or type(error).__name__)


def _end_with_parent() -> None:
    """On a thread: a hanging engine never comes back to the connection, and would keep its CPUs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _opened(engines: OrderedDict[Setup, _Warm], artifact: Artifact, candidate: Candidate, open_engine: Open) -> Engine:
    """One that is open, or a new one in the place of the one unused for longest: memory holds a few."""
    setup, side = candidate.setup, artifact.manifest.input.crop
    if setup not in engines:
        while len(engines) >= FINALISTS:
            engines.popitem(last=False)[1].engine.close()
        engines[setup] = _Warm(open_engine(artifact, setup))
    engines.move_to_end(setup)
    warm = engines[setup]
    for rows in sorted({1, candidate.max_batch} - warm.sizes):  # or kernels would be made while it is measured
        warm.engine.run(np.zeros((rows, side, side, 3), dtype=np.uint8))
        warm.sizes.add(rows)
    return warm.engine
