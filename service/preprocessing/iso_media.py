"""Reads the structure of ISO base media files (AVIF, HEIC): boxes, and the sizes that AV1 data say of themselves."""

import re
import struct
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from service.common.errors import BadImage

_MAX_PARTS = 1 << 16  # boxes, items or units
_SHARED_BYTES = 1 << 20  # tiles of one colour may be the same bytes
_SEQUENCE_HEADER = 1
_HEADER_BYTES = 128  # of a sequence header, up to the size
_IMAGE_SIZE = re.compile(rb"ispe.{4}(.{8})", re.DOTALL)
_ALPHA = re.compile(rb"auxid:1|:alpha")
_NO_EXIF = (b"Exif", bytes(4))
_HIDDEN = {b"meta": _NO_EXIF, b"moov": _NO_EXIF}
_NO_PHOTO = "the AVIF has more parts than any photo; save it again"


class _Box(NamedTuple):
    """A box, which begins at `start` and has its content from `content` to `end`."""

    kind: bytes
    start: int
    content: int
    end: int


def read_avif(data: bytes) -> tuple[bytes, tuple[int, int], float]:
    """As `read_heif`. Of an animation the picture in `meta` is decoded, and `moov`, the video, is hidden."""
    coded = sum(_coded_pixels(data, box) for box in _boxes(data, 0, len(data)) if box.kind == b"meta")
    changes = {b"ftyp": (b"avis", b"avif"), b"moov": (b"moov", b"free"), b"meta": _NO_EXIF}
    file, size, _ = read_heif(data, "AVIF", changes)
    return file, size, max(2.0, 1.5 * coded / max(1, prod(size)))


def read_heif(
    data: bytes, name: str = "HEIF", changes: dict[bytes, tuple[bytes, bytes]] = _HIDDEN
) -> tuple[bytes, tuple[int, int], float]:
    """The file to decode, the largest size that its boxes say, and what a pixel costs.

    `changes` replaces bytes of a kind of box by as many others.
    """
    sizes: list[tuple[int, int]] = []
    parts, cost = [], 1.0
    for box in _boxes(data, 0, len(data)):
        part = data[box.start : box.end]
        if box.kind in (b"meta", b"moov"):
            sizes += (struct.unpack(">II", found) for found in _IMAGE_SIZE.findall(part))
            cost = 2.0 if _ALPHA.search(part) else cost
        parts.append(part.replace(*changes[box.kind]) if box.kind in changes else part)
    if not sizes:
        raise BadImage(f"the image is damaged or cut off (the {name} says no size)")
    return b"".join(parts), max(sizes, key=prod), cost


def _boxes(data: bytes, at: int, end: int) -> Iterator[_Box]:
    """The boxes from `at` to `end`."""
    for _ in range(_MAX_PARTS):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        after = min(end, at + max(size, head)) if size else end
        yield _Box(kind, at, at + head, after)
        at = after
    raise BadImage(_NO_PHOTO)


def _coded_pixels(data: bytes, meta: _Box) -> int:
    """The pixels of all AV1 pictures of a box `meta`, as their data say: a decoder makes these, not those of `ispe`."""
    inner = list(_boxes(data, meta.content + 4, meta.end))
    stored = next((box.content for box in inner if box.kind == b"idat"), 0)
    return sum(
        max((width * height for width, height in _sequence_sizes(item)), default=0)
        for box in inner
        if box.kind == b"iloc"
        for item in _items(data, box.content, stored)
    )


def _items(data: bytes, at: int, stored: int) -> Iterator[bytes]:
    """The bytes of each item of a box `iloc`, whose content begins at `at`; that of `idat` begins at `stored`."""
    version, sizes = data[at], struct.unpack_from(">H", data, at + 4)[0]
    offset_bytes, length_bytes, base_bytes, index_bytes = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    at += 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at], "big")

    left = 4 * len(data) + _SHARED_BYTES
    for _ in range(number(4 if version == 2 else 2)):
        number(4 if version == 2 else 2)
        method = number(2) & 15 if version else 0
        number(2)
        start = number(base_bytes) + (stored if method else 0)
        extents = []
        for _ in range(number(2)):
            number(index_bytes if version else 0)
            first, length = start + number(offset_bytes), number(length_bytes)
            extents.append(data[first : first + length])
            left -= len(extents[-1]) + 8
            if left < 0 or at > len(data):
                raise BadImage(_NO_PHOTO)
        yield b"".join(extents)


def _sequence_sizes(units: bytes) -> Iterator[tuple[int, int]]:
    """The size in each sequence header of an AV1 stream (AV1 specification, 5.3 to 5.5)."""
    at = 0
    for _ in range(_MAX_PARTS):
        if at >= len(units):
            return
        head = units[at]
        at += 2 if head & 4 else 1
        size = len(units) - at
        if head & 2:
            size = 0
            for place in range(8):
                size |= (units[at] & 127) << 7 * place
                at += 1
                if units[at - 1] < 128:
                    break
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            yield _sequence_size(units[at : at + min(size, _HEADER_BYTES)])
        at += size
    raise BadImage(_NO_PHOTO)


def _sequence_size(header: bytes) -> tuple[int, int]:
    """The largest picture that a sequence header allows."""
    value, left = int.from_bytes(header.ljust(_HEADER_BYTES, b"\0"), "big"), 8 * _HEADER_BYTES

    def take(bits: int) -> int:
        nonlocal left
        left -= bits
        return value >> left & (1 << bits) - 1

    take(4)
    if still := take(1):
        take(5)
    elif take(1):
        raise BadImage("the AVIF has data of a rare kind (times of a video); save it again")
    else:
        delays = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delays and take(1):
                take(4)
    bits = take(4) + 1, take(4) + 1
    size = take(bits[0]) + 1, take(bits[1]) + 1
    return size if still else (1 << bits[0], 1 << bits[1])  # a picture of a video may say another size of so many bits
