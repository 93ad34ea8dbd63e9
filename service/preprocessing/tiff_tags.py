"""Reads the directories of tags that TIFF files and EXIF blocks have, within bounds."""

import struct
from math import prod

from service.common.errors import BadImage

_MAX_TAGS = 512
_MAX_STRIPS = 1 << 16
_ORIENTATION = 0x0112

# TIFF 6.0 and BigTIFF: a directory of tags. The first one keeps only those that pixels depend on.
_TIFF_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), 1)) | {16: 8, 17: 8, 18: 8}  # by type
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "B", 8: "H", 9: "I", 13: "I", 16: "Q", 17: "Q", 18: "Q"}  # a negative is huge
WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH = 256, 257, 322, 323
BITS, SAMPLES = 258, 277  # of each sample, and for each pixel
COMPRESSION, JPEG_COMPRESSIONS = 259, (6, 7)
PHOTOMETRIC, WHITE_IS_ZERO, LAB = 262, 0, 8
_COMPRESSIONS = (1, 5, 6, 7, 8, 32773, 32946, 50000)  # of photos; the decoder of faxes logs each damaged line
_OFFSETS, _SIZES = (273, 324), (279, 325)  # of strips and tiles
_TIFF_TAGS = frozenset(
    (
        *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 332, 333, 336, 338),
        *(339, 347, *range(512, 522), 529, 530, 531, 532),
    )
)


def trimmed(data: bytes) -> tuple[bytes, dict[int, int]]:
    """A TIFF whose first directory has only the tags that pixels depend on, and the first value of each of these.

    The sizes of strips and tiles are summed. Raises BadImage if there are too many tags or strips, or if a tag claims
    more bytes than the file has.
    """
    order, big = "<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+")
    count_code, offset_code, step = ("Q", "Q", 20) if big else ("H", "I", 12)
    (at,) = struct.unpack_from(order + offset_code, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_code, data, at)
    if count > _MAX_TAGS:
        raise BadImage(f"the TIFF has {count:,} tags; save it again")
    first = at + struct.calcsize(count_code)
    tags: dict[int, int] = {}
    entries, held = [], 0
    for place in range(first, first + step * count, step):
        tag, kind, values = struct.unpack_from(f"{order}HH{offset_code}", data, place)
        if tag not in _TIFF_TAGS or tag in tags:  # of a tag that comes twice decoders take either
            continue
        entries.append(data[place : place + step])
        size = _TIFF_BYTES.get(kind, 0) * values
        held += size
        if tag in (*_OFFSETS, *_SIZES) and values > _MAX_STRIPS:
            raise BadImage(f"the TIFF has {values:,} strips or tiles; save it again")
        start = place + step - struct.calcsize(offset_code)
        if size > struct.calcsize(offset_code):
            (start,) = struct.unpack_from(order + offset_code, data, start)
        if held > len(data) or start + size > len(data):
            raise BadImage(f"the image is damaged or cut off (tag {tag} of the TIFF is larger than the file)")
        summed = min(values, values if tag in _SIZES else 1) if kind in _INTEGERS else 0
        tags[tag] = sum(struct.unpack_from(f"{order}{summed}{_INTEGERS.get(kind, 'B')}", data, start))
    if (compression := tags.get(COMPRESSION, 1)) not in _COMPRESSIONS:
        raise BadImage(
            f"the TIFF is compressed as a fax or in a rare way ({compression}), which is not taken; save it without, "
            "or as PNG"
        )
    if any(tags.get(tag, 0) > len(data) for tag in _SIZES):
        raise BadImage("the image is damaged or cut off (the strips of the TIFF are larger than the file)")
    directory = struct.pack(order + count_code, len(entries)) + b"".join(entries) + bytes(struct.calcsize(offset_code))
    file = b"".join([memoryview(data)[:at], directory, memoryview(data)[at + len(directory) :]])
    return file, tags


def decoded_size(tags: dict[int, int]) -> tuple[int, int]:
    """Width and height of what is decoded: of the image, or of all its tiles if they are far larger."""
    whole = tags.get(WIDTH, 0), tags.get(LENGTH, 0)
    tile = tags.get(TILE_WIDTH, 0) or whole[0], tags.get(TILE_LENGTH, 0) or whole[1]
    width, height = (-(-side // max(1, part)) * part for side, part in zip(whole, tile, strict=True))
    return (width, height) if width * height > 2 * prod(whole) else whole


def tiff_cost(tags: dict[int, int]) -> float:
    """What a pixel costs to decode, in pixels of a plain JPEG."""
    cost = unpacking_cost(tags.get(BITS, 1) * tags.get(SAMPLES, 1))
    if tags.get(PHOTOMETRIC) == LAB:
        return max(cost, 3.0)
    return max(cost, 1.5) if tags.get(COMPRESSION) in JPEG_COMPRESSIONS else cost


def unpacking_cost(bits: int) -> float:
    """What a pixel of so many bits costs that is stored without loss, as in PNG and TIFF."""
    return max(1.0, (1.5 + bits / 8) / 2)


def exif_orientation(exif: bytes) -> int:
    """Read the orientation from the first directory of an EXIF block. A damaged block counts as upright."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], "<")
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if (tag, kind) == (_ORIENTATION, 3):
                return int(value)
    except struct.error:
        return 1
    return 1
