"""The input recipe against torchvision's own transform, and the recipes in the catalog against its presets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import GoogLeNet, get_model_weights
from torchvision.transforms import InterpolationMode, TenCrop
from torchvision.transforms import functional as functional

from models.build import ServedNetwork
from models.catalog import CATALOG, Channels, InputSpec, Interpolation, WeightSet
from service.common.types import ImageLimits, Pixels, Sample
from service.preprocessing import transforms
from service.preprocessing.decode import DecodedImage, decode_pixels
from tests.conftest import noise

PUBLISHED = [
    (entry.source.partition(":")[2], weights)
    for entry in CATALOG
    for weights in entry.weight_sets
    if weights.file is None and "@" not in entry.name
]
IDS = [f"{name}-{weights.tag}" for name, weights in PUBLISHED]
SMALL = InputSpec(resize=36, crop=32)  # as the presets in every step, and a fiftieth of the work

SIZES = [
    *((1, 1), (1, 2), (2, 1), (3, 3), (31, 33), (223, 225), (224, 224), (224, 225), (225, 224), (232, 232)),
    *((255, 257), (256, 256), (257, 256), (640, 480), (480, 641), (1500, 1000), (1000, 1499), (1, 60), (60, 1)),
    *((25, 1500), (1500, 25), (7, 419), (419, 7)),
]


def preset_of(name: str, weights: WeightSet) -> Any:
    """torchvision's `ImageClassification` preset of those weights."""
    return get_model_weights(name)[weights.tag].transforms()


def torchvision_sample(pixels: Pixels, spec: InputSpec) -> Sample:
    """The uint8 stage of that preset, by torchvision's own functions."""
    resized = functional.resize(
        Image.fromarray(pixels), [spec.resize], InterpolationMode(spec.interpolation.value), antialias=True
    )
    return np.asarray(functional.center_crop(resized, [spec.crop]))


def worst(pixels: Pixels, spec: InputSpec) -> int:
    """Grey levels between the recipe and torchvision, at the worst pixel."""
    sample, expected = transforms.center_crop(spec, pixels), torchvision_sample(pixels, spec)
    assert sample.dtype == np.uint8
    assert sample.shape == expected.shape == (spec.crop, spec.crop, 3)
    return int(np.abs(sample.astype(int) - expected.astype(int)).max())


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
def test_strips(size: tuple[int, int], interpolation: Interpolation) -> None:
    """Strips of which only the middle is resized differ from the whole by at most one grey level."""
    assert worst(noise(*size), replace(SMALL, interpolation=interpolation)) <= 1


@pytest.mark.parametrize("size", [(5_000_000, 1), (1, 5_000_000)])
def test_endless_strip(size: tuple[int, int]) -> None:
    """A strip of one pixel by five million takes no more than a photo; resized whole it would take a terabyte."""
    width, height = size
    pixels = np.full((height, width, 3), (10, 20, 30), dtype=np.uint8)

    assert (transforms.center_crop(InputSpec(), pixels) == (10, 20, 30)).all()


def torchvision_ten(pixels: Pixels, spec: InputSpec) -> Sample:
    """torchvision's resize and `TenCrop`, stacked."""
    resized = functional.resize(
        Image.fromarray(pixels), [spec.resize], InterpolationMode(spec.interpolation.value), antialias=True
    )
    return np.stack([np.asarray(crop) for crop in TenCrop(spec.crop)(resized)])


@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize("size", [(640, 480), (480, 641), (224, 224), (31, 33), (1, 60), (1500, 1000)])
def test_ten_crops(size: tuple[int, int], interpolation: Interpolation) -> None:
    """The ten crops are torchvision's, in its order; one is the centre that a single crop takes, to one grey level."""
    pixels, spec = noise(*size), InputSpec(resize=256, crop=224, interpolation=interpolation)
    crops = transforms.ten_crops(spec, pixels)

    assert crops.shape == (10, 224, 224, 3)
    assert np.array_equal(crops, torchvision_ten(pixels, spec))
    assert np.abs(crops[4].astype(int) - transforms.center_crop(spec, pixels)).max() <= 1
    assert np.array_equal(crops[5:9], crops[[1, 0, 3, 2], :, ::-1])


@pytest.mark.parametrize("size", [(13, 1300), (1300, 13), (3, 1500), (60, 9000), (9000, 60)])
@pytest.mark.parametrize("interpolation", list(Interpolation))
def test_ten_crops_of_strips(size: tuple[int, int], interpolation: Interpolation) -> None:
    """Of a strip only the ends and the middle are resized; they differ from the whole by at most one grey level."""
    pixels, spec = noise(*size), replace(SMALL, interpolation=interpolation)
    difference = transforms.ten_crops(spec, pixels).astype(int) - torchvision_ten(pixels, spec)

    assert np.abs(difference).max() <= 1


def test_ten_crops_of_an_endless_strip() -> None:
    """Neither do ten crops resize the whole of it."""
    pixels = np.full((5_000_000, 1, 3), (10, 20, 30), dtype=np.uint8)

    assert (transforms.ten_crops(InputSpec(), pixels) == (10, 20, 30)).all()


@pytest.mark.parametrize("count", [1, 10])
def test_crops(count: int) -> None:
    """One crop is the centre, ten are the ten, stacked alike."""
    pixels = noise(50, 40)
    expected = transforms.ten_crops(SMALL, pixels) if count == 10 else transforms.center_crop(SMALL, pixels)[np.newaxis]

    assert np.array_equal(transforms.make_samples(SMALL, DecodedImage.from_pixels(pixels), count), expected)


def test_geometry() -> None:
    """Specs that differ only in what the graph does share their samples; any other difference tells them apart."""
    spec = InputSpec()
    same = replace(spec, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0), channels=Channels.BGR)
    others = [replace(spec, resize=255), replace(spec, crop=223), replace(spec, interpolation=Interpolation.BICUBIC)]

    assert transforms.geometry(same) == transforms.geometry(spec)
    assert len({transforms.geometry(one) for one in [spec, *others]}) == 4


def test_resized_size() -> None:
    """The longer side is truncated, never rounded, and may be of any length."""
    assert transforms.resized_size(640, 480, 256) == (341, 256)
    assert transforms.resized_size(480, 640, 256) == (256, 341)
    assert transforms.resized_size(100, 100, 232) == (232, 232)
    assert transforms.resized_size(1, 5_000_000, 256) == (256, 1_280_000_000)


def test_read_only_pixels(photo: bytes) -> None:
    """What the intake gives is taken as it is, and left as it was."""
    pixels = decode_pixels(photo, ImageLimits())
    before = pixels.copy()
    transforms.center_crop(InputSpec(), pixels)

    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(("name", "weights"), PUBLISHED, ids=IDS)
def test_photo(name: str, weights: WeightSet, photo: bytes) -> None:
    """A photo through the recipe and the catalog's normalisation is what the weights' own transform gives."""
    pixels = decode_pixels(photo, ImageLimits())
    preset = preset_of(name, weights)
    sample = transforms.center_crop(weights.input, pixels)
    expected = preset(Image.fromarray(pixels))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    as_preset = (torch.from_numpy(sample.copy()).permute(2, 0, 1) / 255 - mean) / std

    assert worst(pixels, weights.input) <= 1
    assert (as_preset - expected).abs().max() <= 1 / 255 / min(preset.std) + 1e-5


@pytest.mark.parametrize(("name", "weights"), PUBLISHED, ids=IDS)
def test_catalog_recipe(name: str, weights: WeightSet) -> None:
    """Every published set of weights has the sizes, the filter and the antialiasing of torchvision's preset."""
    preset = preset_of(name, weights)

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
