"""Reads the structure of an image file before a decoder sees it: its format, its size, and what a decoder needs of it.

A decoder takes a step of Python, memory or a pass over all pixels for each segment, chunk, scan or strip, and a small
file may claim millions of them. Here they are counted, and a file with more than any photo has is refused. What no
answer depends on (text, colour profiles, resolution, dates) is left out, so it may be damaged.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from service.common.errors import BadImage, TooLarge
from service.common.types import FORMATS, ImageLimits
from service.preprocessing import tiff_tags
from service.preprocessing.iso_media import read_avif, read_heif
from service.preprocessing.tiff_tags import decoded_size, exif_orientation, tiff_cost, unpacking_cost

_HEAD_BYTES = 64 << 10  # that are searched for the name of a format that is not taken
_MAX_PARTS = 1 << 16  # segments, chunks, blocks, boxes or strips
_MAX_SCANS, _USUAL_SCANS = 1000, 12
_MAX_SCAN_PIXELS = 1 << 28  # pixels times unusual scans: each scan of a progressive JPEG passes over the whole image
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


def read_structure(data: bytes) -> ImageStructure:
    """Find the format by the first bytes and read the structure. Raises BadImage for an unknown or damaged file."""
    if not data:
        raise BadImage("the image is empty (0 bytes)")
    read = next((read for start, read in _READERS if start.match(data)), None)
    if read is None:
        raise BadImage(_unknown(data))
    try:
        return read(data)
    except (struct.error, IndexError, OverflowError):
        raise BadImage("the image is damaged or cut off in its header") from None


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


def _unknown(data: bytes) -> str:
    send = f"send one of {', '.join(FORMATS)}"
    for start, name in _NOT_TAKEN:
        if start.match(data, 0, _HEAD_BYTES):
            return f"this is {name}, which is not taken; {send}"
    return f"not an image in a known format; {send}"


# JPEG: ITU T.81, annex B. Stuffed bytes and restart markers stand within a scan; any other marker ends it.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SOI, _EOI, _SOS, _TEM, _APP1, _APP2 = 0xD8, 0xD9, 0xDA, 0x01, 0xE1, 0xE2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # of these, two are tables, and one is reserved
_PROGRESSIVE = 0xC2  # frames above it are lossless, or have arithmetic coding, which costs five times as much
_SCANS_COST = {1: 1.0, 3: 1.0, 4: 2.0}  # of a pixel in several scans, by channels
_SCANS_BYTE_COST = 2.0  # a bit that corrects a coefficient costs as much as one that brings it
_RARE_FRAME = re.compile(rb"\xff[\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]\0[\x0b\x0e\x11\x14][\x08\x0c]")
_LARGEST_EXIF = 1 << 16


def _jpeg(data: bytes) -> ImageStructure:
    frame = precision = width = height = channels = scans = 0
    orientation = 1
    kept, kept_to = [], 0  # without colour profiles: a damaged one fails in libjpeg
    lacking: dict[int, bytearray] = {}  # by component: the bits that its 64 coefficients still lack
    for marker, start, end in _segments(data):
        if marker in _FRAMES and not frame:
            frame, (precision, height, width, channels) = marker, struct.unpack_from(">BHHB", data, start)
        elif marker == _APP1 and orientation == 1 and data.startswith(b"Exif\0\0", start):
            orientation = exif_orientation(data[start + 6 : end])
        elif marker == _APP2:
            kept.append(data[kept_to : start - 4])
            kept_to = end
        elif marker == _SOS:
            scans += 1
            if data[start] == channels and frame != _PROGRESSIVE:
                break  # all of it is in this scan
            _add_scan(lacking, data[start:end])
            if scans > _MAX_SCANS or (scans - _USUAL_SCANS) * width * height > _MAX_SCAN_PIXELS:
                raise BadImage(f"the JPEG has {scans} scans or more, of {width} x {height} pixels; save it again")
    else:
        _check_scans(lacking, channels)
    if not (scans and width and height and precision == 8 and channels in _SCANS_COST and frame <= _PROGRESSIVE):
        raise BadImage(
            f"the image is damaged, or a JPEG of a rare kind ({width} x {height} pixels, {channels} channels of "
            f"{precision} bits); save it as RGB of 8 bits"
        )
    file = b"".join([*kept, data[kept_to:]]) if kept else data
    one_pass, costs = not lacking, (_SCANS_COST[channels], _SCANS_BYTE_COST) if lacking else (1.0, 0.0)
    return ImageStructure("JPEG", file, width, height, orientation, channels, one_pass, 0, 0, *costs)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment, and where its content begins and ends."""
    at = 2
    for _ in range(_MAX_PARTS):
        found = _MARKER.search(data, at)
        if found is None or (marker := data[found.end() - 1]) == _EOI:
            return
        start = at = found.end()
        if marker not in (_SOI, _TEM):
            at += max(2, *struct.unpack_from(">H", data, start))
            yield marker, start + 2, at
    raise BadImage(f"the JPEG has more than {_MAX_PARTS:,} segments; save it again")


def _check_scans(lacking: dict[int, bytearray], channels: int) -> None:
    if len(lacking) < channels or any(any(bits) for bits in lacking.values()):
        raise BadImage("the image is damaged or cut off (scans of the JPEG are missing)")


def _add_scan(lacking: dict[int, bytearray], header: bytes) -> None:
    """Note by the header of a scan which bits of which coefficients still lack after it."""
    count = header[0]
    first, last, bits = header[2 * count + 1], header[2 * count + 2], header[2 * count + 3] & 15
    for component in header[1 : 2 * count + 1 : 2]:
        coefficients = lacking.setdefault(component, bytearray(64))
        coefficients[first : last + 1] = bytes([bits]) * len(coefficients[first : last + 1])


# PNG: the specification of W3C. A capital first letter marks a chunk without which the pixels cannot be read.
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_READ = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"))
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_UNPACK_BYTES = 1 << 14  # at once: they become at most a thousand times as many
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _png(data: bytes) -> ImageStructure:
    kept: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    orientation, complete = 1, False
    for kind, content, intact in _png_chunks(data):
        needed = not kind[0] & 32
        if needed and not intact:
            raise BadImage(f"the image is damaged (the checksum of a chunk {kind!r} is wrong)")
        if kind == b"IDAT":
            pixels.append(content)
        elif kind == b"eXIf" and intact:
            orientation = exif_orientation(bytes(content[:_LARGEST_EXIF]))
        elif kind == b"IEND":
            complete = True
            break
        elif kind in (b"IHDR", b"PLTE") or (kind == b"tRNS" and intact):
            kept.setdefault(kind, bytes(content))
        elif needed:
            raise BadImage(f"the PNG has a chunk {kind!r}, which PNG does not define; save it again")
    if not complete:
        raise BadImage("the image is damaged or cut off (its last chunk is missing)")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", kept.get(b"IHDR", b""))
    if not _is_transparency(kept.get(b"tRNS", b""), colour, len(kept.get(b"PLTE", b"")) // 3):
        kept.pop(b"tRNS", None)
    parts = [(kind, kept[kind]) for kind in (b"IHDR", b"PLTE", b"tRNS") if kind in kept]
    head = b"".join([_PNG, *(_png_chunk(*part) for part in parts)])
    file = b"".join([head, _png_chunk(b"IDAT", b"".join(pixels)), _PNG_END])
    bits = depth * _PNG_CHANNELS.get(colour, 0)
    unpacked = sum(
        rows * (1 + (columns * bits + 7) // 8)
        for left, top, across, down in (_ADAM7 if interlaced else ((0, 0, 1, 1),))
        if (columns := (width - left + across - 1) // across) and (rows := (height - top + down - 1) // down)
    )
    clear = b"tRNS" in kept or colour in (4, 6)  # is laid over white
    cost = unpacking_cost(bits + 8 * clear) * (1.3 if interlaced else 1.0)
    return ImageStructure("PNG", file, width, height, orientation, 0, False, len(head) + 8, unpacked, cost, 0.5)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yield kind and content of each chunk, and whether its checksum is right. A chunk that is cut off is left out."""
    view, at = memoryview(data), len(_PNG)
    for _ in range(_MAX_PARTS):
        if at + 12 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + size
        if end + 4 > len(data):
            return
        # side chunks that are left out are not summed
        intact = kind not in _PNG_READ or zlib.crc32(view[at + 4 : end]) == struct.unpack_from(">I", data, end)[0]
        yield kind, view[at + 8 : end], intact
        at = end + 4
    raise BadImage(f"the PNG has more than {_MAX_PARTS:,} chunks; save it again")


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content), kind) + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def has_all_rows(png: ImageStructure) -> bool:
    """Whether a PNG has the compressed rows that its header says. Unpacks them."""
    unpack, lacking = zlib.decompressobj(), png.unpacked_bytes
    packed = memoryview(png.data)[png.packed_at : -4 - len(_PNG_END)]
    for at in range(0, len(packed), _UNPACK_BYTES):
        lacking -= len(unpack.decompress(packed[at : at + _UNPACK_BYTES]))
        if lacking <= 0:
            return True
    return False


def _is_transparency(content: bytes, colour: int, palette: int) -> bool:
    """Whether a chunk tRNS has the length that the colour type asks for."""
    return len(content) == {0: 2, 2: 6}.get(colour, -1) or (colour == 3 and 0 < len(content) <= palette)


# GIF89a. Only the first picture is decoded; the blocks before it are comments and the like, but for its own control.
_EXTENSION, _CONTROL, _PICTURE = 0x21, 0xF9, 0x2C


def _gif(data: bytes) -> ImageStructure:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    head = at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control = b""
    for _ in range(_MAX_PARTS):
        if data[at] == _PICTURE:
            left, top, across, down = struct.unpack_from("<HHHH", data, at + 1)
            size = max(width, left + across), max(height, top + down)
            return ImageStructure("GIF", data[:head] + control + data[at:], *size)
        if data[at] != _EXTENSION:
            break
        start, is_control = at, data[at + 1] == _CONTROL
        at = _after_blocks(data, at + 2)
        control = data[start:at] if is_control else control
    raise BadImage("the image is damaged or cut off (the GIF has no picture, or too much before it)")


def _after_blocks(data: bytes, at: int) -> int:
    for _ in range(_MAX_PARTS):
        if not (size := data[at]):
            return at + 1
        at += 1 + size
    raise BadImage("the GIF has too much before its first picture; save it again")


def _bmp(data: bytes) -> ImageStructure:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        return ImageStructure("BMP", data, *struct.unpack_from("<HH", data, 18))
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression not in (0, 3, 6):  # colours as they are, or by masks of bits
        raise BadImage("the BMP is compressed, which is not taken; save it without compression, or as PNG")
    return ImageStructure("BMP", data, abs(width), abs(height))


def _tiff(data: bytes) -> ImageStructure:
    file, tags = tiff_tags.trimmed(data)
    is_jpeg = tags.get(tiff_tags.COMPRESSION) in tiff_tags.JPEG_COMPRESSIONS
    if is_jpeg and _RARE_FRAME.search(data):
        raise BadImage("the TIFF holds a JPEG of a rare kind; save it without compression, or as PNG")
    byte_cost = _SCANS_BYTE_COST if is_jpeg else 0.0  # Pillow turns it upright
    return ImageStructure("TIFF", file, *decoded_size(tags), pixel_cost=tiff_cost(tags), byte_cost=byte_cost)


def _webp(data: bytes) -> ImageStructure:
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    byte_cost = 2.5 if b"VP8 " in data else 1.0  # with loss, or without
    return ImageStructure("WEBP", data, width, height, pixel_cost=2.0, byte_cost=byte_cost)


def _avif(data: bytes) -> ImageStructure:
    file, (width, height), cost = read_avif(data)
    return ImageStructure("AVIF", file, width, height, pixel_cost=cost, byte_cost=3.0)


def _heif(data: bytes) -> ImageStructure:
    file, (width, height), cost = read_heif(data)
    return ImageStructure("HEIF", file, width, height, pixel_cost=cost, byte_cost=2.0)


_READERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], ImageStructure]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(re.escape(_PNG)), _png),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), _avif),
    (re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), _heif),
)
_NOT_TAKEN = (
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"%PDF-"), "PDF, a document"),
    (
        re.compile(
            rb"(\xef\xbb\xbf)?\s*+(<\?xml[^>]{,200}>\s*+)?(<!--.{,2000}?-->\s*+)*+(<!DOCTYPE svg[^>]{,300}>\s*+)?<svg",
            re.DOTALL,
        ),
        "SVG, a drawing",
    ),
    (re.compile(rb"(\xef\xbb\xbf)?\s*+<(!doctype )?html", re.IGNORECASE), "HTML, a web page"),
    (re.compile(rb"....ftyp", re.DOTALL), "a video"),
    (re.compile(rb"8BPS"), "PSD, a file of Photoshop"),
)
