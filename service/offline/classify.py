"""Classifies any number of images into one results file. A run that was stopped can be resumed."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.offline.images import ImageFile, OfflineError
from service.offline.journal import ImageResult, Journal, delete_journal
from service.offline.results_file import ResultTable, format_of, write_results
from service.offline.runner import Display, OpenDataPlane, RunOptions, RunProgress, open_runner


@dataclass(frozen=True, slots=True)
class ClassifyJob:
    """The images, the model or ensemble, and the results file. Without `top_k` a row has five classes."""

    model: str
    images: tuple[ImageFile, ...]
    out: Path
    top_k: int | None

    @property
    def journal(self) -> Path:
        """The file that keeps the results until all are there."""
        return self.out.with_name(f"{self.out.name}.partial")

    def prepare(self, overwrite: bool) -> None:
        """Check that the run may write its results file. With `overwrite`, delete the journal of an earlier run.

        Raises OfflineError if the format cannot be written, if the journal cannot be deleted or another process has it
        open, or, without `overwrite`, if the results file exists and there is no journal of a run to resume.
        """
        format_of(self.out)
        if overwrite:
            delete_journal(self.journal)
        elif self.out.exists() and not self.journal.exists():
            raise OfflineError(f"{self.out} is there already; give --overwrite, or choose another --out")


@dataclass(frozen=True, slots=True)
class ClassifySummary:
    """A finished job. `failed` rows of the results file have an error; `warnings` are the model's."""

    progress: RunProgress
    failed: int
    warnings: tuple[str, ...]


async def classify(
    job: ClassifyJob, options: RunOptions, open_data_plane: OpenDataPlane, display: Display, stop: asyncio.Event
) -> ClassifySummary:
    """Classify what an earlier run has not, then write the results file.

    Raises TopfiveError, OfflineError, and Stopped if `stop` is set before the end.
    """
    async with open_runner(job.model, open_data_plane, options, stop, job.top_k) as runner:
        with Journal(job.journal, runner.setup) as journal:
            progress = await runner.run(journal, job.images, display, stop)
            failed = 0

            def results() -> Iterator[ImageResult]:
                nonlocal failed
                for result in journal.results(job.images):
                    failed += result.error is not None
                    yield result

            try:
                write_results(job.out, ResultTable(results(), runner.top_k, runner.provenance))
            except OSError as error:
                raise OfflineError(
                    f"{job.out} cannot be written: {error.strerror}; the same command tries again"
                ) from error
        job.journal.unlink(missing_ok=True)
        return ClassifySummary(progress, failed, runner.model.warnings)
