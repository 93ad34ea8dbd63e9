"""Decodes image files of unknown origin to RGB pixels, or raises a clear error. It does not resize."""

import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import ceil
from threading import Condition
from typing import NamedTuple

import numpy as np
import PIL
import simplejpeg
from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError

from service.common.errors import BadImage, OutOfMemory, Overloaded, TooLarge, TopfiveError
from service.common.types import FORMATS, ImageLimits, Pixels
from service.preprocessing.structure import ImageStructure, decoding_cost, has_all_rows, read_structure
from service.preprocessing.tiff_tags import PHOTOMETRIC, WHITE_IS_ZERO, exif_orientation


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
_LIBJPEG = f"libjpeg-turbo by simplejpeg {simplejpeg.__version__}"

# libjpeg's warnings of pixels that are not what was photographed; others are of side notes, or of bytes too many
_PIXELS_LOST = re.compile(r"premature|bad \w+ code|instead of RST", re.IGNORECASE)
_END_OF_JPEG = b"\xff\xd9"
_MEMORY_LACKS = re.compile(r"^(?!.*security limit).*memory", re.IGNORECASE)

# Pillow takes over pixels of four bytes without a copy, which spares a tenth of the time for large photos. In this mode
# both resizers treat the four bytes separately. Here they are red, green, blue, and one that is unused.
_FOUR_BYTES = "CMYK"

_LARGE_PIXELS = 1_000_000  # smaller images are not counted, and gain nothing by four bytes a pixel
_PIXELS_AT_ONCE = 64_000_000  # in the decoders of all threads, or one larger image: each takes up to 16 bytes
_STEP_PIXELS = 1 << 20

with suppress(ImportError):  # the extra `heic`
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    pillow_heif.options.DECODE_THREADS = 1
os.environ["LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER"] = "12"  # of a JPEG in a TIFF: each scan passes over all pixels
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded side by side instead
Image.init()  # load every reader now, not at the first request

SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "HEIF"))
"""Suffixes of files in one of `FORMATS`, in lower case, such as `.jpeg`."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A decoded image in RGB, with all of its pixels or at a reduced size.

    `image` has the pixels as the file stores them: red, green, blue, and in mode CMYK an unused byte. `orientation`
    turns them upright. Callers turn the samples instead, because they are smaller. `size` is the width and height of
    the upright image before any reduction. `reduction` is 1, 2, 4 or 8: the decoder divides width and height by it, and
    rounds up. Only a `reducible` image, a JPEG, can be decoded at a reduced size.
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
        """The `reduction` that `decode_image` chooses for this image and this `needed_side` (None: all pixels)."""
        return _reduction(self.size, needed_side) if self.reducible else 1

    @property
    def pixels(self) -> Pixels:
        """The upright pixels of `image`; uint8 [H, W, 3]."""
        return rgb_array(self.orientation.upright(self.image))


def rgb_array(image: Image.Image) -> Pixels:
    """The pixels of a `DecodedImage.image` or of a part of it, in memory that may be written."""
    if image.mode == _FOUR_BYTES:  # under this name Pillow leaves the fourth byte out, faster than NumPy does
        image = Image.frombuffer("RGBX", image.size, image.tobytes(), "raw", "RGBX", 0, 1)
    return np.frombuffer(bytearray(image.tobytes("raw", "RGB")), np.uint8).reshape(image.height, image.width, 3)


class _PixelTurns:
    """Bounds the pixels that all threads together decode at once, and so their memory. First come, first served."""

    def __init__(self, at_once: int, timeout_s: float = 5.0) -> None:
        self._at_once = at_once
        self._timeout_s = timeout_s
        self._decoding = 0
        self._waiting: deque[object] = deque()
        self._changed = Condition()

    @contextmanager
    def turn(self, pixels: int) -> Iterator[None]:
        """Wait on this thread until so many pixels more are within the bound; one image alone always is.

        Raises Overloaded if that takes longer than `timeout_s`.
        """
        ticket = object()

        def is_next() -> bool:
            fits = not self._decoding or self._decoding + pixels <= self._at_once
            return fits and self._waiting[0] is ticket

        with self._changed:
            self._waiting.append(ticket)
            in_time = self._changed.wait_for(is_next, self._timeout_s)
            self._waiting.remove(ticket)
            self._changed.notify_all()
            if not in_time:
                raise Overloaded(self._timeout_s, "too many large images are being decoded")
            self._decoding += pixels
        try:
            yield
        finally:
            with self._changed:
                self._decoding -= pixels
                self._changed.notify_all()


_TURNS = _PixelTurns(_PIXELS_AT_ONCE)


def limit_pixels(limits: ImageLimits) -> None:
    """Set Pillow's pixel limit in this process, for images whose size it finds only while it decodes."""
    Image.MAX_IMAGE_PIXELS = limits.max_pixels


def decode_pixels(data: bytes, limits: ImageLimits) -> Pixels:
    """Every pixel of an image file, uint8 [H, W, 3] RGB. Raises the errors of `decode_image`."""
    return decode_image(data, limits).pixels


def decode_image(data: bytes, limits: ImageLimits, needed_side: int | None = None) -> DecodedImage:
    """Decode an image file, with its orientation.

    `needed_side` is the number of pixels needed along the shorter side, None for all. A JPEG is decoded to 1/8, 1/4 or
    1/2 of its width and height, the smallest of these that leaves enough. Of an animation or a multi-page file the
    first picture is used. Transparent parts become white. 16 bits per channel are scaled to 8. Raises TooLarge before
    decoding if a limit is exceeded, BadImage for anything that is not one whole image in one of `FORMATS`, and
    OutOfMemory if the memory does not suffice.
    """
    structure = read_structure(data)
    try:
        if structure.format == "JPEG":
            return _jpeg(structure, limits, needed_side)
        return _by_pillow(structure, limits)
    except TopfiveError:
        raise
    except MemoryError:
        raise OutOfMemory from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image has too many pixels ({error}); send a smaller copy") from None
    except Exception as error:  # decoders fail in many ways on bytes that are not what they claim to be
        if _MEMORY_LACKS.search(str(error)):
            raise OutOfMemory from error
        raise BadImage(f"the image is damaged or cut off ({str(error).strip()})") from None


def _reduction(size: tuple[int, int], needed_side: int | None) -> int:
    return next((by for by in _REDUCTIONS if needed_side is not None and min(size) >= by * needed_side), 1)


def _jpeg(file: ImageStructure, limits: ImageLimits, needed_side: int | None) -> DecodedImage:
    size = file.width, file.height
    cost = decoding_cost(file, *size, limits)
    by = _reduction(size, needed_side)
    width, height = ceil(size[0] / by), ceil(size[1] / by)
    large = width * height > _LARGE_PIXELS
    colours = {1: "GRAY", 3: "RGBX" if large else "RGB", 4: "CMYK"}[file.channels]
    # cameras leave the marker out; with it, libjpeg tells files that lack pixels from those that lack the marker alone
    data = file.data if file.data.endswith(_END_OF_JPEG) else file.data + _END_OF_JPEG
    decode = partial(simplejpeg.decode_jpeg, data, colours, min_height=height, min_width=width, min_factor=by)
    cost = width * height if file.one_pass else cost
    with _TURNS.turn(cost) if cost > _LARGE_PIXELS else nullcontext():
        try:
            pixels = decode(strict=True)
        except ValueError as error:
            if "subsampling" in str(error):
                raise BadImage("the JPEG has a rare subsampling of colour; save it as 4:2:0 or 4:4:4") from None
            if _PIXELS_LOST.search(str(error)):
                raise
            pixels = decode(strict=False)
        if pixels.shape[:2] != (height, width):
            raise RuntimeError(f"libjpeg decodes 1/{by} of {size} as {pixels.shape}")
        if colours == "RGBX":
            image = Image.frombuffer(_FOUR_BYTES, (width, height), pixels, "raw", _FOUR_BYTES, 0, 1)
        else:
            image = Image.fromarray(pixels) if colours == "RGB" else _from_inks(pixels)
    orientation = _ORIENTATIONS.get(file.orientation, AS_STORED)
    return DecodedImage(image, size[::-1] if orientation.sideways else size, by, orientation, True, _LIBJPEG)


def _from_inks(pixels: Pixels) -> Image.Image:
    """Grey, or the four inks of a JPEG, 255 for none, to RGB."""
    height, width, channels = pixels.shape
    if channels == 1:
        return Image.fromarray(pixels[:, :, 0]).convert("RGB")
    image = Image.new("RGB", (width, height))
    for top, bottom in _steps(width, height):
        part = pixels[top:bottom].tobytes()
        image.paste(Image.frombytes("CMYK", (width, bottom - top), part, "raw", "CMYK;I").convert("RGB"), (0, top))
    return image


def _by_pillow(file: ImageStructure, limits: ImageLimits) -> DecodedImage:
    if file.format not in Image.OPEN:
        raise BadImage(
            "this is HEIC, the format of iPhone photos, which this server does not read: send it as JPEG, "
            "or install topfive[heic] on the server"
        )
    cost = decoding_cost(file, file.width, file.height, limits)
    try:
        opened = Image.open(BytesIO(file.data), formats=[file.format])
    except UnidentifiedImageError:
        raise BadImage(f"the image is damaged, or a {file.format} of a rare kind; save it as RGB of 8 bits") from None
    with opened:
        cost = max(cost, decoding_cost(file, *opened.size, limits))
        with _TURNS.turn(cost) if cost > _LARGE_PIXELS else nullcontext():
            opened.load()
            if file.unpacked_bytes and _may_lack_rows(opened) and not has_all_rows(file):
                raise BadImage("the image is damaged or cut off (rows of the PNG are missing)")
            number = file.orientation
            if number == 1 and (exif := opened.info.get("exif")):
                number = exif_orientation(exif.removeprefix(b"Exif\0\0"))
            orientation = _ORIENTATIONS.get(number, AS_STORED)
            size = opened.size[::-1] if orientation.sideways else opened.size
            return DecodedImage(_rgb(opened), size, orientation=orientation)


def _may_lack_rows(png: Image.Image) -> bool:
    """Pillow leaves the rows that a PNG lacks at zero, from the last one up."""
    return bool(png.info.get("interlace")) or png.crop((0, png.height - 1, png.width, png.height)).getbbox() is None


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode of Pillow to RGB: 16 bits to 8, transparency over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        raise BadImage("pixels of 32 bits have no defined white; convert the image to 8 or 16 bits per channel")
    if image.has_transparency_data:
        white = Image.new("RGB", image.size, "white")
        for top, bottom in _steps(image.width, image.height):
            layer = image.crop((0, top, image.width, bottom)).convert("RGBA")
            white.paste(layer, (0, top), layer)
        return white
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey to 8-bit RGB. Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = ~values  # Pillow does so in 8 bits only
    eight_bits = np.empty(values.shape, dtype=np.uint8)
    for top, bottom in _steps(image.width, image.height):  # the product needs 32 bits
        eight_bits[top:bottom] = (values[top:bottom].astype(np.uint32) + 128) // 257
    return Image.fromarray(eight_bits).convert("RGB")


def _steps(width: int, height: int) -> Iterator[tuple[int, int]]:
    """The first row of each part, and the row after it: a conversion in parts takes the memory of one."""
    rows = max(1, _STEP_PIXELS // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))
