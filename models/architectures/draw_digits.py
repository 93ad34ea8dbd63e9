"""Draws digits as a pen does, in many hands, pens, papers and lights: training data of LeNet-5."""

import math

import numpy as np
from PIL import Image, ImageDraw

Images = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Points = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

# A line per style. Each word is a stroke: `~` a smooth curve and `-` straight lines, through points of two figures, the
# column and the row on a grid of 0 to 9. A curve that ends where it begins is closed.
_STYLES = """
0 ~50,11,05,18,49,78,95,81,50
0 ~50,20,14,15,29,59,86,84,50
0 -60,30,12,07,29,69,97,92,60
0 ~60,21,05,28,59,87,94,82,51,33
1 -50,59
1 -23,50,59
1 -32,50,59 -29,89
1 -14,50,59
1 ~24,41,50 -50,59
1 -14,50,59 -19,99
2 ~12,30,70,83,65,28 -28,09,99
2 ~02,20,60,83,56,09 -09,99
2 ~12,30,70,83,65,38,19,07,27,58,99
2 ~22,40,80,84,46,19,28,69,98
2 -11,30,70,92,93,09,99
3 ~11,40,80,92,64,44 ~44,75,97,79,39,08
3 ~02,30,70,83,54,34 ~34,74,96,88,49,18,07
3 -00,90,44 ~44,74,97,79,39,08
3 ~11,50,82,54,96,79,39,08
3 -00,90,93,44,94,99,09
4 -60,06,96 -60,69
4 -10,05,95 -60,69
4 -20,15,85 -73,79
4 -10,04,84 -80,89
4 ~30,13,05,36,95 -70,69
4 -70,05,95 -72,79
5 -80,20,14 ~14,44,84,97,69,29,08
5 -90,10,04 ~04,33,73,96,88,49,18,07
5 -10,15 ~15,53,86,78,49,08 -10,90
5 -90,00,04,84,95,98,79,09
5 ~90,30,13,54,86,78,39,08
6 ~70,32,15,17,39,79,97,85,45,17
6 ~80,40,13,06,19,59,98,95,64,24,06
6 -70,15 ~15,09,59,97,75,34,06
6 ~50,22,06,29,69,87,65,35,07
6 ~92,70,30,04,07,39,79,97,75,35,06
7 -00,90,39
7 -00,90,39 -24,84
7 -02,00,90,49
7 ~01,40,90 ~90,64,49
7 ~00,50,90,65,49 -35,85
7 -10,80,69
8 ~50,11,13,44,75,97,59,28,06,34,73,82,50
8 ~82,50,11,23,65,87,59,18,16,64,82
8 ~50,21,12,34,54,72,81,50 ~44,15,07,29,69,97,85,54,44
8 ~50,11,13,54,83,81,50 ~54,16,18,59,88,86,54
8 ~81,30,12,54,97,59,17,45,91
9 ~82,50,11,03,35,64,82 ~82,85,69
9 ~82,50,11,03,35,64,82 -82,89
9 ~90,40,02,15,55,83,90 -90,79
9 ~82,50,11,03,35,64,82 ~82,85,78,49,18
9 ~81,40,02,04,35,64,81 ~81,76,39
9 ~50,11,14,45,84,81,50 -83,49
"""

_SIZES = (28, 40, 64, 112, 200)  # pixels of the drawings, from MNIST's to a paint program's, before they are resized
_STEPS = np.linspace(0, 1, 6, endpoint=False)[:, None]  # along each part of a curve


def _read_stroke(word: str) -> tuple[bool, Points]:
    points = [[int(figure) / 9 for figure in pair] for pair in word[1:].split(",")]
    return word[0] == "~", np.array(points)


def _read_styles() -> list[list[list[tuple[bool, Points]]]]:
    digits: list[list[list[tuple[bool, Points]]]] = [[] for _ in range(10)]
    for line in filter(None, _STYLES.split("\n")):
        digit, *words = line.split(" ")
        digits[int(digit)].append([_read_stroke(word) for word in words])
    return digits


STYLES = _read_styles()
"""The styles of each digit, lists of strokes: whether it is a curve, and its points, float64 [N, 2] in 0 to 1."""


def draw(digit: int, random: np.random.Generator, side: int) -> Images:
    """The digit in a random hand and pen, white on black, uint8 [side, side]."""
    size = _SIZES[random.integers(len(_SIZES))]
    lines = [line * size for line in _strokes(digit, random)]
    height = np.ptp(np.vstack(lines), axis=0).max()
    width = max(1, round(min(size * math.exp(random.uniform(math.log(0.018), math.log(0.14))), 0.2 * height)))
    image = Image.new("L", (size, size))
    pen = ImageDraw.Draw(image)
    round_ends = random.random() < 0.7
    for line in lines:
        pen.line(line.flatten().tolist(), fill=255, width=width, joint="curve")
        for end in (line[0], line[-1]) if round_ends else ():
            pen.circle(end.tolist(), (width - 1) / 2, fill=255)
    pixels: Images = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    return pixels


def photograph(ink: Images, random: np.random.Generator) -> Images:
    """The ink, 0 to 255, of a random shade on paper of another, in uneven light and with noise; half are dark on light.

    The shape stays.
    """
    paper, shade = random.uniform(0, 90), random.uniform(150, 255)
    if random.random() < 0.5:
        paper, shade = 255 - paper, 255 - shade
    down, across = np.indices(ink.shape) / ink.shape[0] - 0.5
    slope = random.normal(0, 25, 2) if random.random() < 0.5 else (0, 0)
    noise = random.normal(0, random.uniform(0, 10), ink.shape)
    levels: Points = paper + (shade - paper) * (ink / 255) + across * slope[0] + down * slope[1] + noise
    return np.clip(levels, 0, 255).astype(np.uint8)


def _strokes(digit: int, random: np.random.Generator) -> list[Points]:
    """The lines of a random style of the digit: shaken, slanted, turned, and placed in a square of side 1."""
    style = STYLES[digit][random.integers(len(STYLES[digit]))]
    shake = random.uniform(0, 0.05)
    aspect, slant, angle = random.uniform(0.45, 0.95), random.normal(0, 0.15), random.normal(0, 0.1)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    hand = np.array([[aspect, 0], [-slant, 1]]) @ turn
    lines = []
    for curved, points in style:
        shaken = points + random.normal(0, shake, points.shape)
        if np.array_equal(points[0], points[-1]):
            shaken[-1] = shaken[0]
        lines.append((_smooth(shaken) if curved else shaken) @ hand)
    ink = np.vstack(lines)
    scale = random.uniform(0.38, 0.92) / np.ptp(ink, axis=0).max()
    place = (1 - np.ptp(ink, axis=0) * scale) * random.beta(2.5, 2.5, 2)
    return [(line - ink.min(axis=0)) * scale + place for line in lines]


def _smooth(points: Points) -> Points:
    """Points of the Catmull-Rom spline through `points` [N, 2]."""
    closed = np.array_equal(points[0], points[-1])
    before, after = (points[-2], points[1]) if closed else (points[0], points[-1])
    a, b, c, d = (np.vstack([before, points, after])[start : start + len(points) - 1, None] for start in range(4))
    curve = b + 0.5 * _STEPS * (c - a + _STEPS * (2 * a - 5 * b + 4 * c - d + _STEPS * (3 * (b - c) + d - a)))
    return np.vstack([curve.reshape(-1, 2), points[-1:]])
