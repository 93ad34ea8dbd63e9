"""Bilinear resize of a part of an image with vector instructions, where a build of them exists. It knows no recipe."""

import platform
from collections.abc import Callable

from PIL import Image

Span = tuple[float, float]
"""From where to where in an image, in its pixels."""

Resize = Callable[[Image.Image, Span, Span, tuple[int, int]], Image.Image]
"""Those spans of an RGB image, across and down, as so many pixels."""


def _vectorised() -> Resize | None:
    """That of `cykooz-resizer`, or None where it is not published: it has wheels only, and on Linux for x86-64 only.

    Antialiased as Pillow's own, from spans in 64-bit floats and with both passes rounded as there, so within one grey
    level of it. It lets go of the GIL, as Pillow does.
    """
    if platform.machine() != "x86_64":  # as the marker of the dependency
        return None
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer

    bilinear = ResizeAlg.convolution(FilterType.bilinear)

    def resize(image: Image.Image, x: Span, y: Span, size: tuple[int, int]) -> Image.Image:
        box = CropBox(x[0], y[0], x[1] - x[0], y[1] - y[0])
        resized = Image.new("RGB", size)
        # a resizer of its own: one that is shared lets one thread in at a time
        Resizer().resize_pil(image, resized, ResizeOptions(bilinear, use_alpha=False, crop_box=box))
        return resized

    return resize


VECTORISED = _vectorised()
"""None where there is none; `python -m benchmarks.decoding` compares it with Pillow's."""
