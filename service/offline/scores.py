"""How many answers were right: error rates with their intervals, figures of each class, and what is taken for what."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from models.artifact.measured import Proportion, wilson
from service.offline.rows import Row

TOP = 5


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class: images that show it, how many of them were right first and within five, how often it was answered.

    `confused_with` is the most frequent wrong answer, the lowest class id of equal ones, None where all were right.
    """

    class_id: int
    images: int
    top1: int
    top5: int
    answered: int
    confused_with: int | None

    @property
    def recall(self) -> float:
        """Share of the images of this class that were answered with it."""
        return self.top1 / self.images

    @property
    def precision(self) -> float | None:
        """Share of the answers with this class that were right, None where there was none."""
        return self.top1 / self.answered if self.answered else None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of the class `true` that were taken for `predicted`, and their share of all of that class."""

    true: int
    predicted: int
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Scores:
    """All figures of one evaluation. `top5` is None where the model has fewer than five classes."""

    images: int
    top1: Proportion
    top5: Proportion | None
    classes: tuple[ClassScore, ...]
    confusions: tuple[Confusion, ...]


def score(rows: Iterable[Row], classes: int) -> Scores | None:
    """Figures over all rows with an answer, of a model of so many classes; None where there is no such row.

    Each row has its `truth` and at least five predictions, or all there are. Classes are those that have images, by
    class id; confusions the most frequent first.
    """
    images: Counter[int] = Counter()
    first: Counter[int] = Counter()
    among: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for row in rows:
        if row.error is not None:
            continue
        assert row.truth is not None, "a row of an evaluation knows its class"
        best = [prediction.class_id for prediction in row.predictions[:TOP]]
        images[row.truth] += 1
        pairs[row.truth, best[0]] += 1
        first[row.truth] += best[0] == row.truth
        among[row.truth] += row.truth in best
    if not (total := images.total()):
        return None
    wrong = sorted(
        (Confusion(true, predicted, count, count / images[true]) for (true, predicted), count in pairs.items()),
        key=lambda one: (-one.count, one.true, one.predicted),
    )
    confusions = tuple(one for one in wrong if one.true != one.predicted)
    answered: Counter[int] = Counter()
    for (_, predicted), count in pairs.items():
        answered[predicted] += count
    worst: dict[int, int] = {}
    for one in confusions:
        worst.setdefault(one.true, one.predicted)
    return Scores(
        images=total,
        top1=wilson(first.total(), total),
        top5=wilson(among.total(), total) if classes >= TOP else None,
        classes=tuple(
            ClassScore(number, images[number], first[number], among[number], answered[number], worst.get(number))
            for number in sorted(images)
        ),
        confusions=confusions,
    )
