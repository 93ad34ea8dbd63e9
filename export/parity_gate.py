"""The parity gate: runs an artifact in the engines that will serve it, and compares the answers with the original's.

`service.engines.selection.parity` defines what is compared and how strictly; this module decides what follows from it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from export.common import ExportError
from models.artifact.artifact import Artifact, ParityReport
from service.common.cpus import cpu_quota
from service.common.types import Batch, Precision, Probabilities, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.opening import build_engine
from service.engines.selection.parity import BOUNDS, Bounds, compare, figures
from service.engines.selection.select import EngineOptions, installed

log = logging.getLogger(__name__)


class RequiredEngines(Enum):
    """How many engines must pass in f32. An export requires all of them, an import at least one."""

    ALL = "all"
    ONE = "one"


@dataclass(frozen=True, slots=True)
class GateRules:
    """What an artifact must fulfil to be written.

    `original` is the name of what it is compared with, for messages. `required` says how many engines must pass.
    `bounds` says how far their answers may differ.
    """

    original: str = "PyTorch"
    required: RequiredEngines = RequiredEngines.ALL
    bounds: Bounds = BOUNDS


EXPORT_RULES = GateRules()


class ParityError(ExportError):
    """The answers differ from the original's, so that no artifact is written; the message has the figures."""


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
    artifact: Artifact,
    images: Batch,
    reference: Probabilities,
    step: Callable[[str], None],
    rules: GateRules = EXPORT_RULES,
) -> tuple[ParityReport, ...]:
    """A report for every engine that runs the artifact; the service uses no engine without a passed report.

    Raises ParityError where an engine that `rules` require fails in f32.
    """
    reports: list[ParityReport] = []
    for kind in engine_kinds():
        step(f"parity on {kind.runtime} in {kind.precision}")
        if (report := _measure(artifact, kind, images, reference, rules)) is None:
            continue
        reports.append(report)
        if _is_required(kind, rules) and not report.passed:
            raise _difference(artifact, [report], rules)
    if not reports:
        raise ParityError(
            f"no engine runs {artifact.manifest.name}; see the warnings, or if none is installed: pip install '.[cpu]'"
        )
    if not any(report.passed and report.precision == Precision.F32 for report in reports):
        raise _difference(artifact, reports, rules)
    return tuple(reports)


def _is_required(kind: EngineKind, rules: GateRules) -> bool:
    return kind.precision is Precision.F32 and rules.required is RequiredEngines.ALL


def _difference(artifact: Artifact, reports: Sequence[ParityReport], rules: GateRules) -> ParityError:
    lines = "; ".join(map(figures, reports))
    return ParityError(f"{artifact.manifest.name} differs from {rules.original}, no artifact was written: {lines}")


def _measure(
    artifact: Artifact, kind: EngineKind, images: Batch, reference: Probabilities, rules: GateRules
) -> ParityReport | None:
    """The report of one engine, or None if it does not run. Raises ParityError if it is required to run."""
    options = EngineOptions(cpus=cpu_quota(), max_batch=max(rules.bounds.batch_sizes))
    try:
        engine = build_engine(artifact, kind.runtime, kind.precision, options)
        try:
            return compare(engine, kind.precision, images, reference, rules.bounds)
        finally:
            engine.close()
    except Exception as error:  # a runtime's own exceptions have no common base
        if kind.runtime is Runtime.ONNXRUNTIME_CUDA and isinstance(error, EngineUnavailableError):
            return None  # built with CUDA, but this machine has no GPU: it does not serve here either
        name = artifact.manifest.name
        if _is_required(kind, rules):
            raise ParityError(f"{name} does not run on {kind.runtime}, no artifact was written: {error}") from error
        log.warning("%s does not run on %s in %s: %s", name, kind.runtime, kind.precision, error)
        return None
