"""Accuracy of a model on labelled images, and whether their labels seem to be off by one."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from models.artifact.measured import Proportion, wilson
from service.offline.journal import ImageResult

_TOP = 5
_SHIFTED_IMAGES = 10  # fewer prove nothing
_SHIFTED_CLASSES = 3


@dataclass(frozen=True, slots=True)
class Scores:
    """The accuracy on so many images. `top5` is None if the model has fewer than five classes.

    `warnings` say if most images are predicted as the class one above, or one below, the class of their label.
    """

    images: int
    top1: Proportion
    top5: Proportion | None
    warnings: tuple[str, ...]


def score(results: Iterable[ImageResult], classes: int) -> Scores | None:
    """The scores of all results without an error, for a model of `classes` classes; None if there are none.

    A result has its `truth` and five predictions, or all if there are fewer.
    """
    images, first, among_five = 0, 0, 0
    beside: dict[int, Counter[int]] = {-1: Counter(), 1: Counter()}  # by their label, images predicted as its neighbour
    for result in results:
        if result.error is not None:
            continue
        assert result.truth is not None, "the images of an evaluation have labels"
        best = [prediction.class_id for prediction in result.predictions[:_TOP]]
        images += 1
        first += best[0] == result.truth
        among_five += result.truth in best
        if (shift := best[0] - result.truth) in beside:
            beside[shift][result.truth] += 1
    if not images:
        return None
    warnings = [
        f"{shifted.total():,} of {images:,} images are predicted as their class id {shift:+}: the class ids are "
        f"probably off by one (a list that counts from 1, or one of 1001 classes); {remedy} 1"
        for (shift, shifted), remedy in zip(beside.items(), ("subtract", "add"), strict=True)
        if shifted.total() >= max(_SHIFTED_IMAGES, images / 2) and len(shifted) >= _SHIFTED_CLASSES
    ]
    top5 = wilson(among_five, images) if classes >= _TOP else None
    return Scores(images, wilson(first, images), top5, tuple(warnings))
