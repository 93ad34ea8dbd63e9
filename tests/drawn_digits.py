"""Draws digits as users of a paint program, a pen or a phone send them. Training never sees these.

The shapes are lines, arcs and ellipses of Pillow; those of the training are splines of other points.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Line = tuple[float, ...]  # x and y of each point
Arc = tuple[float, float, float, float, int, int]  # the box of its ellipse, start and end in degrees clockwise from x

WHITE, BLACK = (255, 255, 255), (0, 0, 0)

# Lines and arcs of each digit, in as many styles as people commonly write; x and y are 0 to 1, y downwards.
LINES: dict[str, tuple[Line, ...]] = {
    "1 a stroke": ((0.5, 0, 0.5, 1),),
    "1 with a serif": ((0.25, 0.28, 0.55, 0, 0.55, 1),),
    "1 with a base": ((0.3, 0.2, 0.5, 0, 0.5, 1), (0.2, 1, 0.8, 1)),
    "2 round": ((0.9, 0.42, 0.05, 1, 0.95, 1),),
    "2 angular": ((0.05, 0.1, 0.5, 0, 0.9, 0.2, 0.85, 0.45, 0.05, 1, 0.95, 1),),
    "3 flat": ((0.05, 0, 0.9, 0, 0.45, 0.4),),
    "4 open": ((0.15, 0, 0.1, 0.6, 0.95, 0.6), (0.7, 0.25, 0.7, 1)),
    "4 closed": ((0.7, 1, 0.7, 0, 0, 0.68, 1, 0.68),),
    "5 round": ((0.9, 0, 0.2, 0, 0.15, 0.45),),
    "5 angular": ((0.9, 0, 0.1, 0, 0.1, 0.45, 0.7, 0.45, 0.9, 0.6, 0.9, 0.85, 0.7, 1, 0.05, 1),),
    "6 straight": ((0.65, 0, 0.15, 0.6),),
    "7": ((0.05, 0, 0.95, 0, 0.4, 1),),
    "7 with a bar": ((0.05, 0, 0.95, 0, 0.4, 1), (0.3, 0.5, 0.9, 0.5)),
    "7 with a serif": ((0.05, 0.18, 0.05, 0, 0.9, 0, 0.5, 1),),
    "9 straight": ((0.88, 0.3, 0.85, 1),),
    "9 slanted": ((0.88, 0.3, 0.45, 1),),
}
ARCS: dict[str, tuple[Arc, ...]] = {
    "0 round": ((0.05, 0, 0.95, 1, 0, 360),),
    "0 narrow": ((0.22, 0, 0.78, 1, 0, 360),),
    "2 round": ((0.08, 0, 0.92, 0.6, 190, 380),),
    "3 round": ((0.1, 0, 0.85, 0.5, 200, 450), (0.05, 0.48, 0.95, 1, 270, 520)),
    "3 flat": ((0.05, 0.36, 0.92, 1, 265, 520),),
    "5 round": ((0.0, 0.38, 0.92, 1, 230, 510),),
    "6 round": ((0.1, 0.45, 0.9, 1, 0, 360), (0.1, 0, 1.2, 1.4, 180, 265)),
    "6 straight": ((0.12, 0.45, 0.88, 1, 0, 360),),
    "8 even": ((0.15, 0, 0.85, 0.5, 0, 360), (0.1, 0.5, 0.9, 1, 0, 360)),
    "8 small on large": ((0.25, 0, 0.75, 0.42, 0, 360), (0.05, 0.4, 0.95, 1, 0, 360)),
    "9 straight": ((0.12, 0, 0.88, 0.56, 0, 360),),
    "9 slanted": ((0.12, 0, 0.88, 0.56, 0, 360),),
    "9 round": ((0.1, 0, 0.9, 0.55, 0, 360), (-0.1, -0.3, 0.9, 1, 10, 100)),
}
SHAPES = tuple(sorted({*LINES, *ARCS}))


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a digit is drawn on and with: pixels, colours, and the box of the digit in parts of the shorter side."""

    name: str
    size: tuple[int, int]
    pen: int
    paper: Colour
    ink: Colour
    box: tuple[float, float, float, float]  # left, top, right, bottom within the central square
    turn: float = 0.0  # degrees
    shade: float = 0.0  # part of the light that is lost at the right edge
    grain: float = 0.0  # standard deviation of the noise, in grey levels

    @property
    def dark_ink(self) -> bool:
        return sum(self.ink) < sum(self.paper)


SHEETS = (
    Sheet("black pen on white", (200, 200), 12, WHITE, BLACK, (0.25, 0.15, 0.75, 0.85)),
    Sheet("thick marker on white", (200, 200), 25, WHITE, BLACK, (0.2, 0.15, 0.75, 0.85)),
    Sheet("thin pen on a large white sheet", (400, 400), 8, WHITE, BLACK, (0.25, 0.2, 0.7, 0.85)),
    Sheet("white brush on black", (300, 300), 20, BLACK, WHITE, (0.25, 0.15, 0.72, 0.85)),
    Sheet("thin chalk on a board", (400, 400), 10, (35, 60, 45), (225, 225, 215), (0.3, 0.2, 0.75, 0.8), -7, 0.2, 4),
    Sheet("like MNIST", (28, 28), 3, BLACK, WHITE, (0.22, 0.16, 0.75, 0.82)),
    Sheet("small black on white", (28, 28), 2, WHITE, BLACK, (0.22, 0.16, 0.75, 0.82)),
    Sheet("pencil on grey paper", (240, 240), 8, (190, 190, 185), (95, 95, 95), (0.3, 0.2, 0.75, 0.8), 6, 0, 5),
    Sheet("blue ink on yellowish paper", (320, 240), 9, (250, 244, 220), (30, 50, 170), (0.28, 0.15, 0.7, 0.85), 5),
    Sheet("red marker, portrait", (300, 400), 24, (240, 240, 240), (200, 30, 40), (0.2, 0.1, 0.75, 0.9), -5),
    Sheet("photo in uneven light", (400, 300), 14, (225, 222, 210), (60, 55, 60), (0.25, 0.2, 0.7, 0.85), 4, 0.4, 6),
    Sheet("high and to the left", (256, 256), 14, WHITE, BLACK, (0.1, 0.08, 0.55, 0.7)),
    Sheet("low and to the right, small", (256, 256), 10, BLACK, WHITE, (0.5, 0.42, 0.85, 0.92)),
    Sheet("wide", (200, 200), 14, WHITE, BLACK, (0.12, 0.2, 0.88, 0.85)),
    Sheet("narrow and white", (200, 200), 12, BLACK, WHITE, (0.35, 0.12, 0.68, 0.88), 8),
)


def draw(shape: str, sheet: Sheet) -> Image.Image:
    """The digit of that shape on that sheet, RGB."""
    random = np.random.default_rng([SHAPES.index(shape), SHEETS.index(sheet)])
    image = Image.new("RGB", sheet.size, sheet.paper)
    drawing = ImageDraw.Draw(image)
    width, height = sheet.size
    side = min(sheet.size)
    left, top, right, bottom = (
        place * side + beside + shake
        for place, beside, shake in zip(
            sheet.box, [(width - side) / 2, (height - side) / 2] * 2, random.normal(0, 0.015 * side, 4), strict=True
        )
    )
    for line in LINES.get(shape, ()):
        points = [
            (left + x * (right - left), top + y * (bottom - top)) for x, y in zip(line[::2], line[1::2], strict=True)
        ]
        drawing.line(points, fill=sheet.ink, width=sheet.pen, joint="curve")
    for x0, y0, x1, y1, start, end in ARCS.get(shape, ()):
        half = sheet.pen / 2  # Pillow draws within the box, a line around its points
        box = (
            left + x0 * (right - left) - half,
            top + y0 * (bottom - top) - half,
            left + x1 * (right - left) + half,
            top + y1 * (bottom - top) + half,
        )
        drawing.arc(box, start, end, fill=sheet.ink, width=sheet.pen)
    if sheet.turn:
        image = image.rotate(sheet.turn, Image.Resampling.BILINEAR, fillcolor=sheet.paper)
    if not (sheet.shade or sheet.grain):
        return image
    light = np.linspace(1, 1 - sheet.shade, width)[None, :, None]
    levels = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), dtype=float) * light
    noisy = levels + random.normal(0, sheet.grain, (height, width, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def files() -> Iterator[tuple[Sheet, str, bytes]]:
    """Each shape on each sheet as a file, PNG or for photos JPEG: the sheet, the digit and the bytes."""
    for sheet in SHEETS:
        for shape in SHAPES:
            file = io.BytesIO()
            draw(shape, sheet).save(file, "JPEG" if sheet.grain else "PNG")
            yield sheet, shape[0], file.getvalue()
