"""What is known of an image file before it is decoded, and what decoding it will cost."""

from dataclasses import dataclass
from math import ceil

from service.common.errors import BadImage, TooLarge
from service.common.types import ImageLimits

_MAX_SIDE = 65_535  # pixels: the most that JPEG and GIF can say
_MAX_COST = 64_000_000  # pixels of a plain JPEG: a second of CPU and 700 MB
_DENSE_PIXELS, _MAX_PIXELS_PER_BYTE = 4_000_000, 2000  # one colour has fewer in each format but WebP


@dataclass(frozen=True, slots=True)
class ImageStructure:
    """What is known of an image file before it is decoded.

    `data` is the file without what a decoder does not need. `width` and `height` are in pixels, 0 if only the decoder
    knows them. `orientation` is EXIF's, 1 for upright. `channels` counts the channels of a JPEG; if all of it is in one
    scan (`one_pass`), decoding at a reduced size takes only the memory of that size. The rows of a PNG begin at
    `packed_at` in `data`, and decompress to `unpacked_bytes`. `pixel_cost` and `byte_cost` are what a pixel and a byte
    of `data` cost to decode, in pixels of a plain JPEG.
    """

    format: str
    data: bytes
    width: int = 0
    height: int = 0
    orientation: int = 1
    channels: int = 0
    one_pass: bool = False
    packed_at: int = 0
    unpacked_bytes: int = 0
    pixel_cost: float = 1.0
    byte_cost: float = 0.0


def decoding_cost(file: ImageStructure, width: int, height: int, limits: ImageLimits) -> int:
    """What decoding so many pixels of the file costs, in pixels of a plain JPEG: a second of CPU for `_MAX_COST`.

    Raises TooLarge above the limit of pixels or `_MAX_COST`, and BadImage if no photo of that size has so few bytes.
    """
    pixels, size_bytes = width * height, len(file.data)
    cost = ceil(pixels * file.pixel_cost + size_bytes * file.byte_cost)
    if pixels > limits.max_pixels:
        raise TooLarge(
            f"the image has {width} x {height} = {pixels:,} pixels; this server takes at most {limits.max_pixels:,}; "
            "send a smaller copy"
        )
    if cost > (most := max(_MAX_COST, limits.max_pixels)):
        raise TooLarge(
            f"{width} x {height} pixels of this kind of {file.format}, in {size_bytes:,} bytes, cost as much "
            f"to decode as {cost:,} of a plain JPEG; this server takes at most {most:,}; send a smaller copy, or a JPEG"
        )
    if max(width, height) > _MAX_SIDE:
        raise BadImage(f"the image is {width} x {height} pixels; a side has at most {_MAX_SIDE:,}")
    if pixels > _DENSE_PIXELS and pixels > _MAX_PIXELS_PER_BYTE * size_bytes:
        raise BadImage(f"{width} x {height} pixels in {size_bytes:,} bytes are no photo; send a smaller copy")
    return cost
