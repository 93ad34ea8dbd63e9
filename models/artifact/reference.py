"""The answers that an artifact must give: images and the original's probabilities for them, stored by the export.

An engine that cannot run where the export runs is checked against them on the machine that runs it.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REFERENCE = "reference.npz"


class UnreadableReferenceError(Exception):
    """The file is damaged; the message names it."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Images, uint8 [N, S, S, 3] RGB, and their probabilities, float32 [N, C]."""

    images: NDArray[np.uint8]
    probabilities: NDArray[np.float32]


def write_reference(folder: Path, images: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> None:
    """Write `images`, uint8 [N, S, S, 3], and `probabilities`, float32 [N, C], into the artifact `folder`."""
    np.savez_compressed(folder / REFERENCE, images=images, probabilities=probabilities)


def read_reference(folder: Path) -> Reference | None:
    """The reference in the artifact `folder`, or None in an artifact of an older version.

    Raises UnreadableReferenceError if the file is damaged.
    """
    path = folder / REFERENCE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            images, probabilities = content["images"], content["probabilities"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UnreadableReferenceError(f"{path} cannot be read: {error}") from error
    if images.dtype != np.uint8 or probabilities.dtype != np.float32 or len(images) != len(probabilities):
        raise UnreadableReferenceError(f"{path} does not hold images and their probabilities")
    return Reference(images, probabilities)
