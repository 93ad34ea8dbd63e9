"""The candidates of tuning: engines by runtime and precision, their slots and threads, and batch sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.artifact.artifact import Artifact
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.cpu_layout import TUNABLE, default_layout
from service.engines.selection.precision import choose_precision, computes
from service.engines.selection.select import check_possible, installed

_BATCHES = (1, 2, 8)
_MOST_SLOTS = 16


@dataclass(frozen=True, slots=True)
class TuneCandidate:
    """An engine with its slots, the threads of each, and the largest batch."""

    runtime: Runtime
    precision: Precision
    slots: int
    threads: int
    max_batch: int

    @property
    def engine(self) -> tuple[Runtime, Precision, int, int]:
        """The options that open the engine: the same for candidates that differ in `max_batch` alone."""
        return self.runtime, self.precision, self.slots, self.threads

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision}, {self.slots} x {self.threads}, batches up to {self.max_batch}"


def allowed(artifact: Artifact, runtime: Runtime, precision: Precision) -> list[tuple[Runtime, Precision]]:
    """The runtimes and precisions that may serve `artifact` on this CPU, the lowest precision first.

    AUTO means any. Raises EngineUnavailableError with the reasons if there are none, or the runtime cannot be tuned.
    """
    if runtime not in (Runtime.AUTO, *TUNABLE):
        raise EngineUnavailableError(f"{runtime} has nothing to tune; use --runtime {' or '.join(TUNABLE)}")
    found: list[tuple[Runtime, Precision]] = []
    refused: list[str] = []
    for one in TUNABLE if runtime is Runtime.AUTO else (runtime,):
        if runtime is Runtime.AUTO and not (installed(one) and computes(one, precision)):
            continue
        try:
            check_possible(one, precision)
            lowest = choose_precision(artifact, one, precision)
        except EngineUnavailableError as error:
            refused.append(str(error))
            continue
        both = (lowest, Precision.F32) if precision is Precision.AUTO else (lowest,)
        found += [(one, each) for each in dict.fromkeys(both)]
    if not found:
        raise EngineUnavailableError("; ".join(refused) or f"no runtime that computes in {precision} is installed")
    return found


def layouts(cpus: int) -> list[tuple[int, int]]:
    """Numbers of slots and of threads of each, together at most `cpus`; the defaults come first.

    Slots are powers of two. Threads use all CPUs, or, from 4 CPUs on, half of them: the others decode.
    """
    powers = [1 << power for power in range(cpus.bit_length()) if 1 << power <= min(cpus, _MOST_SLOTS)]
    whole = [(slots, cpus // slots) for slots in reversed(powers)]
    half = [(slots, cpus // 2 // slots) for slots in reversed(powers) if cpus >= 4 and cpus // 2 >= slots]
    fallback = min(4, cpus)
    return list(dict.fromkeys([(fallback, cpus // fallback), *whole, *half]))


def candidates(
    engines: Sequence[tuple[Runtime, Precision]], cpus: int, largest_batch: int | None = None
) -> list[TuneCandidate]:
    """All candidates, smaller batches first.

    One layout comes in every runtime and precision before the next one, so that a search that runs out of time has
    still compared them.
    """
    batches = [size for size in _BATCHES if largest_batch is None or size <= largest_batch]
    return [
        TuneCandidate(runtime, precision, slots, threads, size)
        for slots, threads in layouts(cpus)
        for runtime, precision in engines
        for size in batches
    ]


def untuned(engines: Sequence[tuple[Runtime, Precision]], cpus: int, largest_batch: int | None = None) -> TuneCandidate:
    """The one of `candidates` that serves without tuning."""
    runtime, precision = engines[0]
    layout = default_layout(cpus)
    batch = layout.max_batch if largest_batch is None else min(layout.max_batch, largest_batch)
    tried = candidates([(runtime, precision)], cpus, largest_batch)
    same = [one for one in tried if (one.slots, one.threads) == (layout.slots, layout.threads)]
    return min(same, key=lambda one: abs(one.max_batch - batch))
