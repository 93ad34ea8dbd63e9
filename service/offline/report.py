"""The result of an evaluation: as files, and as a measurement for the manifest."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from models.artifact.measured import MeasuredAccuracy
from models.labels import Label
from service.common.model_info import ModelDetail
from service.common.types import Decode, EngineInfo
from service.offline.images import Dataset
from service.offline.journal import ImageResult
from service.offline.results_file import replacing, write_csv
from service.offline.scores import Scores

_CLASS_COLUMNS = ("class_id", "wnid", "label")
_SCORE_COLUMNS = ("images", "top1_correct", "top5_correct", "recall", "precision", "mistaken_for")


@dataclass(frozen=True, slots=True)
class PublishedRate:
    """A published error rate in percent, with its weights or paper, and its images."""

    what: str
    top1: float | None
    top5: float | None
    on: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The accuracy of a model, or of an ensemble of several `members`, on one dataset.

    `scores` exclude the `unanswered` images, which ended in an error. `images_per_s` is None if this run classified no
    image.
    """

    name: str
    members: tuple[ModelDetail, ...]
    engine: EngineInfo
    crops: int
    decode: Decode
    labels: tuple[Label, ...]
    dataset: Dataset
    scores: Scores
    unanswered: tuple[ImageResult, ...]
    images_per_s: float | None
    warnings: tuple[str, ...]

    def published(self) -> Iterator[PublishedRate]:
        """The published rates of the model, or of each member of an ensemble under the member's name."""
        for member in self.members:
            prefix = "" if len(self.members) == 1 else f"{member.name}: "
            for one in _published(member):
                yield replace(one, what=prefix + one.what)

    def measurement(self, date: str) -> MeasuredAccuracy:
        """The accuracy in the form of the manifest; `date` is YYYY-MM-DD."""
        one, five = self.scores.top1, self.scores.top5
        return MeasuredAccuracy(
            dataset=self.dataset.name,
            dataset_sha256=self.dataset.sha256,
            images=self.scores.images,
            acc1=one.percent,
            acc1_low=one.low,
            acc1_high=one.high,
            acc5=five.percent if five else None,
            acc5_low=five.low if five else None,
            acc5_high=five.high if five else None,
            crops=self.crops,
            runtime=self.engine.runtime,
            precision=self.engine.precision,
            date=date,
            decode=self.decode,
        )

    def to_json(self) -> dict[str, Any]:
        """All figures of this model for report.json; rates are in percent."""
        members = [
            {"model": one.name, "version": one.version, "weights": one.weights_file and asdict(one.weights_file)}
            for one in self.members
        ]
        return {
            **(members[0] if len(members) == 1 else {"model": self.name, "members": members}),
            "engine": asdict(self.engine),
            "crops": self.crops,
            "decode": self.decode,
            "images": self.scores.images,
            "unanswered": [{"path": one.path, **asdict(one.error)} for one in self.unanswered if one.error],
            "images_per_second": self.images_per_s,
            "top1_error": asdict(self.scores.top1.complement),
            "top5_error": self.scores.top5 and asdict(self.scores.top5.complement),
            "published": [asdict(one) for one in self.published()],
            "warnings": self.warnings,
        }


def write_tables(folder: Path, evaluation: Evaluation) -> None:
    """Write MODEL.per_class.csv and MODEL.confusions.csv into `folder`. Shares are in [0, 1]. Raises OSError."""
    labels, scores = evaluation.labels, evaluation.scores
    with replacing(folder / f"{evaluation.name}.per_class.csv") as draft:
        rows = (
            (
                *_cells(labels[one.class_id]),
                *(one.images, one.top1, one.top5, one.recall, one.precision),
                None if one.mistaken_for is None else labels[one.mistaken_for].label,
            )
            for one in scores.classes
        )
        write_csv(draft, (*_CLASS_COLUMNS, *_SCORE_COLUMNS), rows)
    with replacing(folder / f"{evaluation.name}.confusions.csv") as draft:
        columns = [f"{side}_{name}" for side in ("true", "predicted") for name in _CLASS_COLUMNS]
        pairs = (
            (*_cells(labels[one.true]), *_cells(labels[one.predicted]), one.count, one.share)
            for one in scores.confusions
        )
        write_csv(draft, (*columns, "count", "share"), pairs)


def write_report(path: Path, dataset: Dataset, evaluations: Sequence[Evaluation]) -> None:
    """Write the figures of all models as JSON. Raises OSError."""
    content = {
        "dataset": {"name": dataset.name, "sha256": dataset.sha256, "images": len(dataset.images)},
        "models": [evaluation.to_json() for evaluation in evaluations],
    }
    with replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")


def _published(member: ModelDetail) -> Iterator[PublishedRate]:
    """The rates of the model's weights if known, else of the first published weights; then those of the paper."""
    if member.acc1 is not None:
        name = member.weights_file.name if member.weights_file else "inside"
        yield PublishedRate(f"weights {name}", _error(member.acc1), _error(member.acc5), member.acc_dataset or "")
    elif member.published:
        weights = member.published[0]
        what = f"weights {weights.tag} (not those inside)"
        yield PublishedRate(what, _error(weights.acc1), _error(weights.acc5), weights.dataset)
    for errors in member.published_errors:
        yield PublishedRate("paper", errors.top1, errors.top5, errors.protocol)


def _cells(label: Label) -> tuple[int, str, str]:
    return label.class_id, label.wnid, label.label


def _error(accuracy: float | None) -> float | None:
    return None if accuracy is None else round(100 - accuracy, 6)
