"""Accuracy measured on a user's own images, kept in the manifest of the artifact version that was measured."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from models.artifact.files import replace

_KEY = "measured"


class Measurement(BaseModel):
    """One evaluation: accuracy in percent with its 95 % interval, on what, and in which engine.

    `dataset_sha256` is the fingerprint of the images and their labels, `dataset` only what its folder was called.
    Figures of the five best are None where the model has fewer than five classes. `date` is UTC, YYYY-MM-DD.
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
    decode: str = "exact"  # before it could be chosen

    def replaces(self, other: "Measurement") -> bool:
        """Whether both measured the same thing, so that only the newer one is of interest."""
        return self._what() == other._what()

    def agrees(self, other: "Measurement") -> bool:
        """Whether both say the same, on whatever day."""
        return self.model_copy(update={"date": other.date}) == other

    def _what(self) -> tuple[str, int, str, str, str]:
        return self.dataset_sha256, self.crops, self.runtime, self.precision, self.decode


def protocol(crops: int) -> str:
    """How an image was looked at, as papers put it; published figures of another protocol are another measurement."""
    return "single crop" if crops == 1 else f"{crops} crops"


_MEASURED = TypeAdapter(tuple[Measurement, ...])


def record(manifest: Path, measurement: Measurement) -> None:
    """Add `measurement` to that manifest.json in the place of an older one of the same; all else in it stays.

    The file is replaced in one step, so that a reader sees the old one or the new one. Raises OSError where the folder
    cannot be written.
    """
    with _locked(manifest.parent):
        content = json.loads(manifest.read_bytes())
        present = _MEASURED.validate_python(content.get(_KEY, ()))
        if any(measurement.agrees(one) for one in present):
            return
        kept = [one for one in present if not measurement.replaces(one)]
        content[_KEY] = [one.model_dump(mode="json") for one in (*kept, measurement)]
        replace(manifest, json.dumps(content, indent=2).encode() + b"\n")


def read_measured(manifest: Path) -> tuple[Measurement, ...] | None:
    """What that manifest.json holds now, oldest first; None where it cannot be read."""
    try:
        return _MEASURED.validate_python(json.loads(manifest.read_bytes()).get(_KEY, ()))
    except (OSError, ValueError, AttributeError, ValidationError):
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among the processes that record into that folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
