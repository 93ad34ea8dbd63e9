"""The parity gate: runs an artifact in the engines that will serve it, and compares the answers with the original's.

`service.engines.selection.parity` defines what is compared and how strictly; this module decides what follows from it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from export.common import ExportError
from models.artifact.artifact import IMPORTED, Artifact, ParityReport
from service.common.cpus import cpu_quota
from service.common.types import Batch, Precision, Probabilities, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.cpu_layout import at_most
from service.engines.selection.opening import build_engine
from service.engines.selection.parity import BATCH_SIZES, compare, missed
from service.engines.selection.select import EngineOptions, installed

log = logging.getLogger(__name__)


class ParityError(ExportError):
    """The answers differ from the original's, so that no artifact is written; the message says by how much."""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """A runtime at a precision."""

    runtime: Runtime
    precision: Precision


def engine_kinds() -> list[EngineKind]:
    """Every runtime and precision on this machine that may serve an artifact, without the torch engine."""
    found = [
        EngineKind(runtime, Precision.F32)
        for runtime in (Runtime.OPENVINO, Runtime.ONNXRUNTIME, Runtime.ONNXRUNTIME_CUDA)
        if installed(runtime)
    ]
    if installed(Runtime.OPENVINO):
        from service.engines.openvino import has_bf16

        if has_bf16():
            found.append(EngineKind(Runtime.OPENVINO, Precision.BF16))
    return found


def check_parity(
    artifact: Artifact, images: Batch, reference: Probabilities, step: Callable[[str], None]
) -> tuple[ParityReport, ...]:
    """A report for every engine that runs the artifact; the service uses no engine without a passed report.

    Raises ParityError where an engine fails in f32, or for an imported file where every engine does.
    """
    manifest = artifact.manifest
    name, imported = manifest.name, manifest.family == IMPORTED
    reports: list[ParityReport] = []
    failures: list[str] = []
    for kind in engine_kinds():
        step(f"parity on {kind.runtime} in {kind.precision}")
        required = kind.precision is Precision.F32 and not imported
        try:
            report = _measure(artifact, kind, images, reference)
        except Exception as error:  # a runtime's own exceptions have no common base
            if kind.runtime is Runtime.ONNXRUNTIME_CUDA and isinstance(error, EngineUnavailableError):
                continue  # built with CUDA, but this machine has no GPU: it does not serve here either
            if required:
                raise ParityError(f"{name} does not run on {kind.runtime}, no artifact was written: {error}") from error
            failures.append(f"{name} does not run on {kind.runtime} in {kind.precision}: {error}")
            continue
        reports.append(report)
        if required and not report.passed:
            raise _difference(artifact, [_shortfall(report)])
    if not (reports or failures):
        raise ParityError(f"no engine runs {name}; none is installed: pip install '.[cpu]'")
    if not any(report.passed and report.precision == Precision.F32 for report in reports):
        raise _difference(artifact, [*map(_shortfall, reports), *failures])
    for failure in failures:
        log.warning("%s", failure)
    return tuple(reports)


def _shortfall(report: ParityReport) -> str:
    return f"{report.runtime} {report.precision}: {missed(report) or 'passed'}"


def _difference(artifact: Artifact, reasons: Sequence[str]) -> ParityError:
    manifest = artifact.manifest
    original = manifest.weights.name if manifest.family == IMPORTED else "PyTorch"
    return ParityError(f"{manifest.name} differs from {original}, no artifact was written: {'; '.join(reasons)}")


def _measure(artifact: Artifact, kind: EngineKind, images: Batch, reference: Probabilities) -> ParityReport:
    sizes = tuple(sorted({at_most(size, artifact) for size in BATCH_SIZES}))
    options = EngineOptions(cpus=cpu_quota(), max_batch=max(sizes))
    engine = build_engine(artifact, kind.runtime, kind.precision, options)
    try:
        return compare(engine, kind.precision, images, reference, artifact.manifest.rounding, sizes)
    finally:
        engine.close()
