"""Tunes one artifact on this machine: what is tried, measured, and kept in a record."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from models.artifact.artifact import Artifact
from models.artifact.tuning import Trial, TuningRecord
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.cpu_layout import conditions_here, place_of
from service.offline.tuning.candidates import Candidate, allowed, candidates, untuned
from service.offline.tuning.rig import Load
from service.offline.tuning.search import Measure, Row, Search, State
from service.offline.tuning.worker import Worker

_FEWEST_CALLERS = 16
_CALLERS_PER_CPU = 4

Measuring = Callable[[Artifact, Load], AbstractContextManager[Measure]]
"""What measures an artifact under a load; it is ended with its block."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is tuned: runtimes and precisions (AUTO for any), CPUs, seconds in all, and the bound of a batch."""

    runtime: Runtime
    precision: Precision
    cpus: int
    seconds: float
    max_latency_ms: float
    photo: bytes


def tune(
    artifact: Artifact, request: Request, watch: Callable[[Candidate], None], measuring: Measuring = Worker
) -> list[Row]:
    """Every candidate with what it did, the best first. Raises EngineUnavailableError where none could be measured.

    `watch` is told of each before it is measured.
    """
    engines = allowed(artifact, request.runtime, request.precision)
    largest = artifact.manifest.max_batch
    tried, default = candidates(engines, request.cpus, largest), untuned(engines, request.cpus, largest)
    callers = max(_FEWEST_CALLERS, _CALLERS_PER_CPU * request.cpus)
    load = Load(request.photo, artifact.manifest.input, request.cpus, callers)
    with measuring(artifact, load) as measure:
        rows = Search(request.seconds, request.max_latency_ms, measure, monotonic, watch).run(tried, default)
    if rows[0].state is not State.MEASURED:
        reasons = dict.fromkeys(f"{row.candidate.setup.runtime}: {row.reason}" for row in rows if row.state in _FAULTS)
        raise EngineUnavailableError("; ".join(reasons) or "nothing could be measured; give it more --seconds")
    return rows


_FAULTS = (State.FAILED, State.HANGING)


def record_of(artifact: Artifact, request: Request, rows: Sequence[Row], cache: Path) -> TuningRecord:
    """The record of what `tune` gave."""
    trials = [_trial(row) for row in rows if row.state is State.MEASURED]
    return TuningRecord(
        conditions=conditions_here(request.cpus, request.runtime, request.precision),
        graph_sha256=place_of(artifact, cache).graph_sha256,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=request.seconds,
        max_latency_ms=request.max_latency_ms,
        trials=tuple(trials),
    )


def _trial(row: Row) -> Trial:
    setup, figures = row.candidate.setup, row.figures
    return Trial(
        runtime=setup.runtime,
        runtime_version=row.version,
        precision=setup.precision,
        slots=setup.slots,
        threads=setup.threads,
        max_batch=row.candidate.max_batch,
        images_per_s=figures.images_per_s,
        run_ms=figures.run_ms,
        cpu_ms=figures.cpu_ms,
    )
