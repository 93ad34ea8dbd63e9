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
        image = _middle(image, size, top, spec.crop, resample, down_first=width > size[0])
        top = 0
    else:
        turned = image.transpose(Image.Transpose.TRANSPOSE)
        image = _middle(turned, (size[1], size[0]), left, spec.crop, resample, down_first=True)
        image = image.transpose(Image.Transpose.TRANSPOSE)
        left = 0
    return np.asarray(image.crop((left, top, left + spec.crop, top + spec.crop)))


def _middle(
    image: Image.Image,
    size: tuple[int, int],
    top: int,
    rows: int,
    resample: Image.Resampling,
    *,
    down_first: bool,
) -> Image.Image:
    """`rows` rows from `top` on of a tall image resized to `size`, without computing the others.

    The two axes are resized one after the other in the order that Pillow takes for the whole, because the rounding
    between them shows: across first where it enlarges a tall image, down first where it shrinks one or the image is a
    wide one, turned.
    """
    width, height = image.size
    scale = height / size[1]
    reach = math.ceil(_REACH * max(1.0, scale))
    first, last = top * scale, (top + rows) * scale
    begin, end = max(0, math.floor(first) - reach), min(height, math.ceil(last) + reach)
    piece = image.crop((0, begin, width, end))
    box = (first - begin, min(last - begin, end - begin))
    if down_first:
        piece = piece.resize((width, rows), resample, box=(0, box[0], width, box[1]))
        return piece.resize((size[0], rows), resample)
    piece = piece.resize((size[0], end - begin), resample)
    return piece.resize((size[0], rows), resample, box=(0, box[0], size[0], box[1]))


def resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Width and height after the shorter side became `shorter`; the longer one is truncated, as torchvision does."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _offset(size: int, crop: int) -> int:
    """Where the centre `crop` of `size` pixels begins; Python's round takes halves to even, as torchvision's does."""
    return round((size - crop) / 2)
