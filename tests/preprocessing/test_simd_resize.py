"""The resize with vector instructions: its pixels are Pillow's, on every thread, wherever the package is published."""

import platform
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from models.catalog import InputSpec
from service.preprocessing import transforms
from service.preprocessing.decode import DecodedImage
from service.preprocessing.transforms import Span
from tests.conftest import noise

vectorised = pytest.mark.skipif(transforms.SIMD_RESIZE is None, reason="no build of the resizer for this machine")

SHRUNK = [
    (500, 375),
    (375, 500),
    (640, 480),
    (480, 641),
    (1200, 349),
    (349, 1200),
    (1999, 1333),
    (342, 342),
    (3000, 400),
]


def resized(image: Image.Image, side: int = 60) -> np.ndarray:
    """A square from the middle of it, at spans that are no whole pixels."""
    assert transforms.SIMD_RESIZE is not None
    return np.array(transforms.SIMD_RESIZE(image, (10.25, 190.5), (5.75, 170.125), (side, side)))


def test_used_where_it_is_published() -> None:
    """The development install has the extra: where there are builds the resize is used, and elsewhere Pillow's."""
    assert (transforms.SIMD_RESIZE is not None) is (platform.machine() == "x86_64")


@vectorised
def test_pixels_are_those_of_pillow() -> None:
    """It finds the pixels in Pillow's memory: black and white noise, in which a wrong place would show, is the same."""
    image = Image.fromarray((noise(200, 180) > 127).astype(np.uint8) * 255)
    expected = np.asarray(image.resize((60, 60), Image.Resampling.BILINEAR, box=(10.25, 5.75, 190.5, 170.125)))

    assert np.abs(resized(image).astype(int) - expected).max() <= 1
    assert expected.std() > 20


@vectorised
@pytest.mark.parametrize("size", SHRUNK)
def test_few_pixels_of_a_crop_differ(size: tuple[int, int]) -> None:
    """Passes come in Pillow's order: of a crop of noise at most one pixel in fifty is another one, by one level."""
    image, spec = Image.fromarray(noise(*size)), InputSpec()
    width, height = transforms.resized_size(*size, spec.resize)
    left, top = (round((side - spec.crop) / 2) for side in (width, height))
    whole = image.resize((width, height), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((left, top, left + spec.crop, top + spec.crop)))
    difference = np.abs(transforms.make_samples(spec, DecodedImage(image, image.size), 1)[0].astype(int) - expected)

    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


@vectorised
def test_threads() -> None:
    """Eight threads at once get what one gets."""
    images = [Image.fromarray(noise(200, 180, seed=seed)) for seed in range(8)]
    alone = [resized(image) for image in images]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(resized, images * 8))

    assert all(np.array_equal(one, alone[at % 8]) for at, one in enumerate(together))


def test_falls_back_to_pillow(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where the package is missing, fails or gives other pixels than Pillow, Pillow resizes; the log says so."""

    def black(_image: Image.Image, _x: Span, _y: Span, size: tuple[int, int]) -> Image.Image:
        return Image.new("RGB", size)

    def failing(_image: Image.Image, _x: Span, _y: Span, _size: tuple[int, int]) -> Image.Image:
        raise ValueError("no such buffer")

    assert not transforms._agrees_with_pillow(black)
    assert not transforms._agrees_with_pillow(failing)
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    assert transforms._load_simd_resize() is None
    assert [record.getMessage().partition(", so Pillow")[0] for record in caplog.records] == [
        "cykooz-resizer differs from Pillow by 218 grey levels",
        "cykooz-resizer fails",
    ]
