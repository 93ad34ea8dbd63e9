"""How alike two sets of answers are, image by image: an engine's, and those it must give. Decides nothing.

For each image, with p the probabilities of the engine and q those of the original (PyTorch, or the imported file):

    max_abs_diff    the largest |p - q| over classes
    logit_cosine    the cosine of log p and log q, each less its mean: softmax forgets what is added to all logits
    top1_agreement  1 where q of the engine's best class is within a tie of the best q, else 0
    top5_agreement  the share of the engine's best five whose q is within a tie of the fifth best q

A tie is a ratio of probabilities that rounding alone may reverse; it grows with the precision's rounding. The report
holds the worst difference and cosine and the mean agreements over all images and batch sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.artifact.artifact import ParityReport, Thresholds
from service.common.types import Batch, Precision, Probabilities
from service.engines.base import Engine

BATCH_SIZES = (1, 3, 8)
THRESHOLDS = {
    Precision.F32: Thresholds(max_abs_diff=1e-4, logit_cosine=0.9999, top1_agreement=1.0, top5_agreement=1.0),
    Precision.FP16: Thresholds(max_abs_diff=0.01, logit_cosine=0.999, top1_agreement=1.0, top5_agreement=0.9),
    Precision.BF16: Thresholds(max_abs_diff=0.03, logit_cosine=0.99, top1_agreement=1.0, top5_agreement=0.9),
    # SqueezeNet 1.1 with trained weights differs by 0.18 in the worst of 16 images, and names its photos right.
    Precision.INT8: Thresholds(max_abs_diff=0.25, logit_cosine=0.97, top1_agreement=0.9, top5_agreement=0.8),
}
TIES = {  # differences of log probabilities
    Precision.F32: 1e-3,
    Precision.FP16: 0.05,
    Precision.BF16: 0.1,
    Precision.INT8: 0.2,
}
HALF_SMALLEST = 6.1e-5
"""The least number that float16 holds with all its bits; below it a softmax ends in zeros."""

_SMALLEST = 1e-37  # just above the smallest normal float32, so that a probability of zero has a logarithm


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is compared how strictly; `ties` are differences of log probabilities.

    Probabilities below `smallest` count as that much: the original's own numbers hold nothing below it.
    """

    batch_sizes: tuple[int, ...] = BATCH_SIZES
    thresholds: Mapping[Precision, Thresholds] = field(default_factory=lambda: THRESHOLDS)
    ties: Mapping[Precision, float] = field(default_factory=lambda: TIES)
    smallest: float = _SMALLEST


BOUNDS = Bounds()


def compare(
    engine: Engine, precision: Precision, images: Batch, reference: Probabilities, bounds: Bounds = BOUNDS
) -> ParityReport:
    """How `engine` answers `images` at each batch size, against `reference`."""
    info = engine.describe()
    tie, smallest = bounds.ties[precision], bounds.smallest
    found = [_figures(_run(engine, images, size), reference, tie, smallest) for size in bounds.batch_sizes]
    diff, cosine, top1, top5 = np.array(found).T
    thresholds = bounds.thresholds[precision]
    measured = (float(diff.max()), float(cosine.min()), float(top1.mean()), float(top5.mean()))
    return ParityReport(
        runtime=info.runtime,
        runtime_version=info.version,
        precision=info.precision,
        device=info.device,
        images=len(images),
        batch_sizes=bounds.batch_sizes,
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
