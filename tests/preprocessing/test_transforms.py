"""The input recipe against torchvision's own transform, and the recipes in the catalog against its presets."""

import random
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import GoogLeNet, get_model_weights
from torchvision.transforms import InterpolationMode, TenCrop, functional

from models.artifact.artifact import load
from models.build import ServedNetwork
from models.catalog import CATALOG, Channels, InputSpec, Interpolation, ResizeMode, WeightSet
from service.common.types import Decode, ImageLimits, Pixels, Runtime, Samples
from service.engines.onnxruntime import OnnxRuntimeEngine
from service.preprocessing import transforms
from service.preprocessing.decode import DecodedImage, decode_image, decode_pixels, rgb_array
from tests.conftest import noise
from tests.orientations import ORIENTATIONS, stored

PUBLISHED = [
    (entry.source.partition(":")[2], weights)
    for entry in CATALOG
    for weights in entry.weight_sets
    if not (weights.file or weights.urls) and "@" not in entry.name
]
IDS = [f"{name}-{weights.tag}" for name, weights in PUBLISHED]
SMALL = InputSpec(resize=36, crop=32)  # as the presets in every step, and a fiftieth of the work
SIZE = (1003, 757)  # no multiple of 2, 4 or 8

SIZES = [
    *((1, 1), (1, 2), (2, 1), (3, 3), (31, 33), (223, 225), (224, 224), (224, 225), (225, 224), (232, 232)),
    *((255, 257), (256, 256), (257, 256), (640, 480), (480, 641), (1500, 1000), (1000, 1499), (1, 60), (60, 1)),
    *((25, 1500), (1500, 25), (7, 419), (419, 7)),
]


def preset_of(name: str, weights: WeightSet) -> Any:
    """torchvision's `ImageClassification` preset of those weights."""
    return get_model_weights(name)[weights.tag].transforms()


ImageClassification = type(preset_of(*PUBLISHED[0]))


def torchvision_samples(pixels: Pixels, spec: InputSpec, count: int) -> Samples:
    """The uint8 stage of that preset, or its resize and `TenCrop`."""
    image, how = Image.fromarray(pixels), InterpolationMode(spec.interpolation.value)
    if count == 1:
        preset = ImageClassification(
            crop_size=spec.crop, resize_size=spec.resize, interpolation=how, mean=(0.0,) * 3, std=(1.0,) * 3
        )
        return np.asarray((preset(image) * 255).round().to(torch.uint8).permute(1, 2, 0))[np.newaxis]
    resized = functional.resize(image, [spec.resize], how, antialias=True)
    return np.stack([np.asarray(crop) for crop in TenCrop(spec.crop)(resized)])


def worst(pixels: Pixels, spec: InputSpec, count: int = 1) -> int:
    """Grey levels between the recipe and torchvision, at the worst pixel; the pixels may not be written to."""
    pixels.flags.writeable = False
    if count == 1:
        samples = transforms.center_crop(spec, pixels)[np.newaxis]
    else:
        samples = transforms.make_samples(spec, DecodedImage.from_pixels(pixels), count)
    expected = torchvision_samples(pixels, spec, count)
    assert samples.dtype == np.uint8
    assert samples.shape == expected.shape == (count, spec.crop, spec.crop, 3)
    return int(np.abs(samples.astype(int) - expected.astype(int)).max())


@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_sizes(width: int, height: int, interpolation: Interpolation) -> None:
    """Noise of many sizes and shapes, square to 60:1, upscaled and downscaled, differs by at most one grey level."""
    assert worst(noise(width, height), InputSpec(resize=256, crop=224, interpolation=interpolation)) <= 1


@settings(max_examples=250, deadline=None)
@given(
    shorter=st.integers(1, 1500),
    ratio=st.floats(1, 60),
    upright=st.booleans(),
    margin=st.integers(0, 9),
    interpolation=st.sampled_from(Interpolation),
)
def test_any_size(shorter: int, ratio: float, upright: bool, margin: int, interpolation: Interpolation) -> None:
    """Noise of any size to 1500 x 1500, with even and odd margins, differs by at most one grey level."""
    longer = max(shorter, min(1500, int(shorter * ratio)))
    width, height = (shorter, longer) if upright else (longer, shorter)
    spec = InputSpec(resize=32 + margin, crop=32, interpolation=interpolation)

    assert worst(noise(width, height, seed=margin), spec) <= 1


@pytest.mark.parametrize("crop", [31, 32])
@pytest.mark.parametrize("width", [36, 37, 38, 39, 40])
def test_offsets(width: int, crop: int) -> None:
    """Where the crop begins is torchvision's choice, halves to even: without a resize every pixel is the same."""
    for size in ((width, 36), (36, width)):
        assert worst(noise(*size), InputSpec(resize=36, crop=crop)) == 0


@pytest.mark.parametrize(
    "size", [(13, 1300), (1300, 13), (3, 1500), (1, 5000), (5000, 1), (23, 9790), (60, 9000), (9000, 60)]
)
@pytest.mark.parametrize("interpolation", list(Interpolation))
@pytest.mark.parametrize("count", [1, 10])
def test_strips(size: tuple[int, int], interpolation: Interpolation, count: int) -> None:
    """Strips of which only the crops are resized differ from the whole by at most one grey level."""
    assert worst(noise(*size), replace(SMALL, interpolation=interpolation), count) <= 1


@pytest.mark.parametrize("size", [(5_000_000, 1), (1, 5_000_000)])
@pytest.mark.parametrize("count", [1, 10])
def test_endless_strip(size: tuple[int, int], count: int) -> None:
    """A strip of one pixel by five million takes no more than a photo; resized whole it would take a terabyte."""
    image = DecodedImage(Image.new("RGB", size, (10, 20, 30)), size)

    assert (transforms.make_samples(InputSpec(), image, count) == (10, 20, 30)).all()


@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize("size", [(640, 480), (480, 641), (224, 224), (31, 33), (1, 60), (1500, 1000)])
def test_ten_crops(size: tuple[int, int], interpolation: Interpolation) -> None:
    """The ten crops are torchvision's, in its order, to the last bit."""
    assert worst(noise(*size), InputSpec(resize=256, crop=224, interpolation=interpolation), 10) == 0


def test_geometry() -> None:
    """Specs that differ only in what the graph does share their samples; any other difference tells them apart."""
    spec = InputSpec()
    same = replace(spec, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0), channels=Channels.BGR)
    others = [replace(spec, resize=255), replace(spec, crop=223), replace(spec, interpolation=Interpolation.BICUBIC)]
    others.append(replace(spec, fit=ResizeMode.SQUASH))

    assert transforms.geometry(same) == transforms.geometry(spec)
    assert len({transforms.geometry(one) for one in [spec, *others]}) == 5


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (300, 900), (256, 256), (100, 400), (31, 33)])
@pytest.mark.parametrize("interpolation", list(Interpolation))
def test_squash(size: tuple[int, int], interpolation: Interpolation) -> None:
    """Both sides become `resize`, as in torchvision's `resize` to a square, and the centre is kept."""
    pixels = noise(*size)
    spec = replace(SMALL, interpolation=interpolation, fit=ResizeMode.SQUASH)
    how = InterpolationMode(interpolation.value)
    squashed = functional.resize(Image.fromarray(pixels), [spec.resize, spec.resize], how, antialias=True)
    expected = np.asarray(functional.center_crop(squashed, [spec.crop, spec.crop]))

    assert np.abs(transforms.center_crop(spec, pixels).astype(int) - expected).max() <= 1


def test_resized_size() -> None:
    """The longer side is truncated, never rounded, and may be of any length."""
    assert transforms.resized_size(640, 480, 256) == (341, 256)
    assert transforms.resized_size(480, 640, 256) == (256, 341)
    assert transforms.resized_size(100, 100, 232) == (232, 232)
    assert transforms.resized_size(1, 5_000_000, 256) == (256, 1_280_000_000)


@pytest.mark.parametrize(("name", "weights"), PUBLISHED, ids=IDS)
def test_catalog_recipe(name: str, weights: WeightSet) -> None:
    """Every published set of weights has the sizes, the filter and the antialiasing of torchvision's preset."""
    preset = preset_of(name, weights)

    assert isinstance(preset, ImageClassification)
    assert [weights.input.resize] == preset.resize_size
    assert [weights.input.crop] == preset.crop_size
    assert weights.input.interpolation.value == preset.interpolation.value
    assert preset.antialias


@pytest.mark.parametrize(("name", "weights"), PUBLISHED, ids=IDS)
def test_catalog_normalisation(name: str, weights: WeightSet) -> None:
    """The graph normalises as the preset does, and for GoogLeNet as preset and `transform_input` do together."""
    preset = preset_of(name, weights)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    expected = functional.normalize(levels.permute(0, 3, 1, 2) / 255, preset.mean, preset.std)
    if name in ("googlenet", "inception_v3"):
        rescaling = GoogLeNet(aux_logits=False, transform_input=True, init_weights=False)
        expected = rescaling._transform_input(expected)
    seen: list[torch.Tensor] = []

    class Listener(torch.nn.Module):
        """A network that only remembers its input."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image)
            return image.flatten(1)

    ServedNetwork(Listener(), weights.input)(levels)

    assert (seen[0] - expected).abs().max() < 1e-5


def test_labelled_photos(shared_data: Path) -> None:
    """Every photo beside the project comes through the recipe as through torchvision, with both filters."""
    for file in sorted((shared_data / "photos").glob("*.jp*g")):
        pixels = decode_pixels(file.read_bytes(), ImageLimits())
        for interpolation in Interpolation:
            assert worst(pixels, InputSpec(resize=232, interpolation=interpolation)) <= 1


# --- images of which the decoder left a part out, or that are turned ---


def ramp(width: int, height: int) -> Pixels:
    """Red grows to the right and green downwards by about a third of a level a pixel: a shifted grid shows."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    red, green = np.meshgrid(across, down)
    return np.stack([red, green, np.full_like(red, 90)], axis=-1).round().astype(np.uint8)


def jpeg(pixels: Pixels, orientation: int = 1, **options: Any) -> bytes:
    """A JPEG as good as they get."""
    return stored(pixels, orientation, "JPEG", **({"quality": 100, "subsampling": 0} | options))


def cut(data: bytes, enough: int | None) -> np.ndarray:
    """The centre crop, in numbers that may be subtracted."""
    return np.array(transforms.make_samples(SMALL, decode_image(data, ImageLimits(), enough), 1)[0], dtype=int)


@pytest.mark.parametrize("by", [2, 4, 8])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_grid_stays(by: int, orientation: int) -> None:
    """Whatever the reduction and the orientation, a crop of an odd size shows the same place: within 0.1 pixels."""
    data = jpeg(ramp(*SIZE), orientation)
    reduced = decode_image(data, ImageLimits(), SIZE[1] // by)
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


@pytest.mark.parametrize("size", [(1003, 757), (757, 1003), (640, 480), (301, 300), (90, 61), (61, 200), (64, 64)])
@pytest.mark.parametrize("how", Interpolation)
@pytest.mark.parametrize("count", [1, 10])
def test_turned_after_the_crop(size: tuple[int, int], how: Interpolation, count: int) -> None:
    """Crops of the photo as it is stored, turned, are those of the photo turned first, to a level in a few pixels."""
    spec = replace(SMALL, interpolation=how)
    upright = np.asarray(Image.fromarray(noise(40, 31)).resize(size, Image.Resampling.BICUBIC))
    expected = transforms.make_samples(spec, DecodedImage.from_pixels(upright), count).astype(int)
    for orientation in ORIENTATIONS:
        photo = decode_image(stored(upright, orientation, "PNG", compress_level=0), ImageLimits())
        off = np.abs(transforms.make_samples(spec, photo, count) - expected)
        assert off.max() <= 1, orientation
        assert (off > 0).mean() < 0.005, orientation


@pytest.mark.parametrize("decode_mode", Decode)
def test_how_much_is_enough(decode_mode: Decode) -> None:
    """Every pixel; four or two for one of the resize; as much for 32 pixels as for 256, so that models share."""
    asked = [transforms.needed_side(InputSpec(resize=resize, crop=32), decode_mode) for resize in (32, 256, 342)]

    expected = {Decode.EXACT: [None] * 3, Decode.AUTO: [1024, 1024, 1368], Decode.FAST: [512, 512, 684]}
    assert asked == expected[decode_mode]


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


@pytest.mark.parametrize("spec", [InputSpec(), InputSpec(interpolation=Interpolation.BICUBIC)], ids=str)
@pytest.mark.parametrize("crops", [1, 10])
def test_pixels_of_large_photos(spec: InputSpec, crops: int) -> None:
    """A JPEG of over a million pixels, which is decoded to four bytes a pixel, gives what its RGB pixels give."""
    data = stored(noise(1300, 901), 6, "JPEG")
    decoded = decode_image(data, ImageLimits())
    plain = replace(decoded, image=Image.fromarray(rgb_array(decoded.image)))
    assert (decoded.image.mode, plain.image.mode) == ("CMYK", "RGB")
    with Image.open(BytesIO(data)) as whole:
        assert np.abs(rgb_array(decoded.image).astype(int) - np.asarray(whole)).max() <= 4  # another decoder's rounding

    assert np.array_equal(decoded.pixels, plain.pixels)
    assert np.array_equal(transforms.make_samples(spec, decoded, crops), transforms.make_samples(spec, plain, crops))


@pytest.mark.parametrize("size", [(3264, 2448), (4031, 3023)])
def test_answers_of_large_photos(trained: Path, shared_data: Path, size: tuple[int, int]) -> None:
    """What `auto` leaves out of photos of 8 and 12 megapixels changes no best class and no probability by over 0.02."""
    engine = OnnxRuntimeEngine(load(trained, "squeezenet1_1"), Runtime.ONNXRUNTIME, slots=1, threads=2, max_batch=1)
    spec = CATALOG["squeezenet1_1"].input
    for name in ("peacock.jpeg", "gorilla.jpeg", "dog.jpg", "kitten.jpg"):
        large = Image.open(shared_data / "photos" / name).convert("RGB").resize(size, Image.Resampling.LANCZOS)
        data = jpeg(np.asarray(large), quality=90, subsampling=2)
        whole, reduced = (
            decode_image(data, ImageLimits(), transforms.needed_side(spec, one)) for one in (Decode.EXACT, Decode.AUTO)
        )
        expected, found = (engine.run(transforms.make_samples(spec, one, 1))[0] for one in (whole, reduced))
        assert (whole.reduction, reduced.reduction) == (1, 2)
        assert np.abs(found - expected).max() <= 0.02
        assert found.argmax() == expected.argmax()
    engine.close()
