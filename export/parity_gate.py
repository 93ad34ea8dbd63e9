"""The gate: the file in the engines that will serve it, against what it was made from, image by image.

What is compared and how strictly is in `service.engines.selection.parity`; here is what follows from it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from models.artifact.artifact import Artifact, ParityReport
from service.common.cpus import cpu_quota
from service.common.types import Batch, Precision, Probabilities, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.opening import build_engine
from service.engines.selection.parity import BOUNDS, Bounds, compare, figures
from service.engines.selection.select import EngineOptions, installed

log = logging.getLogger(__name__)


class Enough(Enum):
    """On how many engines f32 must agree: an export on all, because then the file is right; an import on one."""

    EVERY_ENGINE = "every engine"
    ONE_ENGINE = "one engine"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the original is called, on how many engines its answers must come, and how nearly."""

    original: str = "PyTorch"
    enough: Enough = Enough.EVERY_ENGINE
    bounds: Bounds = BOUNDS


EXPORT_RULES = Rules()


class GateError(Exception):
    """The file does not give the original's answers; there is no artifact. The message has the figures."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine and precision that may serve the file on this machine."""

    runtime: Runtime
    precision: Precision


def candidates() -> list[Candidate]:
    """Every engine and precision that this machine can run, the reference aside."""
    found = [
        Candidate(runtime, Precision.F32)
        for runtime in (Runtime.OPENVINO, Runtime.ONNXRUNTIME, Runtime.ONNXRUNTIME_CUDA)
        if installed(runtime)
    ]
    if installed(Runtime.OPENVINO):
        from service.engines.openvino.engine import has_bf16

        if has_bf16():
            found.append(Candidate(Runtime.OPENVINO, Precision.BF16))
    return found


def gate(
    artifact: Artifact,
    images: Batch,
    reference: Probabilities,
    step: Callable[[str], None],
    rules: Rules = EXPORT_RULES,
) -> tuple[ParityReport, ...]:
    """A report for every engine that may serve the artifact.

    Raises GateError where f32 fails on one engine, or by `rules` on all. What differs too much is reported as such,
    what does not run at all has no report, and the service will use neither.
    """
    reports: list[ParityReport] = []
    for candidate in candidates():
        step(f"parity on {candidate.runtime} in {candidate.precision}")
        if (report := _measure(artifact, candidate, images, reference, rules)) is None:
            continue
        reports.append(report)
        strict = rules.enough is Enough.EVERY_ENGINE and candidate.precision is Precision.F32
        if strict and not report.passed:
            raise _differs(artifact, [report], rules)
    if not reports:
        raise GateError(
            f"no engine runs {artifact.manifest.name}; see the warnings, or if none is installed: pip install '.[cpu]'"
        )
    if not any(report.passed and report.precision == Precision.F32 for report in reports):
        raise _differs(artifact, reports, rules)
    return tuple(reports)


def _differs(artifact: Artifact, reports: Sequence[ParityReport], rules: Rules) -> GateError:
    lines = "; ".join(map(figures, reports))
    return GateError(f"{artifact.manifest.name} differs from {rules.original}, no artifact was written: {lines}")


def _measure(
    artifact: Artifact, candidate: Candidate, images: Batch, reference: Probabilities, rules: Rules
) -> ParityReport | None:
    """The report of one engine, or None where it will not serve here; raises GateError where it should and fails."""
    runtime, precision, name = candidate.runtime, candidate.precision, artifact.manifest.name
    options = EngineOptions(cpus=cpu_quota(), max_batch=max(rules.bounds.batch_sizes))
    try:
        engine = build_engine(artifact, runtime, precision, options)
        try:
            return compare(engine, precision, images, reference, rules.bounds)
        finally:
            engine.close()
    except Exception as error:  # a runtime's own exceptions have no common base
        if runtime is Runtime.ONNXRUNTIME_CUDA and isinstance(error, EngineUnavailableError):
            return None  # built with CUDA, but this machine has no card: it will not serve here either
        if precision is Precision.F32 and rules.enough is Enough.EVERY_ENGINE:
            raise GateError(f"{name} does not run on {runtime}, no artifact was written: {error}") from error
        log.warning("%s does not run on %s in %s: %s", name, runtime, precision, error)
        return None
