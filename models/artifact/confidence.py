"""A share of some trials, in percent, with the interval that says how much so few of them can tell."""

from dataclasses import dataclass
from math import sqrt

_Z95 = 1.959963984540054  # of the standard normal distribution, two-sided 95 %


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many, in percent, with the 95 % interval of the true share."""

    percent: float
    low: float
    high: float

    @property
    def complement(self) -> "Share":
        """The share of the others: an accuracy's error rate, and back."""
        return Share(100 - self.percent, 100 - self.high, 100 - self.low)


def wilson(count: int, total: int) -> Share:
    """`count` of `total` with the score interval of Wilson (1927, J. Am. Stat. Assoc. 22, 209), which is never empty.

    Raises ValueError unless 0 <= count <= total and total > 0.
    """
    if not 0 <= count <= total or not total:
        raise ValueError(f"{count} of {total} is no share")
    share, shrink = count / total, _Z95**2 / total
    middle = (share + shrink / 2) / (1 + shrink)
    half = _Z95 / (1 + shrink) * sqrt(share * (1 - share) / total + shrink / (4 * total))
    low = 0.0 if count == 0 else middle - half  # exactly, where rounding would miss it
    high = 1.0 if count == total else middle + half
    return Share(100 * share, 100 * low, 100 * high)
