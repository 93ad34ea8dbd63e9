"""The image of one request and its users: when its pixels are released."""

import gc
import weakref

import pytest
from PIL import Image

from models.catalog import InputSpec
from service.common.clock import LoopClock
from service.common.types import ImageLimits
from service.preprocessing.decode import DecodedImage, decode_image
from service.preprocessing.preprocessor import Preprocessor, RequestImage
from tests.conftest import png

pytestmark = pytest.mark.anyio


async def test_pixels_are_released_after_the_last_user() -> None:
    """The pixels stay while a user may still ask. They are released once each has asked or left."""
    seen: list[weakref.ref[Image.Image]] = []

    def noted(data: bytes, limits: ImageLimits, needed: int | None) -> DecodedImage:
        decoded = decode_image(data, limits, needed)
        seen.append(weakref.ref(decoded.image))
        return decoded

    preprocessor = Preprocessor(ImageLimits(), threads=1, clock=LoopClock(), decode=noted)
    try:
        with RequestImage(preprocessor, png(), 1, ["a", "b"]) as image:
            await image.samples("a", [InputSpec()])
            gc.collect()
            kept = seen[0]() is not None
            image.leave("b")
            gc.collect()
            released = seen[0]() is None
    finally:
        preprocessor.close()
    assert kept
    assert released
    assert len(seen) == 1
