"""Photos as cameras store them, by the definition in EXIF 2.3: which side the first row and column are."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from service.common.types import Pixels

_STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
ORIENTATIONS = tuple(_STORED)


def tagged(orientation: int) -> Image.Exif:
    """An EXIF block with that orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def stored(upright: Pixels, orientation: int, format_name: str, **options: Any) -> bytes:
    """A file that shows these pixels upright once it is turned by its orientation."""
    file = io.BytesIO()
    pixels = np.ascontiguousarray(_STORED[orientation](upright))
    Image.fromarray(pixels).save(file, format_name, exif=tagged(orientation), **options)
    return file.getvalue()
