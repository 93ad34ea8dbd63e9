"""The gate: the file in the engines that will serve it, against what it was made from, image by image.

For each image, with p the probabilities of the engine and q those of the original (PyTorch, or the imported file):

    max_abs_diff    the largest |p - q| over classes
    logit_cosine    the cosine of log p and log q, each less its mean: softmax forgets what is added to all logits
    top1_agreement  1 where q of the engine's best class is within a tie of the best q, else 0
    top5_agreement  the share of the engine's best five whose q is within a tie of the fifth best q

A tie is a ratio of probabilities that rounding alone may reverse; it grows with the precision's rounding. The report
holds the worst difference and cosine and the mean agreements over all images and batch sizes.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from models.artifact import Artifact, ParityReport, Thresholds
from service.engines.base import Engine, EngineUnavailableError
from service.engines.choose import EngineOptions, build_engine, installed
from service.hardware import cpu_quota
from service.types import Batch, Precision, Probabilities, Runtime

BATCH_SIZES = (1, 3, 8)
THRESHOLDS = {
    Precision.F32: Thresholds(max_abs_diff=1e-4, logit_cosine=0.9999, top1_agreement=1.0, top5_agreement=1.0),
    Precision.BF16: Thresholds(max_abs_diff=0.03, logit_cosine=0.99, top1_agreement=1.0, top5_agreement=0.9),
}
TIES = {Precision.F32: 1e-3, Precision.BF16: 0.1}  # difference of log probabilities
_SMALLEST = 1e-37  # just above the smallest normal float32, so that a probability of zero has a logarithm

log = logging.getLogger(__name__)


class Enough(Enum):
    """On how many engines f32 must agree: an export on all, because then the file is right; an import on one."""

    EVERY_ENGINE = "every engine"
    ONE_ENGINE = "one engine"


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as the original's answer; `ties` are differences of log probabilities.

    Probabilities below `smallest` count as that much: the original's own numbers hold nothing below it.
    """

    original: str = "PyTorch"
    enough: Enough = Enough.EVERY_ENGINE
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    thresholds: Mapping[Precision, Thresholds] = field(default_factory=lambda: THRESHOLDS)
    ties: Mapping[Precision, float] = field(default_factory=lambda: TIES)
    smallest: float = _SMALLEST


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
        from service.engines.openvino import has_bf16

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
    options = EngineOptions(cpus=cpu_quota(), max_batch=max(rules.batch_sizes))
    try:
        engine = build_engine(artifact, runtime, precision, options)
        try:
            return compare(engine, precision, images, reference, rules)
        finally:
            engine.close()
    except Exception as error:  # a runtime's own exceptions have no common base
        if runtime is Runtime.ONNXRUNTIME_CUDA and isinstance(error, EngineUnavailableError):
            return None  # built with CUDA, but this machine has no card: it will not serve here either
        if precision is Precision.F32 and rules.enough is Enough.EVERY_ENGINE:
            raise GateError(f"{name} does not run on {runtime}, no artifact was written: {error}") from error
        log.warning("%s does not run on %s in %s: %s", name, runtime, precision, error)
        return None


def compare(
    engine: Engine, precision: Precision, images: Batch, reference: Probabilities, rules: Rules = EXPORT_RULES
) -> ParityReport:
    """How `engine` answers `images` at each batch size, against `reference`."""
    info = engine.describe()
    tie, smallest = rules.ties[precision], rules.smallest
    found = [_figures(_run(engine, images, size), reference, tie, smallest) for size in rules.batch_sizes]
    diff, cosine, top1, top5 = np.array(found).T
    thresholds = rules.thresholds[precision]
    measured = (float(diff.max()), float(cosine.min()), float(top1.mean()), float(top5.mean()))
    return ParityReport(
        runtime=info.runtime,
        runtime_version=info.version,
        precision=info.precision,
        device=info.device,
        images=len(images),
        batch_sizes=rules.batch_sizes,
        max_abs_diff=measured[0],
        logit_cosine=measured[1],
        top1_agreement=measured[2],
        top5_agreement=measured[3],
        thresholds=thresholds,
        passed=(
            measured[0] <= thresholds.max_abs_diff
            and measured[1] >= thresholds.logit_cosine
            and measured[2] >= thresholds.top1_agreement
            and measured[3] >= thresholds.top5_agreement
        ),
    )


def figures(report: ParityReport) -> str:
    """One line: what was measured, and what was asked."""
    limit = report.thresholds
    return (
        f"{report.runtime} {report.precision}: max |dp| {report.max_abs_diff:.2g} (at most {limit.max_abs_diff:g}), "
        f"cosine {report.logit_cosine:.6f} (at least {limit.logit_cosine:g}), "
        f"top-1 {report.top1_agreement:.1%} (at least {limit.top1_agreement:.0%}), "
        f"top-5 {report.top5_agreement:.1%} (at least {limit.top5_agreement:.0%})"
    )


def _run(engine: Engine, images: Batch, size: int) -> Probabilities:
    parts: Sequence[Probabilities] = [engine.run(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate(parts)


def _figures(
    given: Probabilities, reference: Probabilities, tie: float, smallest: float
) -> tuple[float, float, float, float]:
    """Worst difference, worst cosine, mean top-1 and mean top-5 agreement; not finite counts as the worst there is."""
    if given.shape != reference.shape or not np.isfinite(given).all():
        return 1.0, -1.0, 0.0, 0.0  # a number, because the manifest is JSON, which has no infinity
    log_p, log_q = _log(given, smallest), _log(reference, smallest)
    p = log_p - log_p.mean(axis=1, keepdims=True)
    q = log_q - log_q.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1)
    cosine = np.where(norms > 0, (p * q).sum(axis=1) / np.maximum(norms, 1e-30), (p == q).all(axis=1))
    best = np.argsort(-given, axis=1, kind="stable")[:, :5]
    ranked = -np.sort(-log_q, axis=1)
    of_best = np.take_along_axis(log_q, best, axis=1)
    top1 = of_best[:, 0] >= ranked[:, 0] - tie
    top5 = of_best >= ranked[:, best.shape[1] - 1 : best.shape[1]] - tie
    return float(np.abs(given - reference).max()), float(cosine.min()), float(top1.mean()), float(top5.mean())


def _log(probabilities: Probabilities, smallest: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.log(np.maximum(probabilities.astype(np.float64), smallest))
