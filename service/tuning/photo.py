"""A photo to measure with where the user names none: made here, of the size and weight of an ordinary one."""

from io import BytesIO

import numpy as np
from PIL import Image

_SIZE = (500, 375)
_COARSE = (40, 30)
_GRAIN = 12
_QUALITY = 90


def made_photo() -> bytes:
    """A JPEG of 500 x 375 pixels and about 100 kB, the same each time: coarse colours with grain over them."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (*reversed(_COARSE), 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize(_SIZE, Image.Resampling.BICUBIC), dtype=np.int16)
    grainy = np.clip(smooth + random.integers(-_GRAIN, _GRAIN + 1, smooth.shape), 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(grainy).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
