"""Figures of an evaluation: intervals against known values, and counts that can be done by hand."""

import re

import pytest

from models.artifact.measured import wilson
from service.offline.journal import ImageResult
from service.offline.scores import score
from tests.offline.results import bad, good


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (10, 10, 72.25, 100.0),
        (0, 10, 0.0, 27.75),
        (1, 10, 1.79, 40.42),
        (81, 263, 25.53, 36.62),
        (15, 148, 6.24, 16.05),
        (1, 29, 0.61, 17.18),
    ],
)
def test_wilson(count: int, total: int, low: float, high: float) -> None:
    """Intervals are those of the literature to its four digits; the last three are of Newcombe 1998, Stat. Med. 17."""
    share = wilson(count, total)

    assert [share.low, share.high] == pytest.approx([low, high], abs=0.0051)
    assert share.percent == pytest.approx(100 * count / total)


@pytest.mark.parametrize(("count", "total"), [(0, 0), (2, 1), (-1, 5)])
def test_no_share(count: int, total: int) -> None:
    """A count outside 0 to the total, or a total of 0, is an error."""
    with pytest.raises(ValueError, match="is no share"):
        wilson(count, total)


def row(truth: int, *best: int) -> ImageResult:
    """An image of the class `truth` with these predictions."""
    return good("a", *best, truth=truth)


def test_counts() -> None:
    """Scores count top-1 and top-5; an image without an answer does not count."""
    scores = score(
        [
            row(0, 0, 1, 2, 3, 4),
            row(0, 1, 0, 2, 3, 4),
            row(0, 2, 1, 3, 4, 5, 0),  # sixth is not within five
            row(0, 2, 1, 3, 4, 5),
            row(1, 1, 0, 2, 3, 4),
            row(2, 1, 0, 3, 4, 5),
            row(3, 1, 2, 0, 4, 5),
            bad("b"),
        ],
        classes=10,
    )

    assert scores is not None
    assert scores.top5 is not None
    assert scores.images == 7
    assert [scores.top1.percent, scores.top5.percent] == pytest.approx([100 * 2 / 7, 100 * 3 / 7])


def test_few_classes() -> None:
    """A model of fewer than five classes has no top-5; one of five has."""
    few, five = (score([row(0, 1, 2, 0)], classes) for classes in (3, 5))

    assert few is not None
    assert few.top5 is None
    assert five is not None
    assert five.top5 is not None
    assert (five.top1.percent, five.top5.percent) == (0, 100)


def test_nothing_to_count() -> None:
    """Without any answer there are no figures."""
    assert score([bad("b")], classes=10) is None


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([row(truth, truth - 1) for truth in range(1, 11)], "class id -1.*subtract 1"),
        ([row(truth, truth + 1) for truth in range(10)], r"class id \+1.*add 1"),
        ([row(truth, truth) for truth in range(10)], ""),
        ([row(truth, truth - 1) for truth in range(1, 10)], ""),  # too few
        ([row(5, 4) for _ in range(20)], ""),  # two classes that look alike
        ([row(truth, (truth * 7 + 3) % 20) for truth in range(20)], ""),
    ],
)
def test_shifted_labels(results: list[ImageResult], said: str) -> None:
    """If most images are predicted as the class beside their own, the class ids are said to be off by one."""
    scores = score(results, 20)
    assert scores is not None

    warnings = scores.warnings
    assert len(warnings) == bool(said)
    assert all(re.search(said, one) for one in warnings)
