"""Accuracy of a model on labelled images: in all, for each class, and which classes it confuses."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from models.artifact.measured import Proportion, wilson
from service.offline.journal import ImageResult

_TOP = 5
_SHIFTED_IMAGES = 10  # fewer prove nothing
_SHIFTED_CLASSES = 3


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class: its images, how many of them have it first or among five, and how often it is predicted for any image.

    `mistaken_for` is the most frequent wrong prediction, of equal ones the lowest class id, None without mistakes.
    """

    class_id: int
    images: int
    top1: int
    top5: int
    predicted: int
    mistaken_for: int | None

    @property
    def recall(self) -> float:
        return self.top1 / self.images

    @property
    def precision(self) -> float | None:
        """Correct predictions of the class per prediction of it; None if it is never predicted."""
        return self.top1 / self.predicted if self.predicted else None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of the class `true` that are predicted as the class `predicted`, and their share of that class."""

    true: int
    predicted: int
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Scores:
    """All figures of one evaluation. `top5` is None if the model has fewer than five classes."""

    images: int
    top1: Proportion
    top5: Proportion | None
    classes: tuple[ClassScore, ...]
    confusions: tuple[Confusion, ...]


def score(results: Iterable[ImageResult], classes: int) -> Scores | None:
    """The scores of all results without an error, for a model of `classes` classes; None if there are none.

    A result has its `truth` and five predictions, or all if there are fewer. Classes without images are left out;
    confusions are sorted by count.
    """
    images, first, among_five, pairs = Counter[int](), Counter[int](), Counter[int](), Counter[tuple[int, int]]()
    for result in results:
        if result.error is not None:
            continue
        assert result.truth is not None, "the images of an evaluation have labels"
        best = [prediction.class_id for prediction in result.predictions[:_TOP]]
        images[result.truth] += 1
        pairs[result.truth, best[0]] += 1
        first[result.truth] += best[0] == result.truth
        among_five[result.truth] += result.truth in best
    if not (total := images.total()):
        return None
    confusions = [
        Confusion(true, predicted, count, count / images[true])
        for (true, predicted), count in pairs.items()
        if true != predicted
    ]
    confusions.sort(key=lambda one: (-one.count, one.true, one.predicted))
    predicted = Counter[int]()
    for (_, class_id), count in pairs.items():
        predicted[class_id] += count
    worst = {one.true: one.predicted for one in reversed(confusions)}
    return Scores(
        images=total,
        top1=wilson(first.total(), total),
        top5=wilson(among_five.total(), total) if classes >= _TOP else None,
        classes=tuple(
            ClassScore(one, images[one], first[one], among_five[one], predicted[one], worst.get(one))
            for one in sorted(images)
        ),
        confusions=tuple(confusions),
    )


def shift_warnings(scores: Scores) -> list[str]:
    """A warning if most images are predicted as the class one above, or one below, the class of their label."""
    warnings = []
    for shift, remedy in ((-1, "subtract 1 from the labels"), (1, "add 1 to the labels")):
        pairs = [one for one in scores.confusions if one.predicted == one.true + shift]
        images = sum(one.count for one in pairs)
        if images >= max(_SHIFTED_IMAGES, scores.images / 2) and len(pairs) >= _SHIFTED_CLASSES:
            warnings.append(
                f"{images:,} of {scores.images:,} images are predicted as their class id {shift:+}: "
                f"the class ids are probably off by one (a list that counts from 1, or one of 1001 classes); {remedy}"
            )
    return warnings
