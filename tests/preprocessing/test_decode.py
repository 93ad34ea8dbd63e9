"""The image intake: formats, modes, orientation, limits, parts of a size, and bytes that are not what they claim."""

import io
import random
import struct
import threading
import zlib
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.common.errors import BadImage, OutOfMemory, Overloaded, TooLarge
from service.common.types import FORMATS, ImageLimits, Pixels
from service.preprocessing import decode
from service.preprocessing.decode import _PixelTurns, decode_image, decode_pixels
from service.preprocessing.structure import read_structure
from tests.conftest import noise
from tests.orientations import ORIENTATIONS, stored, tagged

LIMITS = ImageLimits()
FRACTIONS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97)

BEST: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}

# Pillow warns of damaged side notes; in the service a warning is a line in the log, not an error
pillow_warns = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    """The image as a file of that format, as exact as the format can where the options do not say otherwise."""
    file = io.BytesIO()
    image.save(file, format_name, **(BEST.get(format_name, {}) | options))
    return file.getvalue()


def picture(width: int = 37, height: int = 29) -> Image.Image:
    """A smooth colourful picture with no symmetry."""
    return Image.fromarray(noise(5, 4)).resize((width, height), Image.Resampling.BICUBIC)


def blocks() -> Pixels:
    """Six flat blocks of 16 x 16 pixels, all different: JPEG keeps them, and every turn of them differs."""
    values = np.array([[(250, 10, 10), (10, 240, 30), (30, 30, 200)], [(0, 0, 0), (128, 90, 40), (255, 255, 255)]])
    return values.repeat(16, axis=0).repeat(16, axis=1).astype(np.uint8)


def difference(a: Pixels, b: Pixels) -> int:
    """Grey levels between the two, at the worst pixel."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, *, depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of these unfiltered rows, each after its filter byte, for kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def raw_tiff(data: bytes, tags: dict[int, int]) -> bytes:
    """A little-endian grey TIFF of these tags; StripOffsets or TileOffsets of 0 become where `data` begins."""
    tags = {258: 8, 262: 1, 277: 1} | tags
    start = 8 + 2 + 12 * len(tags) + 4
    rows = b"".join(
        struct.pack("<HHII", tag, 4, 1, start if tag in (273, 324) else value) for tag, value in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + data


SAMPLES: dict[str, bytes] = {
    "JPEG": encode(picture(), "JPEG"),
    "JPEG progressive": encode(picture(), "JPEG", progressive=True),
    "JPEG CMYK": encode(picture().convert("CMYK"), "JPEG"),
    "PNG": encode(picture(), "PNG"),
    "PNG palette": encode(picture().convert("P"), "PNG", transparency=3),
    "WEBP": encode(picture(), "WEBP", lossless=False),
    "WEBP lossless": encode(picture(), "WEBP"),
    "GIF": encode(picture(), "GIF"),
    "GIF interlaced": encode(picture(), "GIF", interlace=1),
    "BMP": encode(picture(), "BMP"),
    "BMP palette": encode(picture().convert("P"), "BMP"),
    "TIFF": encode(picture(), "TIFF"),
    "TIFF LZW": encode(picture(), "TIFF", compression="tiff_lzw"),
    "TIFF deflate": encode(picture(), "TIFF", compression="tiff_adobe_deflate"),
    "AVIF": encode(picture(), "AVIF"),
    "TIFF JPEG": encode(picture(), "TIFF", compression="jpeg"),
}


@pytest.mark.parametrize(
    ("format_name", "mode"),
    [
        *(("PNG", mode) for mode in ("RGB", "L", "P", "1")),
        *(("WEBP", mode) for mode in ("RGB", "L")),
        *(("GIF", mode) for mode in ("L", "P", "1")),
        *(("BMP", mode) for mode in ("RGB", "L", "P", "1")),
        *(("TIFF", mode) for mode in ("RGB", "L", "P", "CMYK", "1", "YCbCr", "LAB")),
    ],
)
def test_lossless_modes(format_name: str, mode: str) -> None:
    """Every mode of a lossless file becomes the RGB it stands for, to the last bit, however few pixels are needed."""
    image = picture().convert(mode)
    one = decode_image(encode(image, format_name), LIMITS, 1)

    assert (one.reduction, one.reduction_for(1)) == (1, 1)
    assert one.decoder.startswith("Pillow ")
    assert one.pixels.dtype == np.uint8
    assert np.array_equal(one.pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_modes(mode: str, progressive: bool) -> None:
    """JPEG in colour, grey and CMYK, baseline and progressive, becomes the RGB it stands for, from fewer pixels too."""
    image = picture(1003, 757).convert(mode)
    data = encode(image, "JPEG", progressive=progressive)
    reduced = decode_image(data, LIMITS, 180)

    assert difference(decode_pixels(data, LIMITS), np.asarray(image.convert("RGB"))) <= 8
    assert reduced.reduction == 4
    assert difference(reduced.pixels, np.asarray(image.convert("RGB").reduce(4))) <= 3


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_over_white(format_name: str, mode: str) -> None:
    """Half transparent parts are mixed with white, and wholly transparent ones are white."""
    image = picture().convert("L" if mode == "LA" else "RGB")
    colour = np.asarray(image.convert("RGB")).astype(float)
    alpha = np.tile(np.linspace(0, 255, image.width).round(), (image.height, 1))
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    assert image.mode == mode
    expected = colour * alpha[..., None] / 255 + (255 - alpha[..., None])
    pixels = decode_pixels(encode(image, format_name), LIMITS)

    assert difference(pixels, expected.round().astype(np.uint8)) <= 1
    assert (pixels[:, 0] == 255).all()


@pytest.mark.parametrize("format_name", ["PNG", "GIF"])
def test_transparent_palette_entry(format_name: str) -> None:
    """A transparent entry of a palette shows white, and the other entries their colour."""
    image = Image.new("P", (20, 10), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(0, (0, 0, 10, 10))
    pixels = decode_pixels(encode(image, format_name, transparency=0), LIMITS)

    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 10:] == (40, 50, 60)).all()


def test_palette_with_alpha() -> None:
    """A palette may hold an alpha for each entry."""
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    pixels = decode_pixels(encode(image, "PNG", transparency=bytes([0, 127])), LIMITS)

    assert pixels.tolist() == [[[255] * 3, [128] * 3]]


@pytest.mark.parametrize(("colour_type", "key"), [(0, b"\0\x10"), (2, b"\0\x10\0\x10\0\x10")])
def test_transparent_colour(colour_type: int, key: bytes) -> None:
    """A PNG without alpha may call one colour transparent; it shows white."""
    samples = 3 if colour_type == 2 else 1
    rows = b"\0" + b"\x10" * samples + b"\x20" * samples
    data = raw_png(2, 1, depth=8, colour_type=colour_type, rows=rows, extra=chunk(b"tRNS", key))

    assert decode_pixels(data, LIMITS).tolist() == [[[255] * 3, [32] * 3]]


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_grey_of_16_bits(format_name: str) -> None:
    """Grey of 16 bits is scaled to 8, each value rounded to the nearest, and not clipped."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decode_pixels(encode(Image.fromarray(values), format_name), LIMITS)

    assert np.array_equal(pixels, np.round(values / 257).astype(np.uint8)[..., None].repeat(3, axis=2))


def test_big_endian_tiff_of_16_bits() -> None:
    """The byte order of a TIFF does not change its greys."""
    values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    image = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())

    assert decode_pixels(encode(image, "TIFF"), LIMITS)[0, :, 0].tolist() == [0, 1, 100, 255]


def test_white_is_zero() -> None:
    """A TIFF may store white as zero, in 16 bits as in 8."""
    values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    data = encode(Image.fromarray(values), "TIFF").replace(
        struct.pack("<HHII", 262, 3, 1, 1), struct.pack("<HHII", 262, 3, 1, 0)
    )

    assert decode_pixels(data, LIMITS)[0, :, 0].tolist() == [255, 254, 155, 0]


@pytest.mark.parametrize(
    ("colour_type", "samples", "expected"),
    [
        (2, [0x1011, 0x8080, 0xFFFF], (0x10, 0x80, 0xFF)),
        (4, [0x8080, 0], (255,) * 3),
        (4, [0x8080, 0xFFFF], (128,) * 3),
    ],
    ids=["RGB", "LA transparent", "LA opaque"],
)
def test_colour_png_of_16_bits(colour_type: int, samples: list[int], expected: tuple[int, ...]) -> None:
    """A PNG with 16 bits a channel is taken in colour and with alpha as well."""
    rows = b"\0" + struct.pack(f">{len(samples)}H", *samples)
    pixels = decode_pixels(raw_png(1, 1, depth=16, colour_type=colour_type, rows=rows), LIMITS)

    assert difference(pixels, np.array([[expected]], dtype=np.uint8)) <= 1


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0.0, 1.0]], dtype=np.float32),
        np.array([[0, 65536]], dtype=np.int32),
        np.array([[-1, 100]], dtype=np.int32),
    ],
    ids=["float", "over 16 bits", "negative"],
)
def test_values_without_a_white(values: NDArray[np.int32] | NDArray[np.float32]) -> None:
    """A TIFF of floats or 32-bit integers does not say what is white: it is refused, with what to do."""
    with pytest.raises(BadImage, match=r"convert (it|the image) to 8 or 16 bits"):
        decode_pixels(encode(Image.fromarray(values), "TIFF"), LIMITS)


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_first_picture(format_name: str) -> None:
    """Of an animation, of pages and of a phone's several pictures the first is taken."""
    first, second = (Image.new("RGB", (64, 48), colour) for colour in ("red", "blue"))
    data = encode(first, format_name, save_all=True, append_images=[second])

    for needed_side, by in ((None, 1), (10, 4 if format_name == "MPO" else 1)):
        pixels = decode_image(data, LIMITS, needed_side).pixels
        assert difference(pixels, np.full((48 // by, 64 // by, 3), (255, 0, 0), dtype=np.uint8)) <= 2


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation(format_name: str, orientation: int) -> None:
    """Every EXIF orientation is turned upright, in each format that carries one."""
    pixels = decode_pixels(stored(blocks(), orientation, format_name, **BEST.get(format_name, {})), LIMITS)

    assert difference(pixels, blocks()) <= 2


@pillow_warns
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"garbage" * 5,
        b"II*\0\xff\xff\xff\x7f",
        b"II*\0\x08\0\0\0\xff\xff" + bytes(8),
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0",
        *(tagged(orientation).tobytes().removeprefix(b"Exif\0\0") for orientation in (0, 9, 65535)),
    ],
    ids=["empty", "garbage", "directory beyond the end", "too many entries", "cut off", "0", "9", "65535"],
)
def test_broken_exif(format_name: str, exif: bytes) -> None:
    """A damaged EXIF block, or an orientation that EXIF does not define, is ignored: the picture itself is whole."""
    image = Image.fromarray(blocks())
    pixels = decode_pixels(encode(image, format_name, exif=b"Exif\0\0" + exif), LIMITS)

    assert np.array_equal(pixels, decode_pixels(encode(image, format_name), LIMITS))


@pytest.mark.parametrize(
    ("size", "enough", "by"),
    [
        ((800, 640), None, 1),
        ((800, 640), 640, 1),
        ((800, 640), 321, 1),
        ((800, 640), 320, 2),
        ((640, 800), 161, 2),
        ((640, 800), 160, 4),
        ((800, 640), 80, 8),
        ((800, 640), 1, 8),
        ((9000, 60), 31, 1),
    ],
)
def test_as_much_as_is_enough(size: tuple[int, int], enough: int | None, by: int) -> None:
    """The shorter side keeps as many pixels as are enough, never fewer, and is reduced as far as that allows."""
    one = decode_image(encode(picture(*size), "JPEG"), LIMITS, enough)

    assert one.reduction == by == one.reduction_for(enough)
    assert one.image.size == (-(-size[0] // by), -(-size[1] // by))
    assert one.size == size


def lossless(width: int, height: int) -> bytes:
    """A lossless JPEG of middle grey: each pixel is as predicted, which its only Huffman code says in a bit of 0."""
    frame = struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)
    codes = bytes([0, 1, *[0] * 15, 0])
    segments = [(0xC3, frame), (0xC4, codes), (0xDA, bytes([1, 1, 0, 1, 0, 0]))]
    head = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return b"\xff\xd8" + head + bytes(width * height // 8) + b"\xff\xd9"


def test_lossless_jpeg() -> None:
    """A lossless JPEG, which browsers do not show and libjpeg decodes at its whole size only, is refused by name."""
    with pytest.raises(BadImage, match="a JPEG of a rare kind"):
        decode_image(lossless(640, 480), LIMITS, 100)


@pytest.mark.parametrize("needed_side", [None, 1])
def test_pixel_limit(needed_side: int | None) -> None:
    """As many pixels as the limit are taken, one more is TooLarge, even where an eighth of each side is decoded."""
    data = encode(picture(40, 30), "JPEG")
    assert decode_image(data, ImageLimits(max_pixels=1200), needed_side).size == (40, 30)
    with pytest.raises(TooLarge, match="40 x 30 = 1,200 pixels"):
        decode_image(data, ImageLimits(max_pixels=1199), needed_side)


def huge_headers() -> dict[str, bytes]:
    """A small file of each format whose header claims far more pixels than its few bytes can hold."""
    jpeg, gif, bmp = (bytearray(SAMPLES[name]) for name in ("JPEG", "GIF", "BMP"))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = struct.pack(">HH", 65500, 65500)
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    webp = b"VP8L" + struct.pack("<IBI", 5, 0x2F, 16383 << 14 | 16383) + b"\0"
    avif = bytearray(encode(picture(), "AVIF"))
    size = avif.index(b"ispe") + 8
    avif[size : size + 8] = struct.pack(">II", 60_000, 60_000)
    return {
        "AVIF": bytes(avif),
        "JPEG": bytes(jpeg),
        "PNG": raw_png(100_000, 100_000, depth=8, colour_type=2, rows=b""),
        "WEBP": b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp,
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "TIFF": raw_tiff(bytes(16), {256: 100_000, 257: 100_000, 259: 1, 273: 0, 278: 100_000, 279: 16}),
    }


@pytest.mark.parametrize("format_name", FORMATS)
def test_pixels_are_counted_before_decoding(format_name: str) -> None:
    """A header that claims too many pixels is TooLarge; decoding those few bytes could only have been BadImage."""
    with pytest.raises(TooLarge, match="pixels"):
        decode_pixels(huge_headers()[format_name], LIMITS)


def test_huge_tile() -> None:
    """A TIFF of 10 x 10 pixels in a tile of 32768 x 32768 is TooLarge: decoding it takes the memory of its tile."""
    data = zlib.compress(bytes(1 << 16))
    tags = {256: 10, 257: 10, 259: 8, 322: 32768, 323: 32768, 324: 0, 325: len(data)}
    with pytest.raises(TooLarge, match="32768 x 32768"):
        decode_pixels(raw_tiff(data, tags), LIMITS)


def test_tile_larger_than_the_picture() -> None:
    """A small TIFF in a tile of the usual size is an image like any other."""
    data = zlib.compress(bytes([85]) * 256 * 256)
    tags = {256: 10, 257: 12, 259: 8, 322: 256, 323: 256, 324: 0, 325: len(data)}

    assert np.array_equal(decode_pixels(raw_tiff(data, tags), LIMITS), np.full((12, 10, 3), 85, dtype=np.uint8))


@pillow_warns
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("name", SAMPLES)
def test_truncated(name: str, fraction: float) -> None:
    """A file that was cut off is BadImage in every format, wherever it was cut."""
    data = SAMPLES[name]
    with pytest.raises(BadImage):
        decode_pixels(data[: int(len(data) * fraction)], LIMITS)


@pillow_warns
@pytest.mark.parametrize("name", SAMPLES)
def test_last_bytes_missing(name: str) -> None:
    """Without its last bytes a file is BadImage, unless every pixel was before them."""
    data = SAMPLES[name]
    whole = decode_pixels(data, LIMITS)
    for cut in range(1, 40):
        try:
            pixels = decode_pixels(data[:-cut], LIMITS)
        except BadImage:
            continue
        assert np.array_equal(pixels, whole)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.startswith("PNG")])
def test_png_without_its_end(name: str) -> None:
    """A PNG that lost even its last byte is BadImage, although every pixel was before it."""
    with pytest.raises(BadImage, match="cut off"):
        decode_pixels(SAMPLES[name][:-1], LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"This is cat.jpg, really.\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        noise(64, 64).tobytes(),
        encode(picture(), "PPM"),
        encode(picture(), "ICO", sizes=[(16, 16)]),
    ],
    ids=["text", "SVG", "random", "PPM", "ICO"],
)
def test_not_an_image(data: bytes) -> None:
    """What is not an image, or not in a format that is served, is BadImage, and the detail names those that are."""
    with pytest.raises(BadImage, match="JPEG, PNG, WEBP, GIF, BMP, TIFF"):
        decode_pixels(data, LIMITS)


def test_empty() -> None:
    """No bytes at all is an error of its own."""
    with pytest.raises(BadImage, match="empty"):
        decode_pixels(b"", LIMITS)


@pillow_warns
@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=8),
)
def test_damaged_anywhere(name: str, edits: list[tuple[float, bytes, int]]) -> None:
    """Bytes changed, lost or added anywhere give pixels or an error of the table, and nothing else."""
    data = bytearray(SAMPLES[name])
    for where, new, lost in edits:
        position = int(where**3 * len(data))  # most of them in the header, where they do most
        data[position : position + lost] = new
    try:
        pixels = decode_pixels(bytes(data), ImageLimits(max_pixels=1_000_000))
    except (BadImage, TooLarge):
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.size > 0


def verdict(data: bytes, enough: int | None) -> str:
    """What becomes of it."""
    try:
        return str(decode_image(data, LIMITS, enough).size)
    except BadImage:
        return "bad"


@pillow_warns
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}], ids=["plain", "scans", "4:2:0"])
def test_damage_is_seen_alike(options: dict[str, Any]) -> None:
    """Cut off or with flipped bits, a photo is refused at a part of its size exactly where it is at its whole."""
    data, chance = encode(picture(203, 157), "JPEG", **({"quality": 80} | options)), random.Random(1)
    verdicts = []
    for _ in range(150):
        damaged = bytearray(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        for _ in range(chance.randrange(4)):
            if damaged:
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        verdicts.append((verdict(bytes(damaged), None), verdict(bytes(damaged), 30)))

    assert all(whole == part for whole, part in verdicts)
    assert 20 < sum(whole == "bad" for whole, _ in verdicts) < 140


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
@pytest.mark.parametrize("error", [MemoryError(), ValueError("Insufficient memory (case 4)"), OSError("out of memory")])
def test_out_of_memory(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    """A decoder that lacks memory does not make the image a damaged one: the server says that it is its own fault."""

    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("simplejpeg.decode_jpeg", fail)
    monkeypatch.setattr("PIL.Image.open", fail)
    with pytest.raises(OutOfMemory, match="memory"):
        decode_pixels(SAMPLES[name], LIMITS)


def test_pixels_at_once() -> None:
    """Threads wait while the images that others decode have as many pixels as the bound; one alone never waits."""
    turns, most, now = _PixelTurns(10), 0, 0
    lock = threading.Lock()

    def decode(pixels: int) -> None:
        nonlocal most, now
        with turns.turn(pixels):
            with lock:
                now += pixels
                most = max(most, now)
            with lock:
                now -= pixels

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [4, 3, 6, 10, 1, 5] * 50))
    with turns.turn(99):
        pass

    assert most <= 10


def test_large_images_have_a_turn() -> None:
    """A large image that waits is not passed by smaller ones, however many come."""
    turns = _PixelTurns(10)
    order: list[int] = []
    large_waits = threading.Event()

    def decode(pixels: int) -> None:
        with turns.turn(pixels):
            order.append(pixels)

    class Told(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            large_waits.set()
            return super().wait(timeout)

    turns._changed = Told()
    with ThreadPoolExecutor(2) as pool:
        with turns.turn(6):
            large = pool.submit(decode, 9)
            assert large_waits.wait(10)
            small = pool.submit(decode, 2)
            wait([large, small], timeout=0.2, return_when=FIRST_COMPLETED)  # it would be done, if it passed
        large.result()
        small.result()

    assert order == [9, 2]


def test_no_turn_in_time() -> None:
    """An image that gets no turn in time is refused as a load that is too high, and the next one gets its turn."""
    turns = _PixelTurns(10, timeout_s=0.01)
    with turns.turn(10), pytest.raises(Overloaded, match="too many large images"), turns.turn(1):
        pass
    with turns.turn(10):
        pass


def test_turns_count_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image takes as much of the bound of all threads as it costs, not as it has pixels."""
    turns: list[int] = []

    class Noted:
        def turn(self, cost: int) -> AbstractContextManager[None]:
            turns.append(cost)
            return nullcontext()

    monkeypatch.setattr(decode, "_TURNS", Noted())
    image = picture(1000, 1000)
    files = {name: encode(image.convert("L"), name) for name in ("PNG", "WEBP", "AVIF", "BMP")}
    files["PNG of 16 bits"] = encode(Image.fromarray(np.zeros((1000, 1000), np.uint16) + 9), "PNG")
    for data in (SAMPLES["AVIF"], *files.values()):
        decode_pixels(data, LIMITS)

    sizes = {name: len(read_structure(data).data) for name, data in files.items()}
    grey, deep = (ceil(cost + sizes[name] / 2) for name, cost in (("PNG", 1_250_000), ("PNG of 16 bits", 1_750_000)))
    assert turns[:3] == [grey, 2_000_000 + sizes["WEBP"], 2_000_000 + 3 * sizes["AVIF"]]
    assert turns[3:] == [deep]
