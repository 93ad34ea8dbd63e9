"""Classifies any number of images into one results file. A run that was stopped can be resumed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.offline.images import ImageFile, OfflineError
from service.offline.journal import ImageResult, Journal
from service.offline.results_file import format_of, write_results
from service.offline.runner import RunOptions, open_runner


@dataclass(frozen=True, slots=True)
class ClassifySummary:
    """A finished run. The `failed` rows of the results file have an error; `warnings` are the model's."""

    failed: tuple[ImageResult, ...]
    images_per_s: float | None
    warnings: tuple[str, ...]


async def classify(
    images: Sequence[ImageFile], model: str, out: Path, options: RunOptions, *, top_k: int | None, overwrite: bool
) -> ClassifySummary:
    """Classify with a model or ensemble what an earlier run has not, then write the results file `out`.

    Until then the results are in `out`.partial. Raises TopfiveError, and OfflineError if `out` cannot be written, or
    is there already and neither `overwrite` nor a run to resume.
    """
    partial = _partial(out, overwrite)
    failed: list[ImageResult] = []
    async with open_runner(model, options, top_k) as runner:
        with Journal(partial, runner.setup, overwrite) as journal:
            images_per_s = await runner.run(journal, images)

            def results() -> Iterator[ImageResult]:
                for result in journal.results(images):
                    if result.error is not None:
                        failed.append(result)
                    yield result

            write_results(out, results(), runner.top_k, runner.provenance)
        partial.unlink(missing_ok=True)
        return ClassifySummary(tuple(failed), images_per_s, runner.model.warnings)


def _partial(out: Path, overwrite: bool) -> Path:
    """The journal of the run. Raises OfflineError if the run may not write `out`."""
    format_of(out)
    partial = out.with_name(f"{out.name}.partial")
    if out.exists() and not partial.exists() and not overwrite:
        raise OfflineError(f"{out} is there already; give --overwrite, or choose another --out")
    return partial
