"""Image intake: bytes of unknown origin to RGB pixels, or a clear error. It does not resize; see `recipe`."""

import logging
from io import BytesIO
from math import prod

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from service.errors import BadImage, TooLarge
from service.types import ImageLimits, Pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
_PNG_END = b"IEND\xaeB`\x82"  # Pillow does without it; the other formats' readers miss their own last bytes
_ORIENTATION = 0x0112  # EXIF tag; its values 2 to 8 and what undoes them
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow guards itself by one limit for the whole process; `ImageLimits.max_pixels` is checked for each image instead.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # load every reader now, not at the first request

SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)
"""What files in one of `FORMATS` are called, in lower case, such as `.jpeg`."""

log = logging.getLogger(__name__)


def decode(data: bytes, limits: ImageLimits) -> Pixels:
    """The photo as a person sees it: uint8 [H, W, 3] RGB, upright by its EXIF orientation.

    Of an animation or a multi-page file the first picture counts. Transparent parts show white. 16 bits per channel
    are scaled to 8. Raises TooLarge before decoding where a limit is passed, and BadImage for anything that is not
    one whole image in one of `FORMATS`.
    """
    check_size(len(data), limits)
    if not data:
        raise BadImage("the image is empty (0 bytes)")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image, limits)
            image.load()
            if image.format == "PNG" and _PNG_END not in data:
                raise BadImage("the image is damaged or cut off (its last chunk is missing)")
            upright = _upright(image)
            return np.asarray(_rgb(upright))
    except (TooLarge, BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image in a known format; send one of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's readers fail in many ways on bytes that are not what they claim to be
        raise BadImage(f"the image is damaged or cut off ({error})") from error


def check_size(size_bytes: int, limits: ImageLimits) -> None:
    """Raise TooLarge where an image of `size_bytes` is over the limit."""
    if size_bytes > limits.max_bytes:
        raise TooLarge(f"the image has {size_bytes:,} bytes; this server takes at most {limits.max_bytes:,}")


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


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; an unreadable EXIF block counts as none, as in a browser."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception as error:  # the picture itself is whole: only its side note is not
        log.debug("EXIF block ignored: %s", error)
        orientation = None
    operation = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if operation is None else image.transpose(operation)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's to RGB: 16 bits to 8, transparency over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        raise BadImage("pixels of 32 bits do not say what is white; convert the image to 8 or 16 bits per channel")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", layer.size, "white")
        white.paste(layer, mask=layer)
        return white
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to RGB of 8; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image)
    eight_bits = np.empty(values.shape, dtype=np.uint8)
    for row, value in zip(eight_bits, values, strict=True):  # row by row, because the sum needs 32 bits
        row[:] = (value.astype(np.uint32) + 128) // 257
    return Image.fromarray(eight_bits).convert("RGB")
