"""Bilinear resize of a part of an image with vector instructions, if the extra `simd` is installed."""

import logging
from collections.abc import Callable

import numpy as np
from PIL import Image

Span = tuple[float, float]
"""First and last position along one axis of an image, in pixels."""

Resize = Callable[[Image.Image, Span, Span, tuple[int, int]], Image.Image]
"""Resizes part of an RGB image: (image, span of x, span of y, (width, height) of the result)."""

log = logging.getLogger(__name__)


def _load() -> Resize | None:
    """The resize of `cykooz-resizer`, or None if it is not installed or its pixels differ from Pillow's.

    It antialiases as Pillow does, takes spans in 64-bit floats and rounds after both passes as Pillow does, so it is
    within one grey level of Pillow. It releases the GIL, as Pillow does. It reads Pillow's internal image structure, so
    the check detects a Pillow version that it was not made for.
    """
    try:
        from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
    except ImportError:
        return None
    bilinear = ResizeAlg.convolution(FilterType.bilinear)

    def resize(image: Image.Image, x: Span, y: Span, size: tuple[int, int]) -> Image.Image:
        box = CropBox(x[0], y[0], x[1] - x[0], y[1] - y[0])
        resized = Image.new("RGB", size)
        # one resizer per call: a shared one lets one thread in at a time
        Resizer().resize_pil(image, resized, ResizeOptions(bilinear, use_alpha=False, crop_box=box))
        return resized

    return resize if _agrees_with_pillow(resize) else None


def _agrees_with_pillow(resize: Resize) -> bool:
    """Whether a part of a test pattern has the same pixels as with Pillow, to within one grey level."""
    rows, columns, channels = np.ogrid[:90, :120, :3]
    image = Image.fromarray(((rows * 7 + columns * 13 + channels * 85) % 256).astype(np.uint8))
    try:
        ours = np.asarray(resize(image, (8.5, 104.5), (3.0, 83.0), (32, 32)), int)
    except Exception as error:  # a library may fail in any way with a Pillow version that it was not made for
        log.warning("cykooz-resizer fails, so Pillow resizes instead: %s", error)
        return False
    pillows = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR, box=(8.5, 3.0, 104.5, 83.0)), int)
    if (difference := int(np.abs(ours - pillows).max())) > 1:
        log.warning("cykooz-resizer differs from Pillow by %d grey levels, so Pillow resizes instead", difference)
        return False
    return True


RESIZE = _load()
"""None if Pillow resizes; `python -m benchmarks.decoding` compares both."""
