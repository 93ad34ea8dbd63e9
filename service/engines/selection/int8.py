"""Decides whether the int8 graph of an artifact may serve on the CPU, if it was asked for and with `auto`."""

import platform
from pathlib import Path

from models.artifact.artifact import Artifact, artifacts_option
from models.artifact.quantized import QuantizationRecord, QuantizedGraphError, read_quantized
from service.common.cpus import host
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.cpu_layout import Tuned, conditions_here

_INSTRUCTIONS = {"AVX512_VNNI", "AVX_VNNI", "AMX int8"}
_FEWEST_IMAGES = 500
_LARGEST_DROP = 1.0  # of top-1, in percentage points
_SMALLEST_GAIN = 1.2


def slow_int8() -> str:
    """Why int8 gains nothing on this CPU, or ''. Only x86 is known: other CPUs are measured."""
    if platform.machine() not in ("x86_64", "AMD64") or _INSTRUCTIONS & set(host().instruction_sets):
        return ""
    return "this CPU has no VNNI instructions, so int8 gains nothing here"


def int8_graph(artifact: Artifact) -> Path:
    """The file of the undamaged int8 graph. Raises EngineUnavailableError, with the command that makes it."""
    name, root = artifact.manifest.name, artifact.folder.parents[1]
    remedy = f"run: topfive export {name} --engine openvino --precision int8 --calibration DIR{artifacts_option(root)}"
    try:
        if (found := read_quantized(artifact)) is not None:
            return found.path()
    except QuantizedGraphError as error:
        raise EngineUnavailableError(f"{error}; {remedy}") from error
    raise EngineUnavailableError(f"{name} has no int8 graph for the CPU; {remedy}")


def reason_against_int8(artifact: Artifact, record: QuantizationRecord, tuned: Tuned, cpus: int) -> str:
    """Why `auto` does not take the int8 graph with that record, or '' if it does.

    It takes a graph that keeps top-1 within a percentage point of f32 on at least 500 labelled photos, and that is at
    least 1.2 times as fast on this machine as what would serve otherwise.
    """
    return slow_int8() or _inaccurate(artifact) or _gains_little(artifact.manifest.name, record, tuned, cpus)


def _inaccurate(artifact: Artifact) -> str:
    name, option = artifact.manifest.name, artifacts_option(artifact.folder.parents[1])
    enough = [one for one in artifact.manifest.measured if one.images >= _FEWEST_IMAGES]
    pairs = [
        (low, full)
        for low in enough
        for full in enough
        if (low.precision, full.precision) == (Precision.INT8, Precision.F32)
        and low.runtime == Runtime.OPENVINO
        and low.replaces(full.model_copy(update={"runtime": low.runtime, "precision": low.precision}))
    ]
    if not pairs:
        return (
            f"its accuracy was not measured in int8 and in f32 on the same {_FEWEST_IMAGES} labelled photos or more; "
            f"run: topfive evaluate DIR --model {name} --precision int8{option}, and again with --precision f32 "
            "--overwrite"
        )
    low, full = pairs[-1]
    if low.acc1 >= full.acc1 - _LARGEST_DROP:
        return ""
    return (
        f"its top-1 is {low.acc1:.2f} % [{low.acc1_low:.2f}, {low.acc1_high:.2f}] in int8 and {full.acc1:.2f} % in f32 "
        f"on {low.images:,} photos of {low.dataset}, more than {_LARGEST_DROP:g} point below"
    )


def _gains_little(name: str, record: QuantizationRecord, tuned: Tuned, cpus: int) -> str:
    """By the tuning of this machine, else by the measurement of the export if that was on a machine like this one."""
    speeds: dict[str, float] = {}
    if tuned.record is not None and tuned.best(Runtime.OPENVINO, Precision.INT8) is not None:
        for trial in reversed(tuned.record.trials):  # the best of each precision comes first, so it is kept
            speeds[trial.precision] = trial.images_per_s
    elif record.conditions == conditions_here(cpus):
        speeds = {one.precision: one.images_per_s for one in record.speeds}
    fast, others = speeds.get(Precision.INT8), [speeds[one] for one in speeds if one != Precision.INT8]
    if fast is None or not others:
        return f"its speed was not measured on this machine; run: topfive tune {name}"
    gain = fast / max(others)
    return "" if gain >= _SMALLEST_GAIN else f"it is {gain:.2f} times as fast here, {_SMALLEST_GAIN:g} needed"
