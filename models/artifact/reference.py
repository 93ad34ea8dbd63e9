"""What an artifact must answer: images, and the original's own probabilities for them, kept from the export.

An engine that could not run where the export did is checked against them where it does.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REFERENCE = "reference.npz"


class UnreadableReferenceError(Exception):
    """The file does not hold what it should; the message names it."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`images` are uint8 [N, S, S, 3] RGB, `probabilities` float32 [N, C]."""

    images: NDArray[np.uint8]
    probabilities: NDArray[np.float32]


def write_reference(folder: Path, images: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> None:
    """Write both to `folder`."""
    np.savez_compressed(folder / REFERENCE, images=images, probabilities=probabilities)


def read_reference(folder: Path) -> Reference | None:
    """What `folder` holds, or None where an older version wrote no such file. Raises UnreadableReferenceError."""
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
