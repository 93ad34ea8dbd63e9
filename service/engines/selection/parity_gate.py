"""The check of an engine on the card that is to run it, against the answers that the artifact keeps; made once.

The report lies in the cache folder, and the next load on the same card with the same versions reads it there.
"""

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from models.artifact.artifact import IMPORTED, Artifact, ArtifactError, Manifest, ParityReport, Thresholds, read_file
from models.artifact.files import write_atomically
from models.artifact.reference import REFERENCE, Reference, UnreadableReferenceError, read_reference
from service.common.types import Precision
from service.engines.base import Engine, EngineUnavailableError
from service.engines.selection.parity import BOUNDS, HALF_SMALLEST, Bounds, compare, figures

REPORTS = "gate"
"""The folder of reports in the cache folder."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a report holds for: with another value in any of these the engine is checked again.

    `engine_sha256` is that of the plan, or of the graph where the runtime reads that.
    """

    engine_sha256: str
    reference_sha256: str
    runtime: str
    runtime_version: str
    precision: Precision
    card: str
    driver: str


class _Kept(BaseModel):
    """A report in the cache, with what it holds for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: Subject
    report: ParityReport


@dataclass(frozen=True, slots=True)
class Gate:
    """The check of one engine. `cache` is None where nothing is kept; `batch_sizes` are those that it will run."""

    artifact: Artifact
    subject: Subject
    thresholds: Thresholds
    batch_sizes: tuple[int, ...]
    cache: Path | None

    @classmethod
    def of(cls, artifact: Artifact, subject: Subject, max_batch: int, cache: Path | None) -> "Gate":
        """The check of `artifact` in an engine that takes at most `max_batch` rows."""
        sizes = tuple(sorted({min(size, max_batch) for size in BOUNDS.batch_sizes}))
        return cls(artifact, subject, thresholds(artifact.manifest, subject.precision), sizes, cache)

    def kept(self) -> ParityReport | None:
        """The report of an earlier check, passed or not; None where there is none that holds for this one."""
        if self.cache is None:
            return None
        try:
            kept = _Kept.model_validate_json(self._file(self.cache).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.info("%s cannot be read, the engine is checked again: %s", self._file(self.cache), error)
            return None
        report = kept.report
        holds = kept.subject == self.subject and report.thresholds == self.thresholds
        return report if holds and set(self.batch_sizes) <= set(report.batch_sizes) else None

    def check(self, report: ParityReport) -> None:
        """Raise EngineUnavailableError, with what to do, where that report of it did not pass."""
        if report.passed:
            return
        again = "" if self.cache is None else f"; it is checked again once {self._file(self.cache)} is deleted"
        raise EngineUnavailableError(
            f"its answers on this card differ from the original's: {figures(report)}; use another --precision or "
            f"--runtime{again}"
        )

    def measure(self, engine: Engine, reference: Reference) -> ParityReport:
        """Check `engine` now, and keep the report, passed or not; an engine's own errors come as they are."""
        precision = self.subject.precision
        bounds = Bounds(
            self.batch_sizes,
            thresholds={precision: self.thresholds},
            ties={precision: _tie(self.artifact.manifest, precision)},
            smallest=_smallest(self.artifact.manifest, reference),
        )
        report = compare(engine, precision, reference.images, reference.probabilities, bounds)
        log.info("checked %s on %s: %s", self.artifact.manifest.name, self.subject.card or "the card", figures(report))
        self._keep(report)
        return report

    def _keep(self, report: ParityReport) -> None:
        if self.cache is None:
            return
        file = self._file(self.cache)
        content = _Kept(subject=self.subject, report=report).model_dump_json(indent=2) + "\n"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content.encode())
        except OSError as error:
            log.warning(
                "%s cannot be written (%s), so the engine is checked at each load; name a folder with --cache",
                file,
                error.strerror,
            )

    def _file(self, cache: Path) -> Path:
        """A name made of everything that the report holds for."""
        parts = "\0".join(str(value) for value in asdict(self.subject).values())
        return cache / REPORTS / f"{hashlib.sha256(parts.encode()).hexdigest()[:32]}.json"


def thresholds(manifest: Manifest, precision: Precision) -> Thresholds:
    """What an engine in `precision` must reach.

    The numbers of an imported file may themselves be rounded: what its f32 was allowed, lower precisions are too.
    """
    own, f32 = BOUNDS.thresholds[precision], _of_import(manifest)
    if f32 is None:
        return own
    return Thresholds(
        max_abs_diff=max(own.max_abs_diff, f32.max_abs_diff),
        logit_cosine=min(own.logit_cosine, f32.logit_cosine),
        top1_agreement=min(own.top1_agreement, f32.top1_agreement),
        top5_agreement=min(own.top5_agreement, f32.top5_agreement),
    )


def _of_import(manifest: Manifest) -> Thresholds | None:
    """What f32 was allowed when the file was imported; None for what is no import."""
    if manifest.family != IMPORTED:
        return None
    return next((report.thresholds for report in manifest.parity if report.precision == Precision.F32), None)


def _tie(manifest: Manifest, precision: Precision) -> float:
    """What may tie in `precision`: no less than in the one whose bounds the import had, because its file rounds so."""
    allowed = _of_import(manifest)
    return max(BOUNDS.ties[one] for one in BOUNDS.ties if one is precision or BOUNDS.thresholds.get(one) == allowed)


def _smallest(manifest: Manifest, reference: Reference) -> float:
    """The least probability that is compared: the softmax of an imported file may itself be in float16."""
    given = reference.probabilities
    half = manifest.family == IMPORTED and np.array_equal(given, given.astype(np.float16))
    return HALF_SMALLEST if half else BOUNDS.smallest


def reference_of(artifact: Artifact) -> Reference:
    """The answers that the artifact keeps.

    Raises EngineUnavailableError where an older version wrote none, with the command that does.
    """
    try:
        read_file(artifact.folder.parent.parent, artifact.version, artifact.manifest, REFERENCE)
        reference = read_reference(artifact.folder)
    except (ArtifactError, UnreadableReferenceError) as error:
        raise EngineUnavailableError(f"nothing to check its answers against: {error}") from error
    assert reference is not None, "the file was there a moment ago"
    return reference
