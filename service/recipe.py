"""The input recipe: resize and crop a decoded photo as torchvision's transform of the same weights does."""

import math

import numpy as np
from PIL import Image

from models.catalog import InputSpec, Interpolation
from service.types import Pixels, Sample

_FILTERS = {
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}

# How many crops long a resized side may become before only its middle is computed. Below it the whole photo is
# resized, which gives torchvision's very pixels.
_MAX_CROPS = 64
_REACH = 4  # source pixels beside the middle that the filters may read when they enlarge


def apply(spec: InputSpec, pixels: Pixels) -> Sample:
    """Resize the shorter side to `spec.resize` with antialiasing, keep the centre; uint8 [crop, crop, 3].

    Sizes and offsets round as torchvision's `resize` and `center_crop` do. Of a strip many times longer than wide only
    the middle is resized, so that it takes no more memory than a photo.
    """
    height, width = pixels.shape[:2]
    size = resized_size(width, height, spec.resize)
    image, resample = Image.fromarray(pixels), _FILTERS[spec.interpolation]
    left, top = _offset(size[0], spec.crop), _offset(size[1], spec.crop)
    if max(size) <= _MAX_CROPS * spec.crop:
        image = image.resize(size, resample)
    elif size[0] < size[1]:
        piece, box = _middle(image, size[1], top, spec.crop)
        if width > size[0]:
            image = _across(_down(piece, spec.crop, box, resample), size[0], resample)
        else:
            image = _down(_across(piece, size[0], resample), spec.crop, box, resample)
        top = 0
    else:
        piece, box = _middle(image.transpose(Image.Transpose.TRANSPOSE), size[0], left, spec.crop)
        turned = _across(_down(piece, spec.crop, box, resample), size[1], resample)
        image = turned.transpose(Image.Transpose.TRANSPOSE)
        left = 0
    return np.asarray(image.crop((left, top, left + spec.crop, top + spec.crop)))


# The steps for a strip, upright here. Pillow resizes one axis after the other, and the rounding between them shows: it
# takes across first where it enlarges a tall image, and the long axis first elsewhere; so does `apply`.


def _middle(image: Image.Image, new_height: int, top: int, rows: int) -> tuple[Image.Image, tuple[float, float]]:
    """The part of a tall image that `rows` rows from `top` on will be made of, and where in it they begin and end."""
    scale = image.height / new_height
    reach = math.ceil(_REACH * max(1.0, scale))
    first, last = top * scale, (top + rows) * scale
    begin, end = max(0, math.floor(first) - reach), min(image.height, math.ceil(last) + reach)
    return image.crop((0, begin, image.width, end)), (first - begin, min(last, end) - begin)


def _across(image: Image.Image, width: int, resample: Image.Resampling) -> Image.Image:
    return image.resize((width, image.height), resample)


def _down(image: Image.Image, rows: int, box: tuple[float, float], resample: Image.Resampling) -> Image.Image:
    return image.resize((image.width, rows), resample, box=(0, box[0], image.width, box[1]))


def resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Width and height after the shorter side became `shorter`; the longer one is truncated, as torchvision does."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _offset(size: int, crop: int) -> int:
    """Where the centre `crop` of `size` pixels begins; Python's round takes halves to even, as torchvision's does."""
    return round((size - crop) / 2)
