"""Results of images, as tests make them."""

import os

from service.common.types import Prediction
from service.offline.journal import ImageError, ImageResult

ODD_NAMES = ["plain.png", "a,b.png", 'quo"te.png', "line\nbreak.png", "zo\u00eb.png", os.fsdecode(b"caf\xe9.png")]


def good(name: str, *best: int, truth: int | None = None) -> ImageResult:
    """A result with these classes, best first."""
    found = enumerate(best or (1, 2), start=1)
    predictions = (Prediction(rank, id_, f"n{id_:08}", f"class, {id_}", 0.5 / rank) for rank, id_ in found)
    return ImageResult(name, None, tuple(predictions), truth)


def bad(name: str, code: str = "bad_image") -> ImageResult:
    """A result with an error."""
    return ImageResult(name, ImageError(code, 'not "an" image,\nat all'))
