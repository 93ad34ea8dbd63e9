"""Decodes image files of unknown origin to RGB pixels, or raises a clear error. It does not resize."""

import logging
from dataclasses import dataclass
from io import BytesIO
from math import ceil, prod
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from service.common.errors import BadImage, TooLarge
from service.common.types import FORMATS, ImageLimits, Pixels

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
_PNG_END = b"IEND\xaeB`\x82"  # Pillow accepts a file without it; other formats' readers do not
_ORIENTATION_TAG = 0x0112  # of EXIF; its values 2 to 8 are the keys of _ORIENTATIONS


class Orientation(NamedTuple):
    """The transpose operation that turns a stored image upright, and its effect on the axes.

    `sideways`: width and height are exchanged. `from_right`: the first column of the upright image is the last column
    of the stored image (the last row if `sideways`). `from_below`: the first row of the upright image is the last row
    of the stored image (the last column if `sideways`).
    """

    operation: Image.Transpose | None
    sideways: bool
    from_right: bool
    from_below: bool

    def upright(self, image: Image.Image) -> Image.Image:
        """A stored image, or a part of it, turned upright."""
        return image if self.operation is None else image.transpose(self.operation)


AS_STORED = Orientation(None, False, False, False)
_ORIENTATIONS = {
    2: Orientation(Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: Orientation(Image.Transpose.ROTATE_180, False, True, True),
    4: Orientation(Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: Orientation(Image.Transpose.TRANSPOSE, True, False, False),
    6: Orientation(Image.Transpose.ROTATE_270, True, True, False),
    7: Orientation(Image.Transpose.TRANSVERSE, True, True, True),
    8: Orientation(Image.Transpose.ROTATE_90, True, False, True),
}

_REDUCTIONS = (8, 4, 2)  # scales of libjpeg with vector instructions; 3/8, 5/8 and so on cost more than 1/2
_PILLOW = f"Pillow {PIL.__version__}"
_LIBJPEG = f"libjpeg-turbo {features.version('libjpeg_turbo')}" if features.check("libjpeg_turbo") else _PILLOW

# Pillow's own limit holds for the whole process; `ImageLimits.max_pixels` is checked for each image instead.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # load every reader now, not at the first request

SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)
"""Suffixes of files in one of `FORMATS`, in lower case, such as `.jpeg`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A decoded image in RGB, with all of its pixels or at a reduced size.

    `image` has the pixels as the file stores them, and `orientation` turns them upright. Callers turn the samples
    instead, because they are smaller. `size` is the width and height of the upright image before any reduction.
    `reduction` is 1, 2, 4 or 8: the decoder divides width and height by it, and rounds up. Only a `reducible` image, a
    JPEG that is not lossless, can be decoded at a reduced size.
    """

    image: Image.Image
    size: tuple[int, int]
    reduction: int = 1
    orientation: Orientation = AS_STORED
    reducible: bool = False
    decoder: str = _PILLOW

    @classmethod
    def from_pixels(cls, pixels: Pixels) -> "DecodedImage":
        """Pixels uint8 [H, W, 3] that need no decoding."""
        image = Image.fromarray(pixels)
        return cls(image, image.size)

    def reduction_for(self, needed_side: int | None) -> int:
        """The `reduction` that `decode_image` chooses for this image and that `needed_side` (None: all pixels)."""
        return _reduction(self.size, needed_side) if self.reducible else 1

    @property
    def pixels(self) -> Pixels:
        """The upright pixels of `image`; uint8 [H, W, 3]."""
        return np.asarray(self.orientation.upright(self.image))


def decode_pixels(data: bytes, limits: ImageLimits) -> Pixels:
    """Every pixel of an image file, uint8 [H, W, 3] RGB. Raises the errors of `decode_image`."""
    return decode_image(data, limits).pixels


def decode_image(data: bytes, limits: ImageLimits, needed_side: int | None = None) -> DecodedImage:
    """Decode an image file, with its EXIF orientation.

    `needed_side` is the number of pixels needed along the shorter side, None for all. A JPEG is decoded to 1/8, 1/4 or
    1/2 of its width and height, the smallest of these that leaves enough. Of an animation or a multi-page file the
    first picture is used. Transparent parts become white. 16 bits per channel are scaled to 8. Raises TooLarge before
    decoding if a limit is exceeded, and BadImage for anything that is not one whole image in one of `FORMATS`.
    """
    if not data:
        raise BadImage("the image is empty (0 bytes)")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as file:
            _check_pixels(file, limits)
            return _decoded(file, data, needed_side)
    except (TooLarge, BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image in a known format; send one of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's readers fail in many ways on bytes that are not what they claim to be
        raise BadImage(f"the image is damaged or cut off ({error})") from error


def _check_pixels(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if isinstance(image, TiffImageFile):  # a tile is decoded whole, and may be far larger than the picture in it
        tile = image.tag_v2.get(_TILE_WIDTH, 0), image.tag_v2.get(_TILE_LENGTH, 0)
        width, height = max((width, height), tile, key=prod)
    if width * height > limits.max_pixels:
        raise TooLarge(
            f"the image has {width} x {height} = {width * height:,} pixels; this server takes at most "
            f"{limits.max_pixels:,}; send a smaller copy"
        )


def _reduction(size: tuple[int, int], needed_side: int | None) -> int:
    return next((by for by in _REDUCTIONS if needed_side is not None and min(size) >= by * needed_side), 1)


def _decoded(file: ImageFile, data: bytes, needed_side: int | None) -> DecodedImage:
    size, by, reducible = file.size, 1, False
    if jpeg := isinstance(file, JpegImageFile):
        reducible = bool(file.quantization)  # lossless ones have no such tables, and libjpeg cannot scale them
        # In one piece: for each further block Pillow would take the GIL, which other threads may hold for 5 ms.
        file.decodermaxblock = len(data)
        if reducible and (by := _reduction(size, needed_side)) > 1:
            file.draft(None, (size[0] // by, size[1] // by))
            if file.size != (ceil(size[0] / by), ceil(size[1] / by)):
                raise RuntimeError(f"Pillow {PIL.__version__} decodes 1/{by} of {size} as {file.size}")
    file.load()
    if file.format == "PNG" and _PNG_END not in data:
        raise BadImage("the image is damaged or cut off (its last chunk is missing)")
    orientation = _orientation(file)
    upright = size[::-1] if orientation.sideways else size
    return DecodedImage(_rgb(file), upright, by, orientation, reducible, _LIBJPEG if jpeg else _PILLOW)


def _orientation(image: Image.Image) -> Orientation:
    """The orientation by EXIF. An unreadable EXIF block counts as none, as in a browser."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception as error:  # the picture itself is intact; only its metadata is not
        log.debug("EXIF block ignored: %s", error)
        return AS_STORED
    return _ORIENTATIONS.get(value, AS_STORED) if isinstance(value, int) else AS_STORED


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode of Pillow to RGB: 16 bits to 8, transparency over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        raise BadImage("pixels of 32 bits have no defined white; convert the image to 8 or 16 bits per channel")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", layer.size, "white")
        white.paste(layer, mask=layer)
        return white
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey to 8-bit RGB. Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image)
    eight_bits = np.empty(values.shape, dtype=np.uint8)
    for row, value in zip(eight_bits, values, strict=True):  # row by row, because the product needs 32 bits
        row[:] = (value.astype(np.uint32) + 128) // 257
    return Image.fromarray(eight_bits).convert("RGB")
