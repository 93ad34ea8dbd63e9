"""Measures which engine serves a model best on this CPU. `models.artifact.tuning` keeps the record.

Each candidate gets a short look; then the best ones and the default are measured in turns. Medians of rounds that are
apart in time are compared, because a machine that others use changes its speed from one second to the next.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from statistics import median
from time import monotonic
from typing import NamedTuple

from models.artifact.artifact import Artifact
from models.artifact.tuning import Trial, TuningRecord
from models.catalog import InputSpec
from service.common.sample_photo import made_photo
from service.common.types import Decode, ImageLimits, Layout, Precision, Runtime, Sample
from service.engines.base import Engine, EngineUnavailableError
from service.engines.selection.cpu_layout import TUNABLE, at_most, conditions_here, default_layout, installed_version
from service.engines.selection.opening import build_engine
from service.engines.selection.precision import choose_precision
from service.engines.selection.select import EngineOptions, installed
from service.preprocessing import decode, transforms

_BATCHES = (1, 4, 8)
_SLOTS = (1, 2, 4, 8, 16)
_FINALISTS = 3
_ROUNDS = 5
_FEWEST_BATCHES = 2
_TIE = 0.95  # medians of a few short rounds count as equal from this share of the fastest on


class Candidate(NamedTuple):
    """An engine on the CPU, and how it uses the CPU."""

    runtime: Runtime
    precision: Precision
    layout: Layout

    @property
    def engine(self) -> tuple[Runtime, Precision, int, int]:
        """What candidates have in common that differ in their batches alone: they use the same engine."""
        return self.runtime, self.precision, self.layout.slots, self.layout.threads

    def __str__(self) -> str:
        slots, threads, most = self.layout.slots, self.layout.threads, self.layout.max_batch
        return f"{self.runtime} {self.precision}, slots {slots}, threads {threads}, max_batch {most}"


class Speed(NamedTuple):
    """Images per second, and the median run time of a batch without the wait for a slot."""

    images_per_s: float
    run_ms: float


OpenCandidate = Callable[[Artifact, Candidate], Engine]
Measure = Callable[[Engine, InputSpec, int, int, float], Speed]


def measure(engine: Engine, spec: InputSpec, size: int, cpus: int, seconds: float) -> Speed:
    """The speed with batches of `size`, under the load of a busy server: `cpus` threads decode photos beside the slots.

    Raises the errors of the engine. It takes longer than `seconds` if two batches have not ended by then.
    """
    photo, limits, needed = made_photo(), ImageLimits(), transforms.needed_side(spec, Decode.AUTO)
    slots = threading.Semaphore(engine.slots)
    runs: list[tuple[float, float]] = []  # the end of each batch, and its run time

    def sample() -> Sample:
        made: Sample = transforms.make_samples(spec, decode.decode_image(photo, limits, needed), 1)[0]
        return made

    engine.run([sample()] * size)  # compiles the kernels for this size
    end = monotonic() + seconds

    def work() -> None:
        while monotonic() < end or len(runs) < _FEWEST_BATCHES:
            batch = [sample() for _ in range(size)]
            with slots:
                started = monotonic()
                engine.run(batch)
                ended = monotonic()
            runs.append((ended, ended - started))

    with ThreadPoolExecutor(engine.slots + cpus) as pool:
        for thread in [pool.submit(work) for _ in range(engine.slots + cpus)]:
            thread.result()
    runs.sort()
    within = max(_FEWEST_BATCHES, sum(ended <= end for ended, _ in runs))  # later ones had the CPU for themselves
    ends, run_s = zip(*runs[:within], strict=True)
    return Speed(size * (len(ends) - 1) / (ends[-1] - ends[0]), median(run_s) * 1000)


def open_candidate(artifact: Artifact, one: Candidate) -> Engine:
    """The engine of a candidate, not warmed up."""
    return build_engine(artifact, one.runtime, one.precision, EngineOptions(layout=one.layout))


def candidates(artifact: Artifact, cpus: int) -> list[Candidate]:
    """What may serve `artifact` on this CPU, by engine; the first layout is the default one.

    Slots times threads never exceed `cpus`. Raises EngineUnavailableError, with the reasons, if there is none.
    """
    default = default_layout(cpus)
    shapes = dict.fromkeys([(default.slots, default.threads), *((n, cpus // n) for n in _SLOTS if n <= cpus)])
    sizes = sorted({at_most(size, artifact) for size in _BATCHES})
    return [
        Candidate(runtime, precision, Layout(slots, threads, size))
        for runtime, precision in _allowed(artifact)
        for slots, threads in shapes
        for size in sizes
    ]


def _allowed(artifact: Artifact) -> list[tuple[Runtime, Precision]]:
    """The runtimes and precisions that passed the parity checks of `artifact`; the first would serve untuned."""
    found: list[tuple[Runtime, Precision]] = []
    refused: list[str] = []
    for runtime in filter(installed, TUNABLE):
        try:
            lowest = choose_precision(artifact, runtime, Precision.AUTO)
        except EngineUnavailableError as error:
            refused.append(str(error))
            continue
        found += [(runtime, one) for one in dict.fromkeys((lowest, Precision.F32))]
        with suppress(EngineUnavailableError):  # without an int8 graph
            found.append((runtime, choose_precision(artifact, runtime, Precision.INT8)))
    if not found:
        raise EngineUnavailableError("; ".join(refused) or f"neither {' nor '.join(TUNABLE)} is installed")
    return found


@dataclass(frozen=True, slots=True)
class Tuning:
    """Measures the candidates of one artifact for about `seconds`, beside the time to open engines.

    `max_latency_ms` bounds the run time of a batch. `watch` is called with each candidate before it is measured.
    """

    artifact: Artifact
    cpus: int
    seconds: float
    max_latency_ms: float
    watch: Callable[[Candidate], None]
    open_engine: OpenCandidate = open_candidate
    measure: Measure = measure

    def run(self) -> tuple[dict[Candidate, Speed], list[str]]:
        """The speed of every candidate that runs, the best first, and why the others do not run.

        The best has the most images per second with batches within the bound; of those that are too close to
        distinguish, the shortest batches. If none is within the bound, the shortest batches come first. Raises
        EngineUnavailableError if none runs.
        """
        tried = candidates(self.artifact, self.cpus)
        looks: dict[Candidate, Speed] = {}
        failures: list[str] = []
        for _, same in groupby(tried, key=lambda one: one.engine):
            looks |= self._in_turns(list(same), 1, self.seconds / 2 / len(tried), failures)
        if not looks:
            raise EngineUnavailableError("; ".join(failures))
        default = default_layout(self.cpus)
        most = at_most(default.max_batch, self.artifact)
        untuned = Candidate(tried[0].runtime, tried[0].precision, replace(default, max_batch=most))
        best = self._ranked(looks)[:_FINALISTS]
        finalists = [*best, *(one for one in (untuned,) if one in looks and one not in best)]
        finals = self._in_turns(finalists, _ROUNDS, self.seconds / 2 / _ROUNDS / len(finalists), failures)
        order = [*self._ranked(finals), *self._ranked({one: looks[one] for one in looks if one not in finals})]
        measured = looks | finals
        enough = _TIE * measured[order[0]].images_per_s
        close = [one for one in finals if self.fits(measured[one]) and measured[one].images_per_s >= enough]
        first = min(close, key=lambda one: measured[one].run_ms, default=order[0])
        return {one: measured[one] for one in (first, *order)}, failures

    def fits(self, speed: Speed) -> bool:
        """Whether batches run within the bound."""
        return speed.run_ms <= self.max_latency_ms

    def record(self, speeds: Mapping[Candidate, Speed]) -> TuningRecord:
        """The record of the speeds that `run` returned."""
        trials = (
            Trial(
                runtime=one.runtime,
                runtime_version=installed_version(one.runtime) or "",
                precision=one.precision,
                slots=one.layout.slots,
                threads=one.layout.threads,
                max_batch=one.layout.max_batch,
                images_per_s=speed.images_per_s,
                run_ms=speed.run_ms,
            )
            for one, speed in speeds.items()
        )
        date = datetime.now(UTC).date().isoformat()
        return TuningRecord(conditions=conditions_here(self.cpus), date=date, trials=tuple(trials))

    def _in_turns(
        self, ones: Sequence[Candidate], rounds: int, seconds: float, failures: list[str]
    ) -> dict[Candidate, Speed]:
        """The medians of so many rounds of `seconds` each. A candidate that fails is left out and named."""
        engines: dict[tuple[Runtime, Precision, int, int], Engine] = {}
        measured: dict[Candidate, list[Speed]] = {one: [] for one in ones}
        with ExitStack() as stack:
            for one in [one for _ in range(rounds) for one in ones]:
                if one not in measured:
                    continue
                self.watch(one)
                try:
                    if one.engine not in engines:
                        engines[one.engine] = stack.enter_context(closing(self.open_engine(self.artifact, one)))
                    spec, most = self.artifact.manifest.input, one.layout.max_batch
                    speed = self.measure(engines[one.engine], spec, most, self.cpus, seconds)
                except Exception as error:  # a runtime's own exceptions have no common base
                    failures.append(f"{one}: {str(error) or type(error).__name__}")
                    del measured[one]
                else:
                    measured[one].append(speed)
        return {one: Speed(*map(median, zip(*speeds, strict=True))) for one, speeds in measured.items()}

    def _ranked(self, speeds: Mapping[Candidate, Speed]) -> list[Candidate]:
        """Those within the bound by throughput, then the others by their run times."""

        def rank(one: Candidate) -> tuple[bool, float]:
            fits = self.fits(speeds[one])
            return not fits, -speeds[one].images_per_s if fits else speeds[one].run_ms

        return sorted(speeds, key=rank)
