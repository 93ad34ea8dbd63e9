"""Chooses the precision of a runtime for an artifact: as requested, or the fastest that its parity reports allow."""

import logging

from models.artifact.artifact import IMPORTED, Artifact
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.int8 import int8_graph, slow_int8
from service.engines.selection.parity import missed

_OF_PLANS = (Precision.FP16, Precision.F32, Precision.INT8)
COMPUTES = {
    Runtime.OPENVINO: (Precision.F32, Precision.BF16, Precision.INT8),
    Runtime.TENSORRT: _OF_PLANS,
    Runtime.TENSORRT_RTX: _OF_PLANS,
    Runtime.ONNXRUNTIME_CUDA: (Precision.F32,),
    Runtime.ONNXRUNTIME: (Precision.F32,),
    Runtime.TORCH: (Precision.F32,),
}
"""The precisions of each runtime. No runtime uses a precision that was not requested from it."""

log = logging.getLogger(__name__)


def computes(runtime: Runtime, asked: Precision) -> bool:
    """Whether `runtime` can compute in the requested precision."""
    return asked is Precision.AUTO or asked in COMPUTES[runtime]


def check_computes(runtime: Runtime, asked: Precision) -> None:
    """Raise EngineUnavailableError, naming a runtime that can, if `runtime` cannot compute in `asked`."""
    if not computes(runtime, asked):
        having = next(other for other in COMPUTES if asked in COMPUTES[other])
        raise EngineUnavailableError(
            f"{runtime} computes in {' or '.join(COMPUTES[runtime])} here; use --precision f32 or --runtime {having}"
        )


def choose_precision(artifact: Artifact, runtime: Runtime, asked: Precision) -> Precision:
    """The precision to compute in on a runtime that reads model.onnx or its int8 graph. A plan has its own precision.

    AUTO is bf16 if a parity report of this artifact on this runtime passed in it and this CPU computes in it, else f32.
    A requested bf16 needs the report alone, and int8 its graph, which exists only if its own check passed. Raises
    EngineUnavailableError if the runtime does not have the requested precision, if the report of a requested bf16 is
    missing or failed, or if the report in f32 failed. An imported model must have a report in f32, except for a GPU,
    where the check follows.
    """
    check_computes(runtime, asked)
    _check_f32(artifact, runtime)
    if asked is Precision.INT8:
        int8_graph(artifact)
        if reason := slow_int8():
            log.warning("%s in int8: %s", artifact.manifest.name, reason)
        return asked
    if asked is Precision.F32 or Precision.BF16 not in COMPUTES[runtime]:
        return Precision.F32
    return _bf16_or_f32(artifact, runtime, asked)


def is_checked_on_the_card(artifact: Artifact, runtime: Runtime) -> bool:
    """Whether the export left the parity check of that runtime to the machine with the GPU."""
    return runtime is Runtime.ONNXRUNTIME_CUDA and artifact.parity(runtime, Precision.F32) is None


def _check_f32(artifact: Artifact, runtime: Runtime) -> None:
    """Raise EngineUnavailableError if parity in f32 on this runtime is not known to pass. Then bf16 is not used either.

    An export passes on every runtime or is not written. An import needs one runtime that passes; any other serves only
    with a passed report of its own. The torch engine needs no report: it is the reference of exports, and runs no
    import.
    """
    manifest, report = artifact.manifest, artifact.parity(runtime, Precision.F32)
    if report is not None and not report.passed:
        raise EngineUnavailableError(
            f"{manifest.name} may not run on {runtime}: its answers differ from the original's "
            f"({missed(report)}); see /models/{manifest.name}, and use another --runtime"
        )
    unchecked = report is None and manifest.family == IMPORTED and runtime is not Runtime.TORCH
    if unchecked and not is_checked_on_the_card(artifact, runtime):
        raise EngineUnavailableError(
            f"{manifest.name} may not run on {runtime}: when it was imported, it was not checked or did not run there; "
            f"use another --runtime, or import it again where {runtime} runs"
        )


def _bf16_or_f32(artifact: Artifact, runtime: Runtime, asked: Precision) -> Precision:
    report = artifact.parity(runtime, Precision.BF16)
    if report is not None and report.passed:
        from service.engines.openvino import has_bf16

        return Precision.BF16 if asked is Precision.BF16 or has_bf16() else Precision.F32
    name = artifact.manifest.name
    imported = artifact.manifest.family == IMPORTED
    original = "its original file" if imported else "PyTorch"
    again = "import it again on a CPU with bf16" if imported else f"export it on a CPU with bf16: topfive export {name}"
    reason = (
        f"its parity with {original} was not measured in bf16; {again}"
        if report is None
        else f"it differs from {original} in bf16 ({missed(report)}); see /models/{name}"
    )
    if asked is Precision.BF16:
        raise EngineUnavailableError(f"{name} may not run in bf16 on {runtime}: {reason}")
    log.info("%s runs in f32 on %s: %s", name, runtime, reason)
    return Precision.F32
