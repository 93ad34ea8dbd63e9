"""Tunes one artifact for this machine: measures the engines that may serve it, and makes a tuning record."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from models.artifact.artifact import Artifact
from models.artifact.tuning import Trial, TuningRecord
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.cpu_layout import conditions_here, tuning_files
from service.offline.tuning.candidates import TuneCandidate, allowed, candidates, untuned
from service.offline.tuning.engine_load import EngineLoad
from service.offline.tuning.search import CandidateResult, CandidateState, Measure, Search
from service.offline.tuning.worker import Worker

_FEWEST_CLIENTS = 16
_CLIENTS_PER_CPU = 4

StartWorker = Callable[[Artifact, EngineLoad], AbstractContextManager[Measure]]
"""Starts a worker that measures the engines of an artifact under a load. It ends with the block."""


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """What to tune. AUTO means any runtime or precision. `max_latency_ms` bounds the run time of a batch."""

    runtime: Runtime
    precision: Precision
    cpus: int
    seconds: float
    max_latency_ms: float
    photo: bytes


def tune(
    artifact: Artifact,
    request: TuneRequest,
    watch: Callable[[TuneCandidate], None],
    start_worker: StartWorker = Worker,
) -> list[CandidateResult]:
    """The result of every candidate, the best first. `watch` is called with each before it is measured.

    Raises EngineUnavailableError if none could be measured.
    """
    engines = allowed(artifact, request.runtime, request.precision)
    largest = artifact.manifest.max_batch
    tried, default = candidates(engines, request.cpus, largest), untuned(engines, request.cpus, largest)
    clients = max(_FEWEST_CLIENTS, _CLIENTS_PER_CPU * request.cpus)
    load = EngineLoad(request.photo, artifact.manifest.input, request.cpus, clients)
    with start_worker(artifact, load) as measure:
        results = Search(request.seconds, request.max_latency_ms, measure, monotonic, watch).run(tried, default)
    if results[0].state is not CandidateState.MEASURED:
        broken = [one for one in results if one.state in (CandidateState.FAILED, CandidateState.STUCK)]
        reasons = dict.fromkeys(f"{one.candidate.runtime}: {one.reason}" for one in broken)
        raise EngineUnavailableError("; ".join(reasons) or "nothing could be measured; give it more --seconds")
    return results


def record_of(
    artifact: Artifact, request: TuneRequest, results: Sequence[CandidateResult], cache: Path
) -> TuningRecord:
    """The tuning record of the results of `tune`."""
    trials = (
        Trial(**asdict(one.candidate), **asdict(one.speed), runtime_version=one.version)
        for one in results
        if one.state is CandidateState.MEASURED
    )
    return TuningRecord(
        conditions=conditions_here(request.cpus, request.runtime, request.precision),
        graph_sha256=tuning_files(artifact, cache).graph_sha256,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=request.seconds,
        max_latency_ms=request.max_latency_ms,
        trials=tuple(trials),
    )
