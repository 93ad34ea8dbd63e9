"""What an evaluation found, as files and as a measurement for the manifest."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from models.artifact.measured import MeasuredAccuracy, Proportion
from models.labels import Label
from service.common.model_info import ModelDetail
from service.common.types import Decode, EngineInfo
from service.offline.dataset import Dataset
from service.offline.rows import Row
from service.offline.scores import Scores
from service.offline.writers import replacing, write_table


@dataclass(frozen=True, slots=True)
class Published:
    """An error rate that somebody else reports, in percent; `what` of, measured `on`."""

    what: str
    top1: float | None
    top5: float | None
    on: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model, or the average of several `members`, on one dataset.

    `unanswered` are the images that do not count; the rate is None where none was run.
    """

    name: str
    members: tuple[ModelDetail, ...]
    engine: EngineInfo
    crops: int
    decode: Decode
    labels: tuple[Label, ...]
    dataset: Dataset
    scores: Scores
    unanswered: tuple[Row, ...]
    per_second: float | None

    @property
    def title(self) -> str:
        """The model with its version, or the ensemble with those of its members."""
        if len(self.members) == 1:
            return f"{self.name} v{self.members[0].version}"
        return f"{self.name} ({', '.join(f'v{member.version}' for member in self.members)})"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of all members, each once."""
        return tuple(dict.fromkeys(warning for member in self.members for warning in member.warnings))

    def published(self) -> Iterator[Published]:
        """What is published of the model, or of each member under its name; nothing is of an ensemble as such."""
        for member in self.members:
            name = "" if len(self.members) == 1 else f"{member.name}: "
            for one in _published(member):
                yield replace(one, what=name + one.what)

    def measurement(self, date: str) -> MeasuredAccuracy:
        """The accuracy, for the manifest; `date` is YYYY-MM-DD."""
        one, five = self.scores.top1, self.scores.top5
        return MeasuredAccuracy(
            dataset=self.dataset.name,
            dataset_sha256=self.dataset.sha256,
            images=self.scores.images,
            acc1=one.percent,
            acc1_low=one.low,
            acc1_high=one.high,
            acc5=None if five is None else five.percent,
            acc5_low=None if five is None else five.low,
            acc5_high=None if five is None else five.high,
            crops=self.crops,
            runtime=self.engine.runtime,
            precision=self.engine.precision,
            date=date,
            decode=self.decode,
        )

    def figures(self) -> dict[str, Any]:
        """Everything about this model for report.json; rates in percent."""
        members = [_identity(member) for member in self.members]
        return {
            **(members[0] if len(members) == 1 else {"model": self.name, "members": members}),
            "engine": asdict(self.engine),
            "crops": self.crops,
            "decode": self.decode,
            "images": self.scores.images,
            "unanswered": [{"path": row.path, **asdict(row.error)} for row in self.unanswered if row.error],
            "images_per_second": self.per_second,
            "top1_error": _interval(self.scores.top1),
            "top5_error": self.scores.top5 and _interval(self.scores.top5),
            "published": [asdict(one) for one in self.published()],
            "warnings": list(self.warnings),
        }


def write_tables(folder: Path, evaluation: Evaluation) -> None:
    """Write MODEL.per_class.csv and MODEL.confusions.csv into `folder`. Shares are in [0, 1].

    Raises OSError where they cannot be written.
    """
    labels, scores = evaluation.labels, evaluation.scores
    classes = (
        (
            *_names(labels[one.class_id]),
            one.images,
            one.top1,
            one.top5,
            one.recall,
            one.precision,
            None if one.confused_with is None else labels[one.confused_with].label,
        )
        for one in scores.classes
    )
    confusions = (
        (*_names(labels[one.true]), *_names(labels[one.predicted]), one.count, one.share) for one in scores.confusions
    )
    tables: Mapping[str, tuple[Sequence[str], Iterator[tuple[object, ...]]]] = {
        "per_class": (
            (
                "class_id",
                "wnid",
                "label",
                "images",
                "top1_correct",
                "top5_correct",
                "recall",
                "precision",
                "mistaken_for",
            ),
            classes,
        ),
        "confusions": (
            (
                *("true_class_id", "true_wnid", "true_label"),
                *("predicted_class_id", "predicted_wnid", "predicted_label"),
                *("count", "share"),
            ),
            confusions,
        ),
    }
    for name, (columns, rows) in tables.items():
        with replacing(folder / f"{evaluation.name}.{name}.csv") as draft:
            write_table(draft, columns, rows)


def write_report(path: Path, dataset: Dataset, evaluations: Sequence[Evaluation]) -> None:
    """Write all figures of all models as JSON. Raises OSError where the file cannot be written."""
    content = {
        "dataset": {"name": dataset.name, "sha256": dataset.sha256, "images": len(dataset.images)},
        "models": [evaluation.figures() for evaluation in evaluations],
    }
    with replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")


def _identity(facts: ModelDetail) -> dict[str, Any]:
    weights = facts.record and facts.record.model_dump(mode="json")
    return {"model": facts.name, "version": facts.version, "weights": weights}


def _published(facts: ModelDetail) -> Iterator[Published]:
    """The weights' own figures (before any for those inside, the default published ones), then the paper's."""
    if facts.acc1 is not None:
        name = facts.record.name if facts.record else "inside"
        yield Published(f"weights {name}", _error(facts.acc1), _error(facts.acc5), facts.acc_dataset or "")
    elif facts.published:
        weights = facts.published[0]
        what = f"weights {weights.tag} (not those inside)"
        yield Published(what, _error(weights.acc1), _error(weights.acc5), weights.dataset)
    for errors in facts.published_errors:
        yield Published("paper", errors.top1, errors.top5, errors.protocol)


def _names(label: Label) -> tuple[int, str, str]:
    return label.class_id, label.wnid, label.label


def _error(accuracy: float | None) -> float | None:
    return None if accuracy is None else round(100 - accuracy, 6)


def _interval(accuracy: Proportion) -> dict[str, float]:
    return asdict(accuracy.complement)
