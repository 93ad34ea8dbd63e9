"""The input recipe: resize and crop a decoded photo as torchvision's transform of the same weights does."""

import numpy as np
from PIL import Image

from models.catalog import InputSpec, Interpolation
from service.types import Pixels, Sample

_FILTERS = {
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}

# How many crops long a resized side may become before only its middle is computed. Below it the whole photo is
# resized, which gives torchvision's very pixels: Pillow chooses by the shape which axis it resizes first, and the
# rounding between the two passes shows.
_MAX_CROPS = 64


def apply(spec: InputSpec, pixels: Pixels) -> Sample:
    """Resize the shorter side to `spec.resize` with antialiasing, keep the centre; uint8 [crop, crop, 3].

    Sizes and offsets round as torchvision's `resize` and `center_crop` do. Of a strip many times longer than wide only
    the middle is resized, so that it takes no more memory than a photo.
    """
    height, width = pixels.shape[:2]
    new_width, new_height = resized_size(width, height, spec.resize)
    left, columns = _window(new_width, spec.crop)
    top, rows = _window(new_height, spec.crop)
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min((left + columns) * x, width), min((top + rows) * y, height))
    image = Image.fromarray(pixels).resize((columns, rows), _FILTERS[spec.interpolation], box=box)
    left, top = _offset(new_width, spec.crop) - left, _offset(new_height, spec.crop) - top
    return np.asarray(image.crop((left, top, left + spec.crop, top + spec.crop)))


def resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Width and height after the shorter side became `shorter`; the longer one is truncated, as torchvision does."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _window(size: int, crop: int) -> tuple[int, int]:
    """First pixel and number of pixels of a resized side to compute: all of it, or the middle of a very long one."""
    longest = _MAX_CROPS * crop
    return (0, size) if size <= longest else (_offset(size, longest), longest)


def _offset(size: int, crop: int) -> int:
    """Where the centre `crop` of `size` pixels begins; Python's round takes halves to even, as torchvision's does."""
    return round((size - crop) / 2)
