"""Photos that are decoded at a part of their size: the grid, what may be left out, what is refused, and who asks."""

import asyncio
import io
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.artifact.artifact import load
from models.catalog import CATALOG, InputSpec, Interpolation
from service.common.clock import LoopClock
from service.common.errors import BadImage, TooLarge
from service.common.types import Decode, ImageLimits, Pixels, Runtime
from service.engines.onnxruntime import OnnxRuntimeEngine
from service.preprocessing import transforms
from service.preprocessing.decode import DecodedImage, decode_image, decode_pixels
from service.preprocessing.preprocessor import Preprocessor, RequestImage, joined
from tests.conftest import noise, png
from tests.orientations import ORIENTATIONS, stored
from tests.serving import serving

LIMITS = ImageLimits()
SMALL = InputSpec(resize=36, crop=32)
SIZE = (1003, 757)  # no multiple of 2, 4 or 8


def ramp(width: int, height: int) -> Pixels:
    """Red grows to the right and green downwards by about a third of a level a pixel: a shifted grid shows."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    red, green = np.meshgrid(across, down)
    return np.stack([red, green, np.full_like(red, 90)], axis=-1).round().astype(np.uint8)


def jpeg(pixels: Pixels, **options: Any) -> bytes:
    """A JPEG as good as they get."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", **({"quality": 100, "subsampling": 0} | options))
    return file.getvalue()


def photo(width: int, height: int, **options: Any) -> bytes:
    """A JPEG of a smooth colourful picture with no symmetry."""
    image = Image.fromarray(noise(9, 7)).resize((width, height), Image.Resampling.BICUBIC)
    return jpeg(np.asarray(image), **options)


def cut(data: bytes, enough: int | None) -> NDArray[np.int_]:
    """The centre crop, in numbers that may be subtracted."""
    sample: Pixels = transforms.make_samples(SMALL, decode_image(data, LIMITS, enough), 1)[0]
    return sample.astype(int)


@pytest.mark.parametrize("by", [2, 4, 8])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_grid_stays(by: int, orientation: int) -> None:
    """Whatever the reduction and the orientation, a crop of an odd size shows the same place: within 0.1 pixels."""
    data = stored(ramp(*SIZE), orientation, "JPEG", quality=100, subsampling=0)
    reduced = decode_image(data, LIMITS, SIZE[1] // by)
    shift = (cut(data, SIZE[1] // by) - cut(data, None)).mean(axis=(0, 1))  # the ramps rise by 7 levels a crop's pixel

    assert (reduced.reduction, reduced.size) == (by, SIZE)
    assert np.abs(shift[:2]).max() < 0.7
    assert np.abs(shift[2]) < 0.5


@pytest.mark.parametrize("axis", [0, 1])
def test_the_grid_would_show(axis: int) -> None:
    """The test before would see a shift of half a pixel of the reduced picture."""
    enough, half = SIZE[1] // 8, 8 // 2
    moved = np.roll(ramp(*SIZE), -half, axis=1 - axis)

    assert (cut(jpeg(moved), enough) - cut(jpeg(ramp(*SIZE)), enough)).mean(axis=(0, 1))[axis] > 0.9


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(1003, 757), (757, 1003), (640, 480), (301, 300), (90, 61), (61, 200), (64, 64)])
@pytest.mark.parametrize("how", Interpolation)
@pytest.mark.parametrize("count", [1, 10])
def test_turned_after_the_crop(orientation: int, size: tuple[int, int], how: Interpolation, count: int) -> None:
    """Crops of the photo as it is stored, turned, are those of the photo turned first, to a level in a few pixels."""
    spec = replace(SMALL, interpolation=how)
    upright = np.asarray(Image.fromarray(noise(40, 31)).resize(size, Image.Resampling.BICUBIC))
    crops = transforms.make_samples(spec, decode_image(stored(upright, orientation, "PNG"), LIMITS), count).astype(int)
    off = np.abs(crops - transforms.make_samples(spec, DecodedImage.from_pixels(upright), count))

    assert off.max() <= 1
    assert (off > 0).mean() < 0.005


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
    one = decode_image(photo(*size), LIMITS, enough)

    assert one.reduction == by == one.reduction_for(enough)
    assert one.image.size == (-(-size[0] // by), -(-size[1] // by))
    assert one.size == size


@pytest.mark.parametrize("decode_mode", Decode)
def test_how_much_is_enough(decode_mode: Decode) -> None:
    """Every pixel; four or two for one of the resize; as much for 32 pixels as for 256, so that models share."""
    asked = [transforms.needed_side(InputSpec(resize=resize, crop=32), decode_mode) for resize in (32, 256, 342)]

    assert (
        asked
        == {
            Decode.EXACT: [None, None, None],
            Decode.AUTO: [1024, 1024, 1368],
            Decode.FAST: [512, 512, 684],
        }[decode_mode]
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_kinds_of_jpeg(mode: str, progressive: bool) -> None:
    """Colour, grey and CMYK, baseline and progressive, look the same from fewer pixels."""
    file = io.BytesIO()
    image = Image.fromarray(noise(9, 7)).resize(SIZE, Image.Resampling.BICUBIC).convert(mode)
    image.save(file, "JPEG", quality=95, progressive=progressive)
    data = file.getvalue()

    assert decode_image(data, LIMITS, 180).reduction == 4
    assert np.abs(cut(data, 180) - cut(data, None)).max() <= 3


def test_several_pictures_in_a_file() -> None:
    """Of the several pictures of a phone's file the first is reduced."""
    file = io.BytesIO()
    first, second = (Image.new("RGB", (640, 480), colour) for colour in ("red", "blue"))
    first.save(file, "MPO", save_all=True, append_images=[second])
    one = decode_image(file.getvalue(), LIMITS, 100)

    assert one.reduction == 4
    assert one.pixels.shape == (120, 160, 3)
    assert np.abs(one.pixels.astype(int) - (254, 0, 0)).max() <= 2


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats(format_name: str) -> None:
    """Only a JPEG can be decoded at a part of its size."""
    file = io.BytesIO()
    Image.new("RGB", (640, 480)).save(file, format_name)
    one = decode_image(file.getvalue(), LIMITS, 10)

    assert (one.reduction, one.reduction_for(10), one.image.size) == (1, 1, (640, 480))
    assert one.decoder.startswith("Pillow ")


def lossless(width: int, height: int) -> bytes:
    """A lossless JPEG of middle grey: each pixel is as predicted, which its only Huffman code says in a bit of 0."""
    frame = struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)
    codes = bytes([0, 1, *[0] * 15, 0])
    segments = [(0xC3, frame), (0xC4, codes), (0xDA, bytes([1, 1, 0, 1, 0, 0]))]
    head = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return b"\xff\xd8" + head + bytes(width * height // 8) + b"\xff\xd9"


def test_lossless_jpeg() -> None:
    """A lossless JPEG, which libjpeg decodes at its whole size only, is taken however few pixels are enough."""
    one = decode_image(lossless(640, 480), LIMITS, 100)

    assert (one.reduction, one.reduction_for(100), one.image.size) == (1, 1, (640, 480))
    assert np.array_equal(one.pixels, np.full((480, 640, 3), 128))


def test_limits_count_the_whole_photo() -> None:
    """A photo with too many pixels is TooLarge even where only an eighth of each side would be decoded."""
    with pytest.raises(TooLarge, match="640 x 480"):
        decode_image(photo(640, 480), ImageLimits(max_pixels=640 * 480 - 1), 10)


def verdict(data: bytes, enough: int | None) -> str:
    """What becomes of it."""
    try:
        return str(decode_image(data, LIMITS, enough).size)
    except BadImage:
        return "bad"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}], ids=["plain", "scans", "4:2:0"])
def test_damage_is_seen_alike(options: dict[str, Any]) -> None:
    """Cut off or with flipped bits, a photo is refused at a part of its size exactly where it is at its whole."""
    data, chance = photo(203, 157, quality=80, **options), random.Random(1)
    verdicts = []
    for _ in range(150):
        damaged = bytearray(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        for _ in range(chance.randrange(4)):
            if damaged:
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        verdicts.append((verdict(bytes(damaged), None), verdict(bytes(damaged), 30)))

    assert all(whole == part for whole, part in verdicts)
    assert 20 < sum(whole == "bad" for whole, _ in verdicts) < 140


def test_pillow_goes_the_way_that_is_assumed() -> None:
    """Which axis Pillow resizes first is its own choice, which crops follow: on black and white the orders differ."""
    chance, seen = random.Random(2), set()
    for _ in range(60):
        old, new = [(chance.randint(20, 300), chance.randint(20, 300)) for _ in range(2)]
        if old[0] == new[0] or old[1] == new[1]:
            continue
        image = Image.fromarray((noise(*old) > 127).astype(np.uint8) * 255)
        down_first = transforms._down_first(old, new)
        between = (old[0], new[1]) if down_first else (new[0], old[1])
        steps = image.resize(between, Image.Resampling.BICUBIC).resize(new, Image.Resampling.BICUBIC)
        assert image.resize(new, Image.Resampling.BICUBIC) == steps
        seen.add(down_first)

    assert seen == {False, True}


class Reading:
    """Reads photos, and notes how many pixels were enough."""

    def __init__(self, decode_mode: Decode) -> None:
        self.asked: list[int | None] = []
        self.preprocessor = Preprocessor(LIMITS, threads=1, clock=LoopClock(), mode=decode_mode, decode=self._read)

    def _read(self, data: bytes, limits: ImageLimits, enough: int | None) -> DecodedImage:
        self.asked.append(enough)
        return decode_image(data, limits, enough)

    def samples(self, data: bytes, *specs: InputSpec) -> list[tuple[Pixels, str]]:
        """Those of all recipes asked for at once, and the scale that is named."""

        async def ask() -> list[tuple[Pixels, str]]:
            with RequestImage(self.preprocessor, data, 1, ["m"]) as asked:
                prepared = await asked.samples("m", specs)
                named = joined(prepared).scale.split("+")
                assert named == list(dict.fromkeys(one.preprocessing.scale for one in prepared))
                return [(one.samples, one.preprocessing.scale) for one in prepared]

        try:
            return asyncio.run(ask())
        finally:
            self.preprocessor.close()


LARGE, LARGER = InputSpec(resize=342, crop=299), InputSpec(resize=300, crop=299)


@pytest.mark.parametrize(
    ("decode_mode", "scales"),
    [(Decode.AUTO, ["1/2", "1/1", "1/1"]), (Decode.FAST, ["1/4", "1/2", "1/2"]), (Decode.EXACT, ["1/1"] * 3)],
)
def test_company_changes_nothing(decode_mode: Decode, scales: list[str]) -> None:
    """A model gets the same pixels alone and beside others, and each scale is decoded once for all who need it."""
    data, specs = photo(2400, 2100, quality=90), [InputSpec(), LARGE, LARGER]
    together = Reading(decode_mode)
    answers = together.samples(data, *specs)

    assert [scale for _, scale in answers] == scales
    assert len(together.asked) == len(set(scales))
    for spec, (samples, scale) in zip(specs, answers, strict=True):
        ((alone, named),) = Reading(decode_mode).samples(data, spec)
        assert np.array_equal(alone, samples)
        assert named == scale


def test_a_small_photo_is_decoded_once() -> None:
    """Recipes that would leave different parts of a large photo out share one decode of a small one, and of a PNG."""
    for data in (photo(500, 375), png()):
        reading = Reading(Decode.FAST)
        answers = reading.samples(data, InputSpec(), LARGE)
        assert len(reading.asked) == 1
        assert [scale for _, scale in answers] == ["1/1", "1/1"]


async def test_the_reply_names_it(artifacts: Path) -> None:
    """The recipe that ran stands in the reply, and `--decode` decides it."""
    data, named = photo(2100, 2100, quality=90), {}
    for decode_mode in Decode:
        async with serving(artifacts, decode=decode_mode) as running:
            reply = (await running.http.post("/predict", files={"image": data})).json()
        named[decode_mode.value] = reply["preprocessing"]["scale"]
    assert reply["preprocessing"]["decoder"].startswith(("libjpeg-turbo ", "Pillow "))
    assert reply["preprocessing"]["recipe"] == "resize 36 bilinear, crop 32"
    assert named == {"auto": "1/2", "fast": "1/4", "exact": "1/1"}


def test_whole_pixels_are_the_default_of_arrays() -> None:
    """`decode` gives every pixel of the largest photo."""
    assert decode_pixels(photo(1100, 1050), LIMITS).shape == (1050, 1100, 3)


@pytest.mark.parametrize("size", [(3264, 2448), (4031, 3023)])
def test_answers_of_large_photos(trained: Path, shared_data: Path, size: tuple[int, int]) -> None:
    """What `auto` leaves out of photos of 8 and 12 megapixels changes no best class and no probability by over 0.02."""
    engine = OnnxRuntimeEngine(load(trained, "squeezenet1_1"), Runtime.ONNXRUNTIME, slots=1, threads=2, max_batch=1)
    spec = CATALOG["squeezenet1_1"].input
    for name in ("peacock.jpeg", "gorilla.jpeg", "dog.jpg", "kitten.jpg"):
        large = Image.open(shared_data / "photos" / name).convert("RGB").resize(size, Image.Resampling.LANCZOS)
        data = jpeg(np.asarray(large), quality=90, subsampling=2)
        whole, reduced = (
            decode_image(data, LIMITS, transforms.needed_side(spec, one)) for one in (Decode.EXACT, Decode.AUTO)
        )
        expected, found = (engine.run(transforms.make_samples(spec, one, 1))[0] for one in (whole, reduced))
        assert (whole.reduction, reduced.reduction) == (1, 2)
        assert np.abs(found - expected).max() <= 0.02
        assert found.argmax() == expected.argmax()
    engine.close()
