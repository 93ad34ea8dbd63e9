"""Accuracy measured on a user's own images, kept in the manifest of the artifact version that was measured."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from models.artifact.files import locked, write_atomically

_KEY = "measured"
_Z95 = 1.959963984540054  # of the standard normal distribution, two-sided 95 %


@dataclass(frozen=True, slots=True)
class Proportion:
    """A proportion in percent, with its 95 % confidence interval."""

    percent: float
    low: float
    high: float


def wilson(count: int, total: int) -> Proportion:
    """The proportion of `count` in `total` with the score interval of Wilson (1927, J. Am. Stat. Assoc. 22, 209).

    Raises ValueError unless 0 <= count <= total and total > 0.
    """
    if not 0 <= count <= total or not total:
        raise ValueError(f"{count} of {total} is no share")
    share, shrink = count / total, _Z95**2 / total
    middle = (share + shrink / 2) / (1 + shrink)
    half = _Z95 / (1 + shrink) * sqrt(share * (1 - share) / total + shrink / (4 * total))
    low = 0.0 if count == 0 else middle - half  # exact, where rounding would miss it
    high = 1.0 if count == total else middle + half
    return Proportion(100 * share, 100 * low, 100 * high)


class MeasuredAccuracy(BaseModel):
    """The result of one evaluation: accuracy in percent with its 95 % interval, on which images and in which engine.

    `dataset` is the name of the folder of images, `dataset_sha256` the fingerprint of the images and their labels. The
    top-5 figures are None if the model has fewer than five classes. `date` is UTC, YYYY-MM-DD.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    dataset: str
    dataset_sha256: str
    images: int
    acc1: float
    acc1_low: float
    acc1_high: float
    acc5: float | None
    acc5_low: float | None
    acc5_high: float | None
    crops: int
    runtime: str
    precision: str
    date: str
    decode: str = "exact"  # older records do not have it

    def replaces(self, other: "MeasuredAccuracy") -> bool:
        """Whether both measured the same thing, so that only the newer one counts."""
        fields = ("dataset_sha256", "crops", "runtime", "precision", "decode")
        return all(getattr(self, field) == getattr(other, field) for field in fields)


def protocol(crops: int) -> str:
    """The test protocol in the words of papers, such as `10 crops`."""
    return "single crop" if crops == 1 else f"{crops} crops"


_MEASURED = TypeAdapter(tuple[MeasuredAccuracy, ...])


def record_accuracy(manifest: Path, accuracy: MeasuredAccuracy) -> None:
    """Add `accuracy` to that manifest.json, in place of an older one of the same thing; nothing else changes.

    The file is replaced in one step. Raises OSError if the folder cannot be written.
    """
    _change(manifest, lambda present: [*(one for one in present if not accuracy.replaces(one)), accuracy])


def delete_accuracy(manifest: Path, runtime: str, precision: str) -> None:
    """Delete what was measured on that engine from that manifest.json. Raises OSError as `record_accuracy` does."""
    _change(manifest, lambda present: [one for one in present if (one.runtime, one.precision) != (runtime, precision)])


def _change(manifest: Path, change: Callable[[Sequence[MeasuredAccuracy]], Sequence[MeasuredAccuracy]]) -> None:
    with locked(manifest.parent):
        content = json.loads(manifest.read_bytes())
        present = _MEASURED.validate_python(content.get(_KEY, ()))
        content[_KEY] = [one.model_dump(mode="json") for one in change(present)]
        write_atomically(manifest, json.dumps(content, indent=2).encode() + b"\n")


def read_measured(manifest: Path) -> tuple[MeasuredAccuracy, ...] | None:
    """The measurements in that manifest.json, oldest first; None if the file cannot be read."""
    try:
        return _MEASURED.validate_python(json.loads(manifest.read_bytes()).get(_KEY, ()))
    except (OSError, ValueError, AttributeError, ValidationError):
        return None
