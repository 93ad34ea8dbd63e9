"""Measures the accuracy of models on labelled images. A run that was stopped can be resumed."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from models.artifact.artifact import LABELS, MANIFEST
from models.artifact.measured import record_accuracy
from models.labels import Label, read_labels
from service.inference.ensemble import canonical, member_names
from service.offline.images import Dataset, OfflineError
from service.offline.journal import Journal, delete_journal
from service.offline.report import Evaluation, write_report, write_tables
from service.offline.results_file import ResultTable, write_results
from service.offline.runner import Display, ModelRunner, OpenDataPlane, RunOptions, open_runner
from service.offline.scores import score, shift_warnings
from service.repository.model_info import exported, model_detail
from service.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """The models and ensembles, the dataset, and the folder of the results."""

    dataset: Dataset
    models: tuple[str, ...]
    out: Path
    overwrite: bool = False

    def journal(self, model: str) -> Path:
        """The file that keeps the results of that model for the next run."""
        return self.out / f"{model}.journal"


async def evaluate(
    job: EvaluateJob, options: RunOptions, open_data_plane: OpenDataPlane, display: Display, stop: asyncio.Event
) -> AsyncIterator[tuple[Evaluation, str | None]]:
    """Evaluate one model after the other: write its files, record its accuracy in the manifest, and yield it.

    The second value is the reason why the accuracy is not recorded, or None. Raises TopfiveError or OfflineError before
    anything runs if a model is not exported or does not have every label. Raises Stopped if `stop` is set.
    """
    job = await _checked(job, open_data_plane)
    if job.overwrite:
        for model in job.models:
            delete_journal(job.journal(model))
    done: list[Evaluation] = []
    for model in job.models:
        async with open_runner(model, open_data_plane, options, stop) as runner:
            evaluation = await _evaluated(runner, job, display, stop)
            folders = [member.artifact.folder for member in runner.model.members]
        done.append(evaluation)
        try:
            write_tables(job.out, evaluation)
            write_report(job.out / "report.json", job.dataset, done)
        except OSError as error:
            raise _unwritable(job, error) from error
        yield evaluation, _recorded(evaluation, folders)


def _recorded(evaluation: Evaluation, folders: list[Path]) -> str | None:
    """Write the accuracy into the manifest of a single model. Returns why /models will not show it, or None."""
    if len(folders) > 1:
        return f"{evaluation.name} has no manifest: its accuracy is in report.json, and /models will not show it"
    manifest = folders[0] / MANIFEST
    try:
        record_accuracy(manifest, evaluation.measurement(datetime.now(UTC).date().isoformat()))
    except (OSError, ValueError) as error:  # ValueError: measurements of a newer release
        return f"warning: /models will not show this accuracy: {manifest}: {error}"
    return None


async def _checked(job: EvaluateJob, open_data_plane: OpenDataPlane) -> EvaluateJob:
    """The job with each model once, by its full name. Raises unless each is exported and knows every label."""
    data_plane = open_data_plane()
    repository = data_plane.repository
    try:
        models = tuple(dict.fromkeys(canonical(repository, name) for name in job.models))
        for model in models:
            first, *others = member_names(model)
            labels = _labels(repository, first)
            for other in others:
                if _labels(repository, other) != labels:
                    raise OfflineError(f"{first} and {other} have different classes, so they make no ensemble")
            job.dataset.files(labels, model)
    finally:
        await data_plane.aclose(0)
    return replace(job, models=models)


def _labels(repository: Repository, name: str) -> tuple[Label, ...]:
    """The labels of the version that would be loaded."""
    entry = repository.entry(name)
    version, _ = exported(entry, repository.root)
    try:
        return read_labels(repository.root / entry.name / str(version) / LABELS)
    except (OSError, ValueError) as error:
        raise OfflineError(f"the labels of {name} cannot be read: {error}; export it again") from error


async def _evaluated(runner: ModelRunner, job: EvaluateJob, display: Display, stop: asyncio.Event) -> Evaluation:
    model = runner.model
    images = job.dataset.files(model.labels, model.name)
    with Journal(job.journal(model.name), {**runner.setup, "dataset": job.dataset.sha256}) as journal:
        progress = await runner.run(journal, images, display, stop)
        scores = score(journal.results(images), len(model.labels))
        unanswered = tuple(result for result in journal.results(images) if result.error is not None)
        try:
            predictions = ResultTable(journal.results(images), runner.top_k, runner.provenance)
            write_results(job.out / f"{model.name}.predictions.jsonl", predictions)
        except OSError as error:
            raise _unwritable(job, error) from error
    if scores is None:
        first = unanswered[0]
        raise OfflineError(f"none of the {len(images):,} images has an answer; {first.path}: {first.error}")
    return Evaluation(
        name=model.name,
        members=tuple(model_detail(runner.data_plane.repository.entry(member.name)) for member in model.members),
        engine=model.engine_info,
        crops=runner.options.crops,
        decode=runner.options.decode,
        labels=tuple(model.labels),
        dataset=job.dataset,
        scores=scores,
        unanswered=unanswered,
        images_per_s=progress.images_per_s,
        warnings=(*model.warnings, *shift_warnings(scores)),
    )


def _unwritable(job: EvaluateJob, error: OSError) -> OfflineError:
    return OfflineError(f"{job.out} cannot be written: {error.strerror}; the same command tries again")
