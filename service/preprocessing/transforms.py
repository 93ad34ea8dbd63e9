"""Resizes and crops a decoded image as torchvision's transform of the same weights does."""

import logging
import math
from collections.abc import Callable
from operator import attrgetter

import numpy as np
from PIL import Image

from models.catalog import InputSpec, Interpolation, ResizeMode
from service.common.types import TEN_CROPS, Decode, Pixels, Sample, Samples
from service.preprocessing.decode import DecodedImage, rgb_array

Span = tuple[float, float]
"""First and last position along one axis of an image, in pixels."""

Resize = Callable[[Image.Image, Span, Span, tuple[int, int]], Image.Image]
"""Resizes part of an RGB image: (image, span of x, span of y, (width, height) of the result)."""

_FILTERS = {
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}

# Pixels along the shorter side that the decoder must leave for each one after the resize.
_LEFT = {Decode.AUTO: 4, Decode.FAST: 2}
_COMMON_RESIZE = 256  # of most weights; those with a smaller resize share the decoded image with them

# Up to this length, in crops, of the resized longer side, ten crops are cut from the whole resized image, which has
# exactly torchvision's pixels. Beyond it each crop is resized from its own part of the image.
_MAX_CROPS = 64
_BINARY_DIGITS = 8  # after the point; with the 16 before it they fit a 32-bit float
_MAX_EXACT_EVERY = 64  # a span that begins and ends where floats are exact may be this many pixels longer at each end
# The SIMD resize is used from this scale on (source pixels per output pixel, both axes). Its filter weights have 16
# bits; Pillow's have 22 bits. So the first pass rounds some pixels to a neighbouring grey level. At a scale near
# 1 the second pass keeps most of that error, and a few pixels then differ from Pillow by two grey levels.
_VECTORISED_FROM = 1.45
_REACH = 4  # source pixels beside such a part that the filters may read when they enlarge

log = logging.getLogger(__name__)


def needed_side(spec: InputSpec, mode: Decode) -> int | None:
    """Pixels that the decoder must leave along the shorter side for this transform; None for all."""
    return None if mode is Decode.EXACT else _LEFT[mode] * max(spec.resize, _COMMON_RESIZE)


def center_crop(spec: InputSpec, pixels: Pixels) -> Sample:
    """The sample of `make_samples` from pixels [H, W, 3]; uint8 [crop, crop, 3]."""
    sample: Sample = make_samples(spec, DecodedImage.from_pixels(pixels), 1)[0]
    return sample


def make_samples(spec: InputSpec, image: DecodedImage, crops: int) -> Samples:
    """Resize the shorter side, or both, to `spec.resize` with antialiasing, crop; uint8 [crops, crop, crop, 3].

    One crop is the centre. Ten crops are torchvision's `TenCrop` in its order: top left, top right, bottom left, bottom
    right, centre; then these of the mirrored image, whose top left is the mirror of the top right.

    Sizes and offsets round as torchvision's `resize` and `center_crop` do. Only the part of the image under a crop is
    resized. So some pixels differ by one grey level from torchvision (one in 1000; one in 500 with vector instructions)
    and one in a hundred million by two: Pillow takes parts of pixels in 32 bits, and vector instructions have 16-bit
    weights. For a reduced image the grid is computed from the size of the whole image.
    """
    resized = _Resized(spec, image)
    right, bottom = resized.size[0] - spec.crop, resized.size[1] - spec.crop
    middle = round(right / 2), round(bottom / 2)  # rounds half to even, as torchvision does
    if crops != TEN_CROPS:
        return rgb_array(resized.crop(*middle))[np.newaxis]  # engines share only writable memory
    samples = np.empty((crops, spec.crop, spec.crop, 3), np.uint8)
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom), middle]
    cut = resized.crop if max(resized.size) > _MAX_CROPS * spec.crop else resized.whole()
    for upright, mirrored, (left, top) in zip(samples[:5], samples[5:], places, strict=True):
        upright[:] = rgb_array(cut(left, top))
        mirrored[:] = rgb_array(cut(right - left, top))[:, ::-1]
    return samples


geometry: Callable[[InputSpec], tuple[int, int, Interpolation, ResizeMode]] = attrgetter(
    "resize", "crop", "interpolation", "fit"
)
"""The fields of a spec that its samples depend on. Specs with equal fields share their samples."""


class _Resized:
    """A lazily resized image: each crop is computed on request. The grid is the pixels of the resized image.

    `size` and the arguments of `crop` refer to the upright image. All other coordinates refer to the image as stored;
    each crop is rotated or mirrored at the end.
    """

    def __init__(self, spec: InputSpec, image: DecodedImage) -> None:
        squash = spec.fit is ResizeMode.SQUASH
        self.size = (spec.resize, spec.resize) if squash else resized_size(*image.size, spec.resize)
        self._image = image.image
        self._orientation = image.orientation
        self._side = spec.crop
        sideways = image.orientation.sideways
        self._grid = _swapped(self.size, sideways)
        self._down_first = _down_first(_swapped(self._image.size, sideways), self.size) is not sideways
        self._resample = _FILTERS[spec.interpolation]
        # its bicubic resize was up to 31 grey levels away from Pillow's
        self._simd_resize = SIMD_RESIZE if spec.interpolation is Interpolation.BILINEAR else None
        # image pixels per grid pixel, and the distance of grid positions that have few binary digits
        sides = [
            (old, new * image.reduction) for old, new in zip(_swapped(image.size, sideways), self._grid, strict=True)
        ]
        self._steps = [old / new for old, new in sides]
        self._exact_every = [new // math.gcd(new, old << _BINARY_DIGITS) for old, new in sides]
        self._ends = [
            min(size, step * length)
            for size, step, length in zip(self._image.size, self._steps, self._grid, strict=True)
        ]

    def crop(self, left: int, top: int) -> Image.Image:
        """The square at that corner, resized from its part of the image."""
        return self._orientation.upright(self._stored_square(*self._stored_corner(left, top)))

    def whole(self) -> Callable[[int, int], Image.Image]:
        """The same function as `crop`, over the whole image, resized once."""
        image = self._resize((0.0, self._ends[0]), (0.0, self._ends[1]), self._grid)

        def cut(left: int, top: int) -> Image.Image:
            left, top = self._stored_corner(left, top)
            return self._orientation.upright(image.crop((left, top, left + self._side, top + self._side)))

        return cut

    def _stored_corner(self, left: int, top: int) -> tuple[int, int]:
        """The corner of a square in the stored image."""
        left = self.size[0] - self._side - left if self._orientation.from_right else left
        top = self.size[1] - self._side - top if self._orientation.from_below else top
        return _swapped((left, top), self._orientation.sideways)

    def _stored_square(self, left: int, top: int) -> Image.Image:
        if self._simd_resize and min(self._steps) >= _VECTORISED_FROM:
            return self._shrunk(self._simd_resize, self._span(0, left), self._span(1, top))
        (x, width, left), (y, height, top) = self._part(0, left), self._part(1, top)
        resized = self._resize(x, y, (width, height))
        if width == height == self._side:
            return resized
        return resized.crop((left, top, left + self._side, top + self._side))

    def _shrunk(self, resize: Resize, x: Span, y: Span) -> Image.Image:
        """Resize those spans of the image to a square with a resizer that takes columns first, in Pillow's order."""
        side = self._side
        if self._down_first:
            return resize(self._image, x, y, (side, side))
        top, bottom = self._reach(1, y)
        across = resize(self._image, x, (top, bottom), (side, bottom - top))
        return resize(across, (0, side), (y[0] - top, y[1] - top), (side, side))

    def _resize(self, x: Span, y: Span, size: tuple[int, int]) -> Image.Image:
        """Resize those spans of the image to `size` with Pillow."""
        image, down_first = self._image, self._down_first
        if down_first == _down_first(image.size, size) and (size == self._grid or min(self._steps) >= 1):
            return image.resize(size, self._resample, box=(x[0], y[0], x[1], y[1]))
        (left, right), (top, bottom) = self._reach(0, x), self._reach(1, y)
        part = image.crop((left, top, right, bottom))
        x, y = (x[0] - left, x[1] - left), (y[0] - top, y[1] - top)
        if down_first:
            return _across(_down(part, y, size[1], self._resample), x, size[0], self._resample)
        return _down(_across(part, x, size[0], self._resample), y, size[1], self._resample)

    def _part(self, axis: int, first: int) -> tuple[Span, int, int]:
        """Return, for the crop that begins at `first` on one axis of the grid: the source span, in pixels of the stored
        image; its length after the resize, in pixels; and the offset of the crop within it.

        Pillow stores a span in 32-bit floats. If a float cannot hold the exact position, pixels close to a rounding
        boundary get another grey level. This affects many pixels if the image is enlarged or is small. For an enlarged
        axis the whole axis is resized, unless it is very long. Otherwise the span is extended to positions that a float
        holds exactly, if these are at most `_MAX_EXACT_EVERY` pixels away.
        """
        step, size, end = self._steps[axis], self._grid[axis], self._ends[axis]
        if step < 1 and size <= _MAX_CROPS * self._side:
            return (0.0, end), size, first
        last = first + self._side
        if (every := self._exact_every[axis]) <= _MAX_EXACT_EVERY:
            begins, ends = first - first % every, min(size, last + -last % every)
        else:
            begins, ends = first, last
        return (begins * step, min(end, ends * step)), ends - begins, first - begins

    def _span(self, axis: int, first: int) -> Span:
        """The source span, in pixels of the stored image, of the crop that begins at `first` on the grid."""
        return first * self._steps[axis], min(self._ends[axis], (first + self._side) * self._steps[axis])

    def _reach(self, axis: int, span: Span) -> tuple[int, int]:
        """The whole pixels that the filters may read for that span."""
        reach = math.ceil(_REACH * max(1.0, self._steps[axis]))
        return max(0, math.floor(span[0]) - reach), min(self._image.size[axis], math.ceil(span[1]) + reach)


def _swapped(sides: tuple[int, int], sideways: bool) -> tuple[int, int]:
    """Swap a pair (x, y) if `sideways`: converts between the axes of the upright and of the stored image."""
    return sides[::-1] if sideways else sides


def _down_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether Pillow 13 resizes columns before rows. The order affects rounding, so both resizers use the same."""
    return old[1] > new[1] and old[1] - new[1] > 2 * (old[0] - new[0])


def _across(image: Image.Image, span: Span, width: int, resample: Image.Resampling) -> Image.Image:
    return image.resize((width, image.height), resample, box=(span[0], 0, span[1], image.height))


def _down(image: Image.Image, span: Span, height: int, resample: Image.Resampling) -> Image.Image:
    return image.resize((image.width, height), resample, box=(0, span[0], image.width, span[1]))


def resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Width and height after the shorter side became `shorter`. The longer side is truncated, as torchvision does."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _load_simd_resize() -> Resize | None:
    """The resize of `cykooz-resizer`, or None if it is not installed or its pixels differ from Pillow's.

    It antialiases as Pillow does, takes spans in 64-bit floats and rounds after both passes as Pillow does, so it is
    within one grey level of Pillow. It releases the GIL, as Pillow does. It reads Pillow's internal image structure, so
    the check detects a Pillow version that it was not made for.
    """
    try:
        from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
    except ImportError:
        return None
    bilinear = ResizeAlg.convolution(FilterType.bilinear)

    def resize(image: Image.Image, x: Span, y: Span, size: tuple[int, int]) -> Image.Image:
        box = CropBox(x[0], y[0], x[1] - x[0], y[1] - y[0])
        resized = Image.new(image.mode, size)
        # one resizer per call: a shared one lets one thread in at a time
        Resizer().resize_pil(image, resized, ResizeOptions(bilinear, use_alpha=False, crop_box=box))
        return resized

    return resize if _agrees_with_pillow(resize) else None


def _agrees_with_pillow(resize: Resize) -> bool:
    """Whether a part of a test pattern has the same pixels as with Pillow, to within one grey level."""
    rows, columns, channels = np.ogrid[:90, :120, :3]
    image = Image.fromarray(((rows * 7 + columns * 13 + channels * 85) % 256).astype(np.uint8))
    try:
        ours = np.asarray(resize(image, (8.5, 104.5), (3.0, 83.0), (32, 32)), int)
    except Exception as error:  # a library may fail in any way with a Pillow version that it was not made for
        log.warning("cykooz-resizer fails, so Pillow resizes instead: %s", error)
        return False
    pillows = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR, box=(8.5, 3.0, 104.5, 83.0)), int)
    if (difference := int(np.abs(ours - pillows).max())) > 1:
        log.warning("cykooz-resizer differs from Pillow by %d grey levels, so Pillow resizes instead", difference)
        return False
    return True


SIMD_RESIZE = _load_simd_resize()
"""The bilinear resize of the extra `simd`, None if Pillow resizes; `python -m benchmarks.decoding` compares both."""
