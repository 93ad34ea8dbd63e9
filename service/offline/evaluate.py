"""Measures the accuracy of a model on labelled images. A run that was stopped can be resumed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.artifact.artifact import MANIFEST, PACKAGED
from models.artifact.files import write_atomically
from models.artifact.measured import MeasuredAccuracy, record_accuracy
from service.common.model_info import ModelDetail
from service.common.types import Decode, EngineInfo
from service.offline.images import Dataset, OfflineError
from service.offline.journal import ImageResult, Journal
from service.offline.results_file import write_results
from service.offline.runner import RunOptions, open_runner
from service.offline.scores import Scores, score
from service.repository.model_info import model_detail


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
    dataset: Dataset
    scores: Scores
    unanswered: tuple[ImageResult, ...]
    images_per_s: float | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All figures of this model for report.json; rates are in percent."""
        members = [{"model": one.name, "version": one.version} for one in self.members]
        return {
            **(members[0] if len(members) == 1 else {"model": self.name, "members": members}),
            "engine": asdict(self.engine),
            "crops": self.crops,
            "decode": self.decode,
            "images": self.scores.images,
            "unanswered": [{"path": one.path, **asdict(one.error)} for one in self.unanswered if one.error],
            "images_per_second": self.images_per_s,
            "top1": asdict(self.scores.top1),
            "top5": self.scores.top5 and asdict(self.scores.top5),
            "warnings": self.warnings,
        }


async def evaluate(dataset: Dataset, model: str, out: Path, options: RunOptions, *, overwrite: bool) -> Evaluation:
    """Evaluate one model or ensemble, write its predictions into the folder `out`, and record its accuracy.

    Raises TopfiveError, and OfflineError if the model does not have every label, or a file cannot be written.
    """
    async with open_runner(model, options) as runner:
        served = runner.model
        images = dataset.files(served.labels, served.name)
        setup = {**runner.setup, "dataset": dataset.sha256}
        with Journal(out / f"{served.name}.journal", setup, overwrite) as journal:
            images_per_s = await runner.run(journal, images)
            scores = score(journal.results(images), len(served.labels))
            unanswered = tuple(result for result in journal.results(images) if result.error is not None)
            predictions = out / f"{served.name}.predictions.jsonl"
            write_results(predictions, journal.results(images), runner.top_k, runner.provenance)
        if scores is None:
            first = unanswered[0]
            raise OfflineError(f"none of the {len(images):,} images has an answer; {first.path}: {first.error}")
        measured = _measurement(dataset, scores, served.engine_info, options.crops, options.decode)
        unrecorded = _record(measured, [member.artifact.folder for member in served.members])
        return Evaluation(
            name=served.name,
            members=tuple(model_detail(runner.data_plane.repository.entry(one.name)) for one in served.members),
            engine=served.engine_info,
            crops=options.crops,
            decode=options.decode,
            dataset=dataset,
            scores=scores,
            unanswered=unanswered,
            images_per_s=images_per_s,
            warnings=(*served.warnings, *scores.warnings, *unrecorded),
        )


def write_report(path: Path, dataset: Dataset, evaluations: Sequence[Evaluation]) -> None:
    """Write the figures of all models as JSON. Raises OSError."""
    content = {
        "dataset": {"name": dataset.name, "sha256": dataset.sha256, "images": len(dataset.images)},
        "models": [evaluation.to_json() for evaluation in evaluations],
    }
    write_atomically(path, json.dumps(content, indent=2).encode() + b"\n")


def _measurement(dataset: Dataset, scores: Scores, engine: EngineInfo, crops: int, decode: Decode) -> MeasuredAccuracy:
    """The accuracy in the form of the manifest."""
    one, five = scores.top1, scores.top5
    return MeasuredAccuracy(
        dataset=dataset.name,
        dataset_sha256=dataset.sha256,
        images=scores.images,
        acc1=round(one.percent, 3),
        acc1_low=round(one.low, 3),
        acc1_high=round(one.high, 3),
        acc5=round(five.percent, 3) if five else None,
        acc5_low=round(five.low, 3) if five else None,
        acc5_high=round(five.high, 3) if five else None,
        crops=crops,
        runtime=engine.runtime,
        precision=engine.precision,
        date=datetime.now(UTC).date().isoformat(),
        decode=decode,
    )


def _record(accuracy: MeasuredAccuracy, folders: Sequence[Path]) -> list[str]:
    """Write the accuracy into the manifest of a single model. Returns why /models will not show it, if so."""
    if len(folders) > 1:
        return ["an ensemble has no manifest: its accuracy is in report.json, and /models will not show it"]
    manifest = folders[0] / MANIFEST
    if manifest.is_relative_to(PACKAGED):
        return ["it comes with topfive: its accuracy is in report.json; export it to see that in /models"]
    try:
        record_accuracy(manifest, accuracy)
    except (OSError, ValueError) as error:  # ValueError: measurements of a newer release
        return [f"/models will not show this accuracy: {manifest}: {error}"]
    return []
