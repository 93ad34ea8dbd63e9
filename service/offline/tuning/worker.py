"""Measures candidates in another process, so that a stuck or crashed engine affects nothing else."""

import multiprocessing
import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Self

import numpy as np

from models.artifact.artifact import Artifact
from service.common.types import Layout
from service.engines.base import Engine
from service.engines.selection.opening import build_engine
from service.engines.selection.select import EngineOptions
from service.offline.tuning.candidates import TuneCandidate
from service.offline.tuning.engine_load import EngineLoad, EngineSpeed, measure
from service.offline.tuning.search import FINALISTS, CandidateFailed, CandidateStuck

STUCK_S = 20.0  # an engine of VGG-19 opens in 3 s; a slower one is useless to a server too
_START_S = 60.0
_END_S = 5.0

OpenCandidate = Callable[[Artifact, TuneCandidate], Engine]
"""Opens an engine in the other process. It must be a module-level function, because it is sent by name."""


def open_candidate(artifact: Artifact, one: TuneCandidate) -> Engine:
    """The engine, not warmed up."""
    return build_engine(artifact, one.runtime, one.precision, EngineOptions(layout=Layout(one.slots, one.threads, 1)))


class Worker:
    """A `Measure` in another process, which is started at the first call, and again after a stuck engine.

    An engine is stuck if it takes `stuck_s` longer than the measurement. The process ends with the context.
    """

    def __init__(
        self,
        artifact: Artifact,
        load: EngineLoad,
        *,
        open_engine: OpenCandidate = open_candidate,
        stuck_s: float = STUCK_S,
    ) -> None:
        self._work = artifact, load, open_engine
        self._stuck_s = stuck_s
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()

    def __call__(self, candidate: TuneCandidate, seconds: float) -> tuple[str, EngineSpeed]:
        bound_s = seconds + self._stuck_s
        try:
            connection = self._started()
            connection.send((candidate, seconds))
            if not connection.poll(bound_s):
                self._kill()
                raise CandidateStuck(f"it has not returned for {bound_s:g} s")
            answer: tuple[str, EngineSpeed] | str = connection.recv()
        except (EOFError, OSError) as error:
            raise CandidateFailed(f"its process died (exit status {self._exit_status()})") from error
        if isinstance(answer, str):
            raise CandidateFailed(answer)
        return answer

    def _started(self) -> Connection:
        if self._connection is not None:
            return self._connection
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._work), daemon=True)
        # A terminal sends Ctrl-C to both processes. The other one inherits the block of it; this one ends the other.
        resource_tracker.ensure_running()  # else it would start below, and unblock Ctrl-C again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        if not self._connection.poll(_START_S):
            self._kill()
            raise CandidateStuck(f"its process has not started for {_START_S:g} s")
        self._connection.recv()
        return self._connection

    def _exit_status(self) -> int | None:
        assert self._process is not None
        self._process.join(_END_S)
        status = self._process.exitcode
        self._kill()
        return status

    def _kill(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join(_END_S)
        self._connection = self._process = None


def _serve(connection: Connection, artifact: Artifact, load: EngineLoad, open_engine: OpenCandidate) -> None:
    """Measure in the other process, until the connection or the parent process ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    engines = _OpenEngines(artifact, open_engine)
    connection.send(None)  # the imports are done: time counts from here
    while True:
        try:
            candidate, seconds = connection.recv()
        except EOFError:
            return
        try:
            engine = engines.warm(candidate)
            speed = measure(engine, load, candidate.max_batch, seconds)
            connection.send((engine.describe().version, speed))
        except Exception as error:  # a runtime's own exceptions have no common base
            connection.send(str(error) or type(error).__name__)


def _end_with_parent() -> None:
    """End this process with its parent, from a thread: a stuck engine would keep its CPUs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _OpenEngines:
    """Keeps as many engines open as memory should hold, with the batch sizes that each has run."""

    def __init__(self, artifact: Artifact, open_engine: OpenCandidate) -> None:
        self._artifact = artifact
        self._open = open_engine
        self._engines: OrderedDict[Hashable, tuple[Engine, set[int]]] = OrderedDict()

    def warm(self, candidate: TuneCandidate) -> Engine:
        """An open engine that has run batches of 1 and of the largest size, so that its kernels are compiled."""
        key, side = candidate.engine, self._artifact.manifest.input.crop
        if key not in self._engines:
            while len(self._engines) >= FINALISTS:
                self._engines.popitem(last=False)[1][0].close()  # the one unused for longest
            self._engines[key] = self._open(self._artifact, candidate), set()
        self._engines.move_to_end(key)
        engine, sizes = self._engines[key]
        for rows in sorted({1, candidate.max_batch} - sizes):
            engine.run(np.zeros((rows, side, side, 3), dtype=np.uint8))
            sizes.add(rows)
        return engine
