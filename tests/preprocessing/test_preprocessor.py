"""The image of one request: how often it is decoded, at which scale, and when its pixels are released."""

import gc
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.catalog import InputSpec
from service.common.clock import LoopClock
from service.common.types import Decode, ImageLimits, Pixels
from service.preprocessing.decode import DecodedImage, decode_image
from service.preprocessing.preprocessor import Preprocessor, RequestImage, joined
from tests.conftest import noise, png
from tests.orientations import stored
from tests.serving import serving

pytestmark = pytest.mark.anyio

LARGE, LARGER = InputSpec(resize=342, crop=299), InputSpec(resize=300, crop=299)


def photo(width: int, height: int) -> bytes:
    """A JPEG of a smooth colourful picture with no symmetry."""
    image = Image.fromarray(noise(9, 7)).resize((width, height), Image.Resampling.BICUBIC)
    return stored(np.asarray(image), 1, "JPEG", quality=90)


class Reading:
    """Reads photos, and notes what it decoded."""

    def __init__(self, decode_mode: Decode = Decode.AUTO) -> None:
        self.decoded: list[weakref.ref[Image.Image]] = []
        self.preprocessor = Preprocessor(
            ImageLimits(), threads=1, clock=LoopClock(), mode=decode_mode, decode=self._decode
        )

    def _decode(self, data: bytes, limits: ImageLimits, needed_side: int | None) -> DecodedImage:
        decoded = decode_image(data, limits, needed_side)
        self.decoded.append(weakref.ref(decoded.image))
        return decoded

    async def samples(self, data: bytes, *specs: InputSpec) -> list[tuple[Pixels, str]]:
        """Those of all recipes asked for at once, and the scale that is named."""
        try:
            with closing(RequestImage(self.preprocessor, data, 1)) as asked:
                prepared = await asked.samples(specs)
        finally:
            self.preprocessor.close()
        named = joined(prepared).scale.split("+")
        assert named == list(dict.fromkeys(one.preprocessing.scale for one in prepared))
        return [(one.samples, one.preprocessing.scale) for one in prepared]


async def test_expected_samples_are_made_with_the_first() -> None:
    """The first samples are made with those that are expected, and then the pixels are released.

    Samples that nobody expected take another decode.
    """
    reading = Reading()
    try:
        with closing(RequestImage(reading.preprocessor, png(), 1, [InputSpec(), LARGE])) as image:
            first = await image.samples([InputSpec()])
            gc.collect()
            assert reading.decoded[0]() is None
            assert await image.samples([InputSpec()]) == first
            await image.samples([LARGE])
            assert len(reading.decoded) == 1
            await image.samples([LARGER])
            assert len(reading.decoded) == 2
    finally:
        reading.preprocessor.close()


@pytest.mark.parametrize(
    ("decode_mode", "scales"),
    [(Decode.AUTO, ["1/2", "1/1", "1/1"]), (Decode.FAST, ["1/4", "1/2", "1/2"]), (Decode.EXACT, ["1/1"] * 3)],
)
async def test_company_changes_nothing(decode_mode: Decode, scales: list[str]) -> None:
    """A model gets the same pixels alone and beside others, and each scale is decoded once for all who need it."""
    data, specs = photo(2400, 2100), [InputSpec(), LARGE, LARGER]
    together = Reading(decode_mode)
    answers = await together.samples(data, *specs)

    assert [scale for _, scale in answers] == scales
    assert len(together.decoded) == len(set(scales))
    for spec, (samples, scale) in zip(specs, answers, strict=True):
        ((alone, named),) = await Reading(decode_mode).samples(data, spec)
        assert np.array_equal(alone, samples)
        assert named == scale


async def test_a_small_photo_is_decoded_once() -> None:
    """Recipes that would leave different parts of a large photo out share one decode of a small one, and of a PNG."""
    for data in (photo(500, 375), png()):
        reading = Reading(Decode.FAST)
        answers = await reading.samples(data, InputSpec(), LARGE)
        assert len(reading.decoded) == 1
        assert [scale for _, scale in answers] == ["1/1", "1/1"]


async def test_the_reply_names_it(artifacts: Path) -> None:
    """The recipe that ran stands in the reply, and `--decode` decides it."""
    data, named = photo(2100, 2100), {}
    for decode_mode in Decode:
        async with serving(artifacts, decode=decode_mode) as running:
            reply = (await running.http.post("/predict", files={"image": data})).json()
        named[decode_mode.value] = reply["preprocessing"]["scale"]
    assert reply["preprocessing"]["decoder"].startswith(("libjpeg-turbo ", "Pillow "))
    assert reply["preprocessing"]["recipe"] == "resize 36 bilinear, crop 32"
    assert named == {"auto": "1/2", "fast": "1/4", "exact": "1/1"}
