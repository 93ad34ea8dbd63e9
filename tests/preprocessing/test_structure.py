"""The structure of image files: what would cost much is refused cheaply; what pixels do not need may be broken."""

import io
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.common.errors import BadImage, TooLarge
from service.common.types import FORMATS, ImageLimits
from service.preprocessing.decode import decode_image, decode_pixels
from service.preprocessing.structure import decoding_cost, read_structure
from tests.preprocessing.test_decode import SAMPLES, chunk, encode, picture, raw_png

LIMITS = ImageLimits()
CORPUS = Path(__file__).parent.parent / "fuzz" / "corpus"
FULL = 31 << 20  # just below the limit of bytes
SIDE = 8000  # squared, the limit of pixels
MAX_CPU_S, MAX_PEAK_MIB = 1.0, 700

SOLID = encode(Image.new("L", (64, 64), 128), "JPEG")


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(content)) + content


def jpeg_with(part: bytes, count: int) -> bytes:
    """A JPEG with that part many times after its first marker."""
    return SOLID[:2] + part * count + SOLID[2:]


def full_of(part: bytes) -> int:
    """How many of these fill a file."""
    return FULL // len(part)


def png_with(part: bytes) -> bytes:
    """A PNG of one pixel with that part before it."""
    return raw_png(1, 1, depth=8, colour_type=0, rows=bytes(2), extra=part)


def rle_bmp() -> bytes:
    """A row of 64 million pixels of which the file brings one; Pillow fills the others one by one."""
    palette, data = b"\1\2\3\0\4\5\6\0", b"\1\0\0\0"
    header = struct.pack("<IiiHHIIiiII", 40, SIDE * SIDE, 1, 1, 8, 1, len(data), 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 62 + len(data), 0, 0, 62) + header + palette + data


def repeated_scans() -> bytes:
    """A progressive JPEG whose last scan comes 5,000 times: 80 bytes each for a pass over all pixels."""
    plain = encode(Image.new("L", (SIDE, SIDE), 128), "JPEG", quality=75, progressive=True)
    return plain[:-2] + plain[plain.rindex(b"\xff\xda") : -2] * 5000 + plain[-2:]


def many_strips() -> bytes:
    """A TIFF of 2 x 2 pixels whose 16 million strips all lie at one place."""
    count = FULL // 2
    return (
        b"II*\0"
        + struct.pack("<IH", 8, 4)
        + b"".join(struct.pack("<HHII", tag, 3, 1, 2) for tag in (256, 257, 278))
        + struct.pack("<HHII", 273, 3, count, 62)
        + bytes(4)
        + struct.pack("<H", 8) * count
    )


def overlapping_tags(first: int, each: int, count: int) -> bytes:
    """A TIFF directory, as EXIF has it too, of tags that all claim the same bytes."""
    entries = b"".join(struct.pack("<HHII", first + number, 1, each, 0) for number in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4 + each)


def wide_tiles() -> bytes:
    """A TIFF of one column whose 1,024 tiles, each decoded whole, have 4 billion pixels."""
    width, height, count = 62_000, 64, 1024
    tile = zlib.compress(bytes(width * height), 9)
    values = {256: 1, 257: 65_535, 258: 8, 259: 8, 262: 1, 277: 1, 322: width, 323: height}
    arrays = 8 + 2 + 12 * (len(values) + 2) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
    entries += [struct.pack("<HHII", tag, 4, count, arrays + 4 * count * place) for place, tag in enumerate((324, 325))]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    offsets = struct.pack("<I", arrays + 8 * count) * count
    return head + offsets + struct.pack("<I", len(tile)) * count + tile + bytes(count * len(tile))


def fax(*compression: tuple[int, int]) -> bytes:
    """A TIFF of noise with that type and value of each tag Compression: a decoder of faxes logs each line."""
    tags = [(256, 4, 2000), (257, 4, 9000), (258, 4, 1), *((259, *one) for one in compression), (262, 4, 1)]
    tags += [(273, 4, 8 + 2 + 12 * (6 + len(tags)) + 4), (277, 4, 1), (278, 4, 9000), (279, 4, 10_000)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(12) + np.random.default_rng(1).bytes(12_000)


def exif_in_last_box(*, size: bytes) -> bytes:
    """An AVIF whose costly EXIF block stands in a box that says its size in another way."""
    data = encode(picture(), "AVIF", exif=overlapping_tags(0xC000, 1 << 20, 9000))
    at = data.index(b"meta") - 4
    return data[:at] + size + data[at + 4 :]


def solid_jpeg_of_inks() -> bytes:
    """A JPEG of 64 million pixels in four inks."""
    return jpeg_pad(encode(Image.new("CMYK", (SIDE, SIDE), (9, 99, 0, 3)), "JPEG", quality=75, subsampling=2))


def jpeg_pad(data: bytes) -> bytes:
    """The JPEG with enough bytes to be a photo."""
    return data[:2] + segment(0xFE, bytes(40_000)) + data[2:]


def scans_in_tiff() -> bytes:
    """A TIFF of 42 million pixels in ten strips, each a progressive JPEG of 94 scans."""
    part = encode(Image.new("L", (6000, 700), 128), "JPEG", quality=75, progressive=True)
    part = part[:-2] + part[part.rindex(b"\xff\xda") : -2] * 85 + part[-2:]
    values = {256: 6000, 257: 7000, 258: 8, 259: 7, 262: 1, 277: 1, 278: 700}
    arrays = 8 + 2 + 12 * (len(values) + 2) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
    entries.insert(5, struct.pack("<HHII", 273, 4, 10, arrays))
    entries.append(struct.pack("<HHII", 279, 4, 10, arrays + 40))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    offsets = b"".join(struct.pack("<I", arrays + 80 + len(part) * number) for number in range(10))
    return head + offsets + struct.pack("<I", len(part)) * 10 + part * 10


def solid_webp() -> bytes:
    """A lossless WebP of one colour and 64 million pixels, in 40 bytes."""
    return encode(Image.new("RGBA", (SIDE, SIDE), (1, 2, 3, 128)), "WEBP", method=0)


def gif_with(part: bytes) -> bytes:
    """A GIF with that part again and again before its picture."""
    gif = SAMPLES["GIF"]
    head = 13 + 3 * (2 << (gif[10] & 7))
    return gif[:head] + part * full_of(part) + gif[head:]


def overlapping_items() -> bytes:
    """An AVIF of thousands of extents that all are the whole file."""
    extents = struct.pack(">II", 0, FULL) * 60_000
    iloc = bytes(4) + b"\x44\0" + struct.pack(">HHHH", 1, 1, 0, 60_000) + extents
    inner = bytes(4) + struct.pack(">I4s", 8 + len(iloc), b"iloc") + iloc
    return b"\0\0\0\x18ftypavif" + bytes(12) + struct.pack(">I4s", 8 + len(inner), b"meta") + inner + bytes(FULL)


def costly(format_name: str, mode: str, pixels: int, **options: Any) -> Callable[[], bytes]:
    """A file of that many pixels, with about as much to decode in each as fits into it."""

    def made() -> bytes:
        height = pixels // SIDE
        values = np.random.default_rng(1).integers(0, 256, (height // 16, SIDE // 16, 3), dtype=np.uint8)
        image = Image.fromarray(values).resize((SIDE, height), Image.Resampling.NEAREST).convert(mode)
        return encode(image, format_name, **options)

    return made


def noise(format_name: str, mode: str, height: int, **options: Any) -> bytes:
    """A file of noise, the densest data of its format."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(1).integers(0, 16, (height, SIDE, channels), dtype=np.uint8)
    return encode(Image.frombytes(mode, (SIDE, height), (values * 16).tobytes()), format_name, **options)


def literals(height: int, *, colour: int, depth: int = 8, interlaced: bool = False) -> bytes:
    """A PNG of which each byte was compressed by itself, and is to be added to its neighbours."""
    bits = depth * {0: 1, 2: 3, 6: 4}[colour]
    steps = ((8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2)) if interlaced else ((1, 1),)
    pack = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    packed = b""
    for across, down in steps:
        rows = np.random.default_rng(1).integers(0, 4, (height // down, 1 + SIDE // across * bits // 8), dtype=np.uint8)
        rows[:, 0] = 4
        packed += pack.compress(rows.tobytes())
    header = struct.pack(">IIBBBBB", SIDE, height, depth, colour, 0, 0, interlaced)
    end = chunk(b"IDAT", packed + pack.flush()) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


BOMBS: dict[str, Callable[[], bytes]] = {
    "BMP of runs": rle_bmp,
    "PNG, narrow, 16 bits": lambda: raw_png(1, SIDE * SIDE, depth=16, colour_type=0, rows=bytes(3 * SIDE * SIDE)),
    "PNG, narrow, alpha": lambda: raw_png(1, SIDE * SIDE, depth=8, colour_type=4, rows=bytes(3 * SIDE * SIDE)),
    "PNG, chunks": lambda: raw_png(
        1, 1, depth=8, colour_type=0, rows=bytes(2), extra=chunk(b"tEXt", b"") * (FULL // 12)
    ),
    "PNG, EXIF": lambda: png_with(chunk(b"eXIf", overlapping_tags(0xC000, 1 << 24, 9000))),
    "JPEG, scans": repeated_scans,
    "JPEG, EXIF": lambda: jpeg_with(segment(0xE1, b"Exif\0\0AAAA"), full_of(bytes(14))),
    "JPEG, large EXIF": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65_000)), FULL // 65_010),
    "JPEG, application": lambda: jpeg_with(segment(0xE5, b""), FULL // 4),
    "JPEG, comments": lambda: jpeg_with(segment(0xFE, b""), FULL // 4),
    "JPEG, profiles": lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1"), full_of(bytes(18))),
    "JPEG, tables": lambda: jpeg_with(segment(0xDB, b"\0" + bytes(range(1, 65))), full_of(bytes(69))),
    "JPEG, fill bytes": lambda: jpeg_with(b"\xff", FULL),
    "JPEG, stuffed bytes": lambda: SOLID[:-2] + b"\xff\0" * (FULL // 2) + SOLID[-2:],
    "JPEG, stuffed bytes first": lambda: jpeg_with(b"\xff\0", FULL // 2),
    "GIF, comments": lambda: gif_with(b"\x21\xfe\x01a\0"),
    "GIF, blocks": lambda: gif_with(b"\x21\xfe" + b"\x01a" * (FULL // 2 - 8) + b"\0"),
    "TIFF, strips": many_strips,
    "TIFF, tags": lambda: overlapping_tags(256, 30 << 20, 500),
    "TIFF, many tags": lambda: overlapping_tags(256, 16, 60_000),
    "WEBP, solid": solid_webp,
    "WEBP, EXIF": lambda: encode(picture(), "WEBP", exif=overlapping_tags(0xC000, 1 << 20, 9000)),
    "AVIF, EXIF": lambda: encode(picture(), "AVIF", exif=overlapping_tags(0xC000, 1 << 20, 9000)),
    "AVIF, EXIF to the end": lambda: exif_in_last_box(size=bytes(4)),
    "JPEG, inks": solid_jpeg_of_inks,
    "PNG, alpha": lambda: raw_png(SIDE, SIDE, depth=8, colour_type=4, rows=b"\1" * (2 * SIDE + 1) * SIDE),
    "PNG, one colour transparent": lambda: raw_png(
        SIDE, SIDE, depth=8, colour_type=2, rows=b"\1" * (3 * SIDE + 1) * SIDE, extra=chunk(b"tRNS", bytes(6))
    ),
    "TIFF, tiles": wide_tiles,
    "TIFF, fax of words": lambda: fax((3, 32_771)),
    "TIFF, fax as a signed number": lambda: fax((8, 4)),
    "TIFF, fax said twice": lambda: fax((3, 4), (3, 5)),
    "TIFF, fax said late": lambda: fax((3, 1), (3, 4)),
    "AVIF, larger than it says": (CORPUS / "larger_than_it_says.avif").read_bytes,
    "AVIF, extents": overlapping_items,
    "AVIF, 24 million": costly("AVIF", "RGB", 24_000_000, quality=50, speed=10),
    "AVIF, alpha": costly("AVIF", "RGBA", 20_000_000, quality=50, speed=10),
    "WEBP, 30 million": costly("WEBP", "RGB", 30_000_000, lossless=False, quality=20, method=0),
    "WEBP, alpha": costly("WEBP", "RGBA", 30_000_000, quality=0, method=0),
    "PNG, 28 million": costly("PNG", "RGB", 28_000_000, compress_level=1),
    "PNG, RGBA": costly("PNG", "RGBA", 19_400_000, compress_level=1),
    "PNG, literals": lambda: literals(2090, colour=6),
    "PNG, literals of 16 bits": lambda: literals(3930, colour=0, depth=16),
    "PNG, literals, interlaced": lambda: literals(2350, colour=2, interlaced=True),
    "PNG, many literals": lambda: literals(3600, colour=6, interlaced=True),
    "PNG, RGBA of 16 bits": lambda: raw_png(
        SIDE, 1500, depth=16, colour_type=6, rows=(b"\4" + b"\1\0\1" * (SIDE * 8 // 3) + b"\1") * 1500
    ),
    "JPEG, scans of inks": costly("JPEG", "CMYK", 27_000_000, quality=50, progressive=True),
    "JPEG, 48 million in scans": costly("JPEG", "RGB", 48_000_000, quality=50, progressive=True),
    "JPEG, noise in scans": lambda: noise("JPEG", "RGB", 3200, quality=50, progressive=True),
    "JPEG, grey noise in scans": lambda: noise("JPEG", "L", SIDE, quality=70, progressive=True),
    "TIFF, CMYK": costly("TIFF", "CMYK", 23_000_000, compression="tiff_adobe_deflate"),
    "TIFF, LAB": lambda: noise("TIFF", "LAB", 2600, compression="tiff_lzw"),
    "TIFF, LAB of one colour": lambda: encode(Image.new("LAB", (SIDE, SIDE)), "TIFF", compression="tiff_adobe_deflate"),
    "WEBP, noise": lambda: noise("WEBP", "RGB", 1700, lossless=False, quality=95, method=4),
    "WEBP, much noise": lambda: noise("WEBP", "RGB", 2600, lossless=False, quality=95, method=4),
    "TIFF, fax": lambda: encode(Image.new("1", (2000, 5000)), "TIFF", compression="group4"),
}

_DECODE = """
import sys, time
from service.common.errors import BadImage, TooLarge
from service.common.types import ImageLimits
from service.preprocessing.decode import decode_image
data = open(sys.argv[1], "rb").read()
began = time.process_time()
try:
    decode_image(data, ImageLimits())
except (BadImage, TooLarge):
    pass
took = time.process_time() - began
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(took, int(peak) >> 10)
"""


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", BOMBS)
def test_costly_files(name: str, tmp_path: Path) -> None:
    """A file made to cost much is answered or refused in a second of CPU and little memory, and prints nothing."""
    file = tmp_path / "bomb"
    file.write_bytes(BOMBS[name]())
    ran = subprocess.run([sys.executable, "-c", _DECODE, file], capture_output=True, text=True, check=True)
    took_s, peak_mib = ran.stdout.split()

    assert float(took_s) < MAX_CPU_S
    assert int(peak_mib) < MAX_PEAK_MIB
    assert not ran.stderr


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (rle_bmp(), "compressed"),
        (raw_png(1, 70_000, depth=1, colour_type=0, rows=b""), "a side has at most 65,535"),
        (jpeg_with(segment(0xFE, b""), 70_000), "more than 65,536 segments"),
        (encode(Image.new("L", (4000, 4000)), "WEBP", method=0), "no photo"),
        (overlapping_tags(256, 16, 600), "600 tags"),
        (encode(Image.new("1", (20, 50)), "TIFF", compression="group3"), "fax"),
        (jpeg_with(segment(0xC0, struct.pack(">BHHB", 12, 8, 8, 1)), 1), "12 bits"),
        (png_with(chunk(b"CgBI", b"")), "CgBI"),
        (fax((3, 50_001)), r"rare way \(50001\)"),
        (SAMPLES["TIFF"].replace(struct.pack("<HHII", 277, 3, 1, 3), struct.pack("<HHII", 277, 3, 1, 2)), "rare kind"),
        (encode(picture(), "JPEG").replace(b"\3\1\x11\0", b"\3\1\x42\0"), "rare subsampling"),
        (scans_in_tiff(), "decoder error"),
        (
            encode(picture(), "TIFF", compression="jpeg").replace(b"\xff\xc0", b"\xff\xc9"),
            "holds a JPEG of a rare kind",
        ),
        (SAMPLES["JPEG"].replace(b"\xff\xc0", b"\xff\xc9"), "a JPEG of a rare kind"),
        (encode(picture(), "TIFF", compression="lzma"), r"rare way \(34925\)"),
        (overlapping_items(), "more parts than any photo"),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    """A refusal says what is wrong with the file."""
    with pytest.raises(BadImage, match=reason):
        decode_pixels(data, LIMITS)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made by hand -->\n<svg/>", "SVG"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "a video"),
        (b"8BPS\0\1", "PSD"),
    ],
)
def test_formats_by_name(data: bytes, name: str) -> None:
    """A file in a known format that is not taken is named, with the formats that are."""
    with pytest.raises(BadImage, match=rf"this is {name}.*JPEG, PNG"):
        decode_pixels(data, LIMITS)


@pytest.mark.parametrize("part", [b" ", b"\r\n", b"<!---->", b"<!-- -->\n", b"<!--", b"<?xml>", b"\xef\xbb\xbf", b"<"])
def test_text_costs_little(part: bytes) -> None:
    """Text of any size, which may begin a drawing or a web page, is refused within a second."""
    cpu_s, refused = time.thread_time(), "not an image in a known format"
    with pytest.raises(BadImage, match=refused):
        read_structure(part * (FULL // len(part)))
    assert time.thread_time() - cpu_s < MAX_CPU_S


def test_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A HEIC photo is decoded with the extra, turned as its own boxes say; without it the refusal says what to do."""
    upright = picture(64, 48)
    data = encode(upright, "HEIF", quality=95)
    pixels = decode_pixels(data, LIMITS)
    monkeypatch.delitem(Image.OPEN, "HEIF")

    assert np.abs(pixels.astype(int) - np.asarray(upright).astype(int)).mean() < 4
    with pytest.raises(BadImage, match=r"HEIC, the format of iPhone photos.*JPEG.*topfive\[heic\]"):
        decode_pixels(data, LIMITS)


@pytest.mark.parametrize("name", ["t16_zebra.avif", "t16_zebra.heic"])
def test_phone_photos(photo: bytes, shared_data: Path, name: str) -> None:
    """The photo of a zebra in the formats of phones is the photo."""
    pixels = decode_pixels((shared_data.parent / "trials" / "inputs" / name).read_bytes(), LIMITS).astype(int)

    assert np.abs(pixels - decode_pixels(photo, LIMITS)).mean() < 4


SIDE_CHUNKS = {
    b"pHYs": b"\0\0\x0b\x13\0\0\x0b\x13\1", b"gAMA": b"\0\0\xb1\x8f", b"cHRM": bytes(32), b"sRGB": b"\0",
    b"iCCP": b"x\0\0" + zlib.compress(bytes(9)), b"tEXt": b"Title\0zebra", b"zTXt": b"Title\0\0" + zlib.compress(b"a"),
    b"iTXt": b"Title\0\0\0\0\0zebra", b"tIME": bytes(7), b"bKGD": bytes(6), b"sBIT": b"\x08\x08\x08", b"hIST": b"",
    b"sPLT": b"x\0\x08", b"acTL": struct.pack(">II", 2, 0), b"fcTL": bytes(26), b"eXIf": b"MM\0*",
    b"tRNS": bytes(6), b"caBX": b"any",
}  # fmt: skip


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("change", ["checksum", "short", "huge"])
@pytest.mark.parametrize("kind", SIDE_CHUNKS)
def test_side_chunks(kind: bytes, change: str, late: bool) -> None:
    """A PNG with a side chunk that is damaged, too short or very large is the plain file."""
    body = SIDE_CHUNKS[kind]
    changed = {
        "checksum": chunk(kind, body)[:-4] + b"\1\2\3\4",
        "short": chunk(kind, body[:1] if kind != b"sRGB" else b""),
        "huge": chunk(kind, body + bytes(3 << 20)),
    }[change]
    plain = SAMPLES["PNG"]
    at = len(plain) - 12 if late else 33

    assert np.array_equal(decode_pixels(plain[:at] + changed + plain[at:], LIMITS), decode_pixels(plain, LIMITS))


@pytest.mark.parametrize(
    "content", [b"JFIF", b"JFIF\0\1", b"ICC_PROFILE\0", b"ICC_PROFILE\0\1\1", b"Adobe", b"Exif\0", b""]
)
@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
@pytest.mark.parametrize("name", ["JPEG", "JPEG progressive"])
def test_short_segments(name: str, marker: int, content: bytes) -> None:
    """A JPEG with a side segment that is too short is the plain file."""
    plain = SAMPLES[name]
    data = plain[:2] + segment(marker, content) + plain[2:]

    assert np.array_equal(decode_pixels(data, LIMITS), decode_pixels(plain, LIMITS))


@pytest.mark.parametrize("rows", [0, 1, 14, 28])
@pytest.mark.parametrize("name", ["L", "LA", "RGB", "RGBA", "P", "1"])
def test_rows_missing(name: str, rows: int) -> None:
    """A PNG whose compressed rows end early, each checksum right, is damaged, not a photo with a black edge."""
    image = picture().convert("RGB").convert(name)
    whole = read_structure(encode(image, "PNG"))
    raw = zlib.decompress(whole.data[whole.packed_at : -16])
    part = raw[: len(raw) // image.height * rows]
    data = whole.data[: whole.packed_at - 8] + chunk(b"IDAT", zlib.compress(part)) + chunk(b"IEND", b"")

    assert whole.unpacked_bytes == len(raw)
    with pytest.raises(BadImage, match="damaged or cut off"):
        decode_pixels(data, LIMITS)


def test_black_rows_are_rows() -> None:
    """A PNG that ends in black rows, or has none but black ones, is whole; so is an interlaced one."""
    black = np.zeros((29, 37, 3), dtype=np.uint8)
    interlaced = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 1)
    one = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", interlaced)
        + chunk(b"IDAT", zlib.compress(b"\0\x07"))
        + chunk(b"IEND", b"")
    )

    assert not decode_pixels(encode(Image.fromarray(black), "PNG"), LIMITS).any()
    assert decode_pixels(one, LIMITS).tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("needed", [None, 64])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_closed_too_early(options: dict[str, bool], needed: int | None, fraction: float) -> None:
    """A JPEG whose data end early and are closed by an end marker is damaged, at each size."""
    data = encode(picture(640, 480), "JPEG", quality=90, **options)
    with pytest.raises(BadImage, match="damaged or cut off"):
        decode_image(data[: int(len(data) * fraction)] + b"\xff\xd9", LIMITS, needed)


def test_closed_between_scans() -> None:
    """A progressive JPEG that ends after any of its scans but the last is damaged."""
    data = SAMPLES["JPEG progressive"]
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(starts) > 5
    for start in starts[1:]:
        cut = data.rindex(b"\xff\xc4", 0, start) if b"\xff\xc4" in data[starts[0] : start] else start
        for end in {cut, start}:
            with pytest.raises(BadImage, match="damaged or cut off"):
                decode_pixels(data[:end] + b"\xff\xd9", LIMITS)


def test_bytes_too_many() -> None:
    """Bytes that stand between the data and the end of a JPEG, or after it, change nothing."""
    plain = SAMPLES["JPEG"]
    for data in (plain[:-2] + b"abc" + plain[-2:], plain + b"abc" * 99):
        assert np.array_equal(decode_pixels(data, LIMITS), decode_pixels(plain, LIMITS))


@pytest.mark.parametrize("name", ["JPEG", "JPEG progressive", "JPEG CMYK"])
def test_end_marker_missing(name: str) -> None:
    """A JPEG with all pixels that lacks its end marker, as cameras write them, is the plain file; one byte less is not.

    Browsers show it. What is lost is told by the data: libjpeg lacks bits for a block.
    """
    plain = SAMPLES[name]
    for lacking in (1, 2):
        assert np.array_equal(decode_pixels(plain[:-lacking], LIMITS), decode_pixels(plain, LIMITS))
    with pytest.raises(BadImage, match="damaged or cut off"):
        decode_pixels(plain[:-4], LIMITS)


def test_size_of_heic() -> None:
    """A HEIC photo larger than it says is its sender's fault, not the server's lack of memory."""
    data = bytearray(encode(Image.new("RGB", (2000, 2000)), "HEIF"))
    for found in re.finditer(b"ispe", data):
        data[found.end() + 4 : found.end() + 12] = struct.pack(">II", 64, 64)
    with pytest.raises(BadImage):
        decode_pixels(bytes(data), LIMITS)


def test_size_of_avif() -> None:
    """What an AVIF costs is counted by what its data say, in any form of `iloc`, not by the size that its boxes say."""
    for name, most in (("still", False), ("film", True)):
        plain = encode(
            picture(500, 500), "AVIF", **({"save_all": True, "append_images": [picture(500, 500)]} if most else {})
        )
        lying = bytearray(plain)
        for found in re.finditer(b"ispe", plain):
            lying[found.end() + 4 : found.end() + 12] = struct.pack(">II", 64, 64)
        file = read_structure(bytes(lying))
        counted = file.pixel_cost * file.width * file.height

        assert (file.width, file.height) == (64, 64), name
        assert counted == 1.5 * (512 * 512 if most else 500 * 500), name


def test_animated_avif() -> None:
    """Of an animated AVIF the first picture is decoded."""
    frames = [picture(64, 48), picture(64, 48).transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    film = encode(frames[0], "AVIF", save_all=True, append_images=frames[1:])

    assert b"ftypavis" in film
    assert np.abs(decode_pixels(film, LIMITS).astype(int) - np.asarray(frames[0])).mean() < 4


def test_costs() -> None:
    """A file within the limit of pixels that costs too much is TooLarge, and says why; a higher limit takes it."""
    data = encode(Image.fromarray(np.zeros((4800, SIDE), np.uint16)), "PNG")
    many = read_structure(encode(picture(4000, 4000), "WEBP", lossless=False))
    with pytest.raises(
        TooLarge, match=r"8000 x 4900 pixels of this kind of WEBP.* cost as much .*[78]\d,[0-9,]+ of a plain"
    ):
        decoding_cost(many, 8000, 4900, LIMITS)

    assert read_structure(data).pixel_cost == pytest.approx(7 / 4)
    assert decoding_cost(many, 8000, 4900, ImageLimits(max_pixels=80_000_000)) > 2 * 8000 * 4900


def test_transparency_in_parts() -> None:
    """A picture larger than one step of the conversion is the same as in one step."""
    image = picture(1100, 1001).convert("RGBA")
    image.putalpha(picture(1100, 1001).convert("L").transpose(Image.Transpose.FLIP_TOP_BOTTOM))
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    inks = encode(picture(1100, 1001).convert("CMYK"), "JPEG")

    assert np.array_equal(decode_pixels(encode(image, "PNG"), LIMITS), np.asarray(white))
    assert np.array_equal(decode_pixels(inks, LIMITS), np.asarray(Image.open(io.BytesIO(inks)).convert("RGB")))


_BODIES = st.binary(max_size=40)
_MARKERS = st.sampled_from([0xC4, 0xDB, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xDD, 0xDA, 0xC2])
_PARTS = {
    "JPEG": st.builds(segment, _MARKERS, _BODIES),
    "PNG": st.builds(chunk, st.sampled_from([b"PLTE", b"IDAT", *SIDE_CHUNKS]), _BODIES),
    "GIF": st.builds(
        lambda kind, body: b"\x21" + bytes([kind, len(body)]) + body + b"\0", st.integers(0, 255), _BODIES
    ),
    "AVIF": st.builds(
        lambda kind, body: struct.pack(">I4s", 8 + len(body), kind) + body, st.sampled_from([b"free", b"meta"]), _BODIES
    ),
}
_HEADS = {"JPEG": 2, "PNG": 33, "GIF": 13, "AVIF": 0}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=300, deadline=None)
@given(data=st.data(), format_name=st.sampled_from(sorted(_PARTS)))
def test_generated_structures(data: st.DataObject, format_name: str) -> None:
    """Whatever parts a file is made of, it gives pixels or an error of the table."""
    parts = data.draw(st.lists(_PARTS[format_name], max_size=6))
    plain = encode(picture(), format_name)
    head = _HEADS[format_name]
    try:
        pixels = decode_pixels(plain[:head] + b"".join(parts) + plain[head:], ImageLimits(max_pixels=1_000_000))
    except (BadImage, TooLarge):
        return
    assert pixels.shape[2] == 3


_TAG = st.tuples(
    st.integers(254, 340), st.integers(1, 18), st.sampled_from([0, 1, 2, 3, 1 << 16, 1 << 31]), st.integers(0, 1 << 17)
)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=300, deadline=None)
@given(tags=st.lists(_TAG, max_size=12), order=st.sampled_from("<>"))
def test_generated_directories(tags: list[tuple[int, int, int, int]], order: str) -> None:
    """Whatever a directory of a TIFF claims, it gives pixels or an error of the table."""
    entries = b"".join(struct.pack(f"{order}HHII", *tag) for tag in sorted(tags))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    try:
        decode_pixels(head + entries + bytes(4 + (1 << 16)), ImageLimits(max_pixels=1_000_000))
    except (BadImage, TooLarge):
        return


def test_offsets_beyond_memory() -> None:
    """A BigTIFF may claim that its directory is at any 64-bit place."""
    for at in (1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        with pytest.raises(BadImage, match="damaged or cut off"):
            decode_pixels(b"II+\0\x08\0\0\0" + struct.pack("<Q", at) + bytes(64), LIMITS)


def test_every_format_is_read() -> None:
    """Each format that is served has a structure of its own name."""
    for format_name in FORMATS:
        assert read_structure(encode(picture(), format_name)).format == format_name
