"""The input recipe: resize and crop a decoded photo as torchvision's transform of the same weights does."""

import math

import numpy as np
from PIL import Image

from models.catalog import InputSpec, Interpolation
from service.types import Pixels, Sample, Samples

TEN_CROPS = 10

_FILTERS = {
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}

# How many crops long a resized side may become before only the parts that are kept are computed. Below it the whole
# photo is resized, which gives torchvision's very pixels.
_MAX_CROPS = 64
_REACH = 4  # source pixels beside such a part that the filters may read when they enlarge


def apply(spec: InputSpec, pixels: Pixels) -> Sample:
    """Resize the shorter side to `spec.resize` with antialiasing, keep the centre; uint8 [crop, crop, 3].

    Sizes and offsets round as torchvision's `resize` and `center_crop` do. Of a strip many times longer than wide only
    the middle is resized, so that it takes no more memory than a photo.
    """
    photo = _Resized(spec, pixels)
    return photo.crop(_offset(photo.size[0], spec.crop), _offset(photo.size[1], spec.crop))


def ten_crops(spec: InputSpec, pixels: Pixels) -> Samples:
    """The same resize, then the corners and the centre of the photo and of its mirror; uint8 [10, crop, crop, 3].

    Crops and order are those of torchvision's `TenCrop`: top left, top right, bottom left, bottom right, centre; then
    these of the mirrored photo, whose top left is the mirror of the top right.
    """
    photo = _Resized(spec, pixels)
    right, bottom = photo.size[0] - spec.crop, photo.size[1] - spec.crop
    middle = _offset(photo.size[0], spec.crop), _offset(photo.size[1], spec.crop)
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom), middle]
    upright = [photo.crop(left, top) for left, top in places]
    mirrored = [photo.crop(right - left, top)[:, ::-1] for left, top in places]
    return np.stack([*upright, *mirrored])


def crops(spec: InputSpec, pixels: Pixels, count: int) -> Samples:
    """`count` crops of one photo, 1 as `apply` or 10 as `ten_crops`; uint8 [count, crop, crop, 3]."""
    return ten_crops(spec, pixels) if count == TEN_CROPS else apply(spec, pixels)[np.newaxis]


def geometry(spec: InputSpec) -> tuple[int, int, Interpolation]:
    """What of a spec the samples depend on: specs that share it share their samples."""
    return spec.resize, spec.crop, spec.interpolation


class _Resized:
    """A photo after the resize, of which crops are taken; of a strip each is computed when it is asked for."""

    def __init__(self, spec: InputSpec, pixels: Pixels) -> None:
        height, width = pixels.shape[:2]
        self.size = resized_size(width, height, spec.resize)
        self._side = spec.crop
        self._resample = _FILTERS[spec.interpolation]
        self._photo = Image.fromarray(pixels)
        self._whole = (
            self._photo.resize(self.size, self._resample) if max(self.size) <= _MAX_CROPS * spec.crop else None
        )

    def crop(self, left: int, top: int) -> Sample:
        """The square whose first corner is there."""
        image = self._whole
        if image is None and self.size[0] < self.size[1]:
            image, top = self._rows(top), 0
        elif image is None:
            image, left = self._columns(left), 0
        return np.asarray(image.crop((left, top, left + self._side, top + self._side)))

    # The steps for a strip, upright here. Pillow resizes one axis after the other, and the rounding between them shows:
    # it takes across first where it enlarges a tall image, and the long axis first elsewhere; so is it done here.

    def _rows(self, top: int) -> Image.Image:
        """So many rows of a tall strip from `top` on as a crop has."""
        piece, box = _part(self._photo, self.size[1], top, self._side)
        if self._photo.width > self.size[0]:
            return _across(_down(piece, self._side, box, self._resample), self.size[0], self._resample)
        return _down(_across(piece, self.size[0], self._resample), self._side, box, self._resample)

    def _columns(self, left: int) -> Image.Image:
        """So many columns of a wide strip from `left` on as a crop has."""
        turned = self._photo.transpose(Image.Transpose.TRANSPOSE)
        piece, box = _part(turned, self.size[0], left, self._side)
        narrow = _across(_down(piece, self._side, box, self._resample), self.size[1], self._resample)
        return narrow.transpose(Image.Transpose.TRANSPOSE)


def _part(image: Image.Image, new_height: int, top: int, rows: int) -> tuple[Image.Image, tuple[float, float]]:
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
