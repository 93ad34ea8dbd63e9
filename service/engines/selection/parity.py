"""Compares the probabilities of an engine with the reference (PyTorch, or the imported file), image by image.

For each image, with p the probabilities of the engine and q the reference:

    max_abs_diff    the largest |p - q| over classes
    logit_cosine    the cosine of log p and log q, each less its mean: softmax ignores a constant added to all logits
    top1_agreement  1 if q of the engine's best class is within a tie of the best q, else 0
    top5_agreement  the share of the engine's best five whose q is within a tie of the fifth best q

A tie is a ratio of probabilities that rounding alone may reverse; it grows with the precision's rounding. A report
holds the worst difference and cosine and the mean agreements over all images and batch sizes.

The export compares engines on the CPU. An engine on a GPU is compared when a model is first loaded there.
"""

import logging
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from models.artifact.artifact import Artifact, ArtifactError, ParityReport, Thresholds, read_file
from models.artifact.files import CacheFile
from models.artifact.reference import REFERENCE, Reference, UnreadableReferenceError, read_reference
from service.common.types import Batch, Precision, Probabilities
from service.engines.base import Engine, EngineUnavailableError

BATCH_SIZES = (1, 3, 8)
THRESHOLDS = {
    Precision.F32: Thresholds(max_abs_diff=1e-4, logit_cosine=0.9999, top1_agreement=1.0, top5_agreement=1.0),
    Precision.FP16: Thresholds(max_abs_diff=0.01, logit_cosine=0.999, top1_agreement=1.0, top5_agreement=0.9),
    Precision.BF16: Thresholds(max_abs_diff=0.03, logit_cosine=0.99, top1_agreement=1.0, top5_agreement=0.9),
    # SqueezeNet 1.1 with trained weights differs by 0.18 in the worst of 16 images, and still classifies them right.
    Precision.INT8: Thresholds(max_abs_diff=0.25, logit_cosine=0.97, top1_agreement=0.9, top5_agreement=0.8),
}
TIES = {  # differences of log probabilities
    Precision.F32: 1e-3,
    Precision.FP16: 0.05,
    Precision.BF16: 0.1,
    Precision.INT8: 0.2,
}
_HALF_SMALLEST = 6.1e-5  # the smallest normal float16
_SMALLEST = 1e-37  # just above the smallest normal float32, so that a probability of zero has a logarithm

log = logging.getLogger(__name__)


def coarser(precision: Precision, rounding: str) -> Precision:
    """The precision whose bounds hold for an engine in `precision`, if the original rounds its values to `rounding`."""
    return max(precision, Precision(rounding), key=list(THRESHOLDS).index)


def compare(
    engine: Engine,
    precision: Precision,
    images: Batch,
    reference: Probabilities,
    rounding: str = Precision.F32,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    thresholds: Thresholds | None = None,
) -> ParityReport:
    """Compare the answers of `engine` to `images`, at each batch size, with `reference`.

    `rounding` is the precision to which the original rounds its own values. `thresholds` None are those of the
    precision.
    """
    info, bounds = engine.describe(), coarser(precision, rounding)
    # A softmax in float16 gives zeros below its smallest number.
    half = rounding != Precision.F32 and np.array_equal(reference, reference.astype(np.float16))
    tie, smallest = TIES[bounds], _HALF_SMALLEST if half else _SMALLEST
    found = [_figures(_run(engine, images, size), reference, tie, smallest) for size in batch_sizes]
    diff, cosine, top1, top5 = np.array(found).T
    report = ParityReport(
        runtime=info.runtime,
        runtime_version=info.version,
        precision=info.precision,
        device=info.device,
        images=len(images),
        batch_sizes=batch_sizes,
        max_abs_diff=float(diff.max()),
        logit_cosine=float(cosine.min()),
        top1_agreement=round(float(top1.mean()), 9),  # 0.95 of 20 images at three sizes is 0.95, not a bit less
        top5_agreement=round(float(top5.mean()), 9),
        thresholds=thresholds or THRESHOLDS[bounds],
        passed=False,
    )
    return report.model_copy(update={"passed": not missed(report)})


def missed(report: ParityReport) -> str:
    """What decided against the engine: each measured number that misses its threshold. Empty if none does."""
    limit = report.thresholds
    checks = {
        f"max |dp| {report.max_abs_diff:.2g}, {limit.max_abs_diff:g} allowed": (
            report.max_abs_diff <= limit.max_abs_diff
        ),
        f"cosine {report.logit_cosine:.6f}, {limit.logit_cosine:g} needed": report.logit_cosine >= limit.logit_cosine,
        f"top-1 agrees in {_percent(report.top1_agreement)}, {_percent(limit.top1_agreement)} needed": (
            report.top1_agreement >= limit.top1_agreement
        ),
        f"top-5 agrees in {_percent(report.top5_agreement)}, {_percent(limit.top5_agreement)} needed": (
            report.top5_agreement >= limit.top5_agreement
        ),
    }
    return "; ".join(reason for reason, fulfilled in checks.items() if not fulfilled)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def figures(report: ParityReport) -> str:
    """The measured numbers and their thresholds, in one line."""
    limit = report.thresholds
    return (
        f"{report.runtime} {report.precision}: max |dp| {report.max_abs_diff:.2g} (at most {limit.max_abs_diff:g}), "
        f"cosine {report.logit_cosine:.6f} (at least {limit.logit_cosine:g}), "
        f"top-1 {report.top1_agreement:.1%} (at least {limit.top1_agreement:.0%}), "
        f"top-5 {report.top5_agreement:.1%} (at least {limit.top5_agreement:.0%})"
    )


def _run(engine: Engine, images: Batch, size: int) -> Probabilities:
    return np.concatenate([engine.run(images[start : start + size]) for start in range(0, len(images), size)])


def _figures(
    given: Probabilities, reference: Probabilities, tie: float, smallest: float
) -> tuple[float, float, float, float]:
    """The worst difference, the worst cosine and the mean agreements. Non-finite values give the worst figures."""
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


@dataclass(frozen=True, slots=True)
class CheckedEngine:
    """The key of a check on a GPU. If any field differs, the engine is checked again.

    `engine_sha256` is the sha256 of the plan, or of model.onnx if the runtime reads that.
    """

    engine_sha256: str
    reference_sha256: str
    runtime: str
    runtime_version: str
    precision: Precision
    card: str
    driver: str


@dataclass(frozen=True, slots=True)
class ParityCheck:
    """The comparison of an engine, on the GPU that will run it, with the reference answers in the artifact.

    It is made once: the folder `cache` keeps the report for later loads. Nothing is kept if `cache` is None.
    `batch_sizes` are the sizes that the engine will run.
    """

    artifact: Artifact
    subject: CheckedEngine
    batch_sizes: tuple[int, ...]
    cache: Path | None

    @classmethod
    def of(cls, artifact: Artifact, subject: CheckedEngine, max_batch: int, cache: Path | None) -> "ParityCheck":
        """The check of an engine that takes at most `max_batch` rows."""
        return cls(artifact, subject, tuple(sorted({min(size, max_batch) for size in BATCH_SIZES})), cache)

    def stored(self) -> ParityReport | None:
        """The report of an earlier check of this engine, passed or not, or None."""
        content = None if self.cache is None else self._file(self.cache).read()
        if content is None:
            return None
        try:
            report = ParityReport.model_validate_json(content)
        except ValidationError:
            return None  # another version of topfive wrote it
        return report if set(self.batch_sizes) <= set(report.batch_sizes) else None

    def failure(self, report: ParityReport | None) -> str:
        """Why `report` forbids the engine to serve, or ''. None means that there is no report yet."""
        if report is None and REFERENCE not in self.artifact.manifest.files:
            return _unreadable_reference(self.artifact)
        if report is None or report.passed:
            return ""
        again = "" if self.cache is None else f"; it is checked again once {self._file(self.cache).path} is deleted"
        return (
            f"its answers on this GPU differ from the original's: {missed(report)}; use another --precision or "
            f"--runtime{again}"
        )

    def run(self, engine: Engine, reference: Reference) -> ParityReport:
        """Compare `engine` now and keep the report, passed or not. Errors of the engine pass through."""
        precision, manifest = self.subject.precision, self.artifact.manifest
        images, probabilities = reference.images, reference.probabilities
        report = compare(engine, precision, images, probabilities, manifest.rounding, self.batch_sizes)
        log.info("checked %s on %s: %s", manifest.name, self.subject.card or "the GPU", figures(report))
        if self.cache is not None:
            self._file(self.cache).write(report.model_dump_json(indent=2).encode())
        return report

    def _file(self, cache: Path) -> CacheFile:
        """The file of the report, named by all fields of its key."""
        thresholds = THRESHOLDS[coarser(self.subject.precision, self.artifact.manifest.rounding)]
        subject = "\0".join([*map(str, asdict(self.subject).values()), thresholds.model_dump_json()])
        path = cache / "parity" / f"{sha256(subject.encode()).hexdigest()[:32]}.json"
        return CacheFile(path, "the engine is checked at each load; name a folder with --cache")


def _unreadable_reference(artifact: Artifact) -> str:
    try:
        reference_of(artifact)
    except EngineUnavailableError as error:
        return str(error)
    return ""


def reference_of(artifact: Artifact) -> Reference:
    """The reference images and answers in the artifact.

    Raises EngineUnavailableError, with the command that exports it again, if they are missing or damaged.
    """
    try:
        read_file(artifact.folder.parent.parent, artifact.version, artifact.manifest, REFERENCE)
        reference = read_reference(artifact.folder)
    except (ArtifactError, UnreadableReferenceError) as error:
        raise EngineUnavailableError(f"nothing to check its answers against: {error}") from error
    assert reference is not None, "the file was there a moment ago"
    return reference
