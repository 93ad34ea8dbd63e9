"""A curve as an SVG picture: axes, ticks, a line and its points."""

import math
from xml.sax.saxutils import escape

from benchmarks.figures import Curve

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 50
_INK, _LINE, _GRID = "#333333", "#1f6feb", "#dddddd"


def svg(curve: Curve) -> str:
    """The picture; what grows is on a logarithmic axis, figures on a linear one from 0."""
    lowest, highest = curve.points[0][0], curve.points[-1][0]
    top = _round_up(max(value for _, value in curve.points))

    def x(work: float) -> float:
        share = math.log(work / lowest) / math.log(highest / lowest) if highest > lowest else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{_INK}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">{escape(curve.title)} ({escape(curve.up)})</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 12}" text-anchor="end">{escape(curve.across)}</text>',
    ]
    for step in range(5):
        value = top * step / 4
        parts += [
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{_GRID}"/>',
            f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>',
        ]
    path = " ".join(f"{x(work):.1f},{y(value):.1f}" for work, value in curve.points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{_LINE}" stroke-width="2"/>')
    for work, value in curve.points:
        parts += [
            f'<circle cx="{x(work):.1f}" cy="{y(value):.1f}" r="3.5" fill="{_LINE}">'
            f"<title>{work:g}: {value:.4g}</title></circle>",
            f'<text x="{x(work):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{work:g}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8 times a power of ten, which four steps divide evenly enough to read."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)
