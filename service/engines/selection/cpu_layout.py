"""The layout of an engine on the CPU: measured by `topfive tune`, or the default."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.artifact.artifact import Artifact
from models.artifact.tuning import Conditions, Trial, TuningRecord, read_tuning
from service.common.cpus import cpu_model, host
from service.common.packages import package_version
from service.common.types import Layout, Precision, Runtime

DEFAULT_MAX_BATCH = 8
TUNABLE = (Runtime.OPENVINO, Runtime.ONNXRUNTIME)
"""The runtimes that `topfive tune` measures."""

_MOST_SLOTS = 4
_ONE_THREAD_MAX_BATCH = 4
_PACKAGES = {Runtime.OPENVINO: ("openvino",), Runtime.ONNXRUNTIME: ("onnxruntime", "onnxruntime-gpu")}


@dataclass(frozen=True, slots=True)
class Tuned:
    """The tuning record of one artifact that applies to this machine. `notes` say which parts are not used, and why."""

    record: TuningRecord | None = None
    notes: tuple[str, ...] = ()

    def best(self, runtime: Runtime, precision: Precision) -> Trial | None:
        """The best trial of this runtime and precision, AUTO for any. None if it was not measured."""
        for trial in self.record.trials if self.record else ():
            if runtime in (Runtime.AUTO, trial.runtime) and precision in (Precision.AUTO, trial.precision):
                return trial
        return None

    def choose(self, runtime: Runtime, asked: Precision, allowed: Precision) -> tuple[Precision, Layout | None]:
        """The precision to compute in, and the layout if it was measured.

        `allowed` is the lowest precision that may be used if `asked` is AUTO.
        """
        trial = self.best(runtime, asked)
        if trial is not None and trial.precision not in (allowed, Precision.F32):
            trial = self.best(runtime, allowed)
        if trial is None or self.record is None:
            return allowed, None
        layout = Layout(trial.slots, trial.threads, trial.max_batch, f"tuned on {self.record.date}")
        return Precision(trial.precision), layout

    def order(self, among: Sequence[Runtime], precision: Precision) -> tuple[Runtime, ...]:
        """Return `among` with the best measured runtime first among the tunable ones; others keep their places."""
        best = self.best(Runtime.AUTO, precision)
        tunable = [one for one in among if one in TUNABLE]
        if best is None or best.runtime not in tunable:
            return tuple(among)
        tunable.sort(key=lambda one: one != best.runtime)
        return tuple(tunable.pop(0) if one in TUNABLE else one for one in among)


NOT_TUNED = Tuned()


def default_layout(cpus: int, most_slots: int = _MOST_SLOTS) -> Layout:
    """The layout without a measurement: a few slots, because small networks leave many threads idle.

    Slots times threads never exceed `cpus`, nor slots `most_slots`. A slot of one thread gains little from large
    batches, which run longer and take memory (`topfive tune` measures it).
    """
    slots = min(most_slots, cpus)
    threads = max(1, cpus // slots)
    return Layout(slots, threads, DEFAULT_MAX_BATCH if threads > 1 else _ONE_THREAD_MAX_BATCH)


def at_most(rows: int, artifact: Artifact) -> int:
    """The smaller of `rows` and the largest batch that the graph of `artifact` takes."""
    most = artifact.manifest.max_batch
    return rows if most is None else min(rows, most)


def conditions_here(cpus: int) -> Conditions:
    """The conditions of a tuning record on this machine with `cpus` CPUs."""
    return Conditions(cpu=cpu_model(), instruction_sets=host().instruction_sets, cpus=cpus)


def installed_version(runtime: Runtime) -> str | None:
    """The version of a tunable runtime as its engines report it, or None if not installed. Imports nothing."""
    return package_version(*_PACKAGES[runtime])


def read_tuned(artifact: Artifact, cpus: int) -> Tuned:
    """The measurements of `artifact` on a machine like this one, with the installed versions."""
    try:
        record = read_tuning(artifact.folder, conditions_here(cpus))
    except ValueError as error:
        return Tuned(None, (str(error),))
    if record is None:
        return NOT_TUNED
    here = {str(runtime): installed_version(runtime) for runtime in TUNABLE}
    fresh = tuple(trial for trial in record.trials if here.get(trial.runtime) == trial.runtime_version)
    stale = {f"{one.runtime} {one.runtime_version}" for one in record.trials if one not in fresh}
    name = artifact.manifest.name
    note = f"{name} was tuned with {', '.join(sorted(stale))}, not installed here; run: topfive tune {name}"
    return Tuned(record.model_copy(update={"trials": fresh}) if fresh else None, (note,) if stale else ())
