"""A sweep as a picture: latency over throughput, in one HTML file that needs nothing else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from loadgen.measurement import Load
from loadgen.report import Report
from loadgen.results import Point

_WIDTH, _HEIGHT = 860, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 70, 24, 56
_SERIES = ("p50", "p90", "p99")
_TICKS = 6
_WIDE = 12.0  # of the largest latency to the smallest: from there the axis is logarithmic

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #d9dde3; --paper: #ffffff; --quiet: #59636e;
  --p50: #0a7f5a; --p90: #2563c9; --p99: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #30363d; --paper: #0d1117; --quiet: #9198a1;
  --p50: #3fb98a; --p90: #79a8ff; --p99: #ff9a5c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 900px; padding: 0 1rem; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; }
p { color: var(--quiet); margin: .25rem 0 1rem; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } svg text { fill: var(--quiet); font-size: 13px; }
svg text.load { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.grid { stroke: var(--faint); } .axis { stroke: var(--quiet); }
.p50 { stroke: var(--p50); } .p90 { stroke: var(--p90); } .p99 { stroke: var(--p99); }
polyline { fill: none; stroke-width: 2; } circle { fill: var(--paper); stroke-width: 2; }
circle.valid.p50 { fill: var(--p50); } circle.valid.p90 { fill: var(--p90); } circle.valid.p99 { fill: var(--p99); }
svg text.p50 { fill: var(--p50); stroke: none; } svg text.p90 { fill: var(--p90); stroke: none; }
svg text.p99 { fill: var(--p99); stroke: none; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--faint); }
th { font-weight: 600; } td:last-child, th:last-child { text-align: left; }
"""


@dataclass(frozen=True, slots=True)
class Axis:
    """Values on a line of so many pixels: `low` and `high` at its ends, `ticks` between them."""

    low: float
    high: float
    ticks: tuple[float, ...]
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Its pixel."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def as_html(report: Report) -> str:
    """The page: a curve for each percentile with its points in the order of the loads, and all figures below."""
    shown = [point for point in report.points if point.latency_ms.p50 is not None]
    title = f"{report.model or report.api} at {', '.join(report.urls)}"
    hollow = "A hollow point is not valid: its note says why."
    images = f"{len(report.photos)} image{'s' if len(report.photos) > 1 else ''}"
    chart = _chart(shown) if shown else "<p>No load had a good answer.</p>"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{escape(title)}</h1>\n<p>API {escape(report.api)}, {images}, seed {report.seed}, "
        f"topfive bench {escape(report.version)}. {hollow}</p>\n{chart}\n"
        f"{_table(report.points)}\n</body>\n</html>\n"
    )


def _chart(points: Sequence[Point]) -> str:
    latencies = [_milliseconds(point, name) for point in points for name in _SERIES]
    across = _linear(max(point.requests_per_second for point in points), _LEFT, _WIDTH - _RIGHT)
    wide = max(latencies) > _WIDE * min(latencies) > 0
    scale = _decades(min(latencies), max(latencies)) if wide else _linear(max(latencies), _HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(across, scale)]
    for name in _SERIES:
        spots = [
            (across.place(point.requests_per_second), scale.place(_milliseconds(point, name)), point)
            for point in points
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in spots)
        parts.append(f'<polyline class="{name}" points="{line}"/>')
        for x, y, point in spots:
            parts.append(
                f'<circle class="{name}{" valid" if point.valid else ""}" cx="{x:.1f}" cy="{y:.1f}" r="5">'
                f"<title>{escape(_told(point, name))}</title></circle>"
            )
    parts += _labels(points, across, scale)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Latency over throughput">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _frame(across: Axis, scale: Axis) -> list[str]:
    """Grid, ticks and the names of the axes."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in scale.ticks:
        y = scale.place(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in across.ticks:
        x = across.place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 12}" text-anchor="middle">good answers per second</text>')
    parts.append(f'<text x="{_LEFT - 8}" y="{_TOP - 8}" text-anchor="end">ms</text>')
    return parts


def _labels(points: Sequence[Point], across: Axis, scale: Axis) -> list[str]:
    """The name of each curve at its last point, and each load at the highest curve's points."""
    last = points[-1]
    x = across.place(last.requests_per_second) + 12
    spots = {name: scale.place(_milliseconds(last, name)) for name in _SERIES}
    parts, above = [], math.inf
    for name in _SERIES:  # from the lowest curve up, each clear of the one below
        above = min(spots[name], above - 15)
        parts.append(f'<text class="{name}" x="{x:.1f}" y="{above + 4:.1f}">{name}</text>')
    taken: list[tuple[float, float]] = []
    for point in points:
        x, y = across.place(point.requests_per_second), scale.place(_milliseconds(point, _SERIES[-1])) - 11
        if all(abs(x - there) > 26 or abs(y - high) > 14 for there, high in taken):
            taken.append((x, y))
            load = f"{point.rate:g}/s" if point.rate is not None else f"{point.connections}"
            parts.append(f'<text class="load" x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{load}</text>')
    return parts


def _linear(largest: float, start: float, end: float) -> Axis:
    """From 0 to a round number."""
    rough = (largest or 1.0) / _TICKS
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(size * magnitude for size in (1, 2, 5, 10) if size * magnitude >= rough)
    count = math.ceil((largest or 1.0) / step)
    return Axis(0, count * step, tuple(number * step for number in range(count + 1)), start, end)


def _decades(smallest: float, largest: float) -> Axis:
    """From one of 1, 2, 5 times a power of ten to another."""
    exponents = range(math.floor(math.log10(smallest)), math.ceil(math.log10(largest)) + 1)
    steps = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    low = max(step for step in steps if step <= smallest)
    high = min(step for step in steps if step >= largest)
    ticks = tuple(step for step in steps if low <= step <= high)
    return Axis(low, high, ticks, _HEIGHT - _BOTTOM, _TOP, logarithmic=True)


def _table(points: Sequence[Point]) -> str:
    rated = any(point.rate is not None for point in points)
    heads = (
        "requests/s" if rated else "connections",
        "answers/s",
        "p50 ms",
        "p90 ms",
        "p95 ms",
        "p99 ms",
        "errors",
        "",
    )
    rows = []
    for point in points:
        load = f"{point.rate:g}" if point.rate is not None else f"{point.connections}"
        times = [getattr(point.latency_ms, name) for name in ("p50", "p90", "p95", "p99")]
        cells = [load, f"{point.requests_per_second:.1f}", *("-" if one is None else f"{one:.2f}" for one in times)]
        cells += [str(point.failed), "; ".join(point.notes)]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>\n' + "\n".join(rows) + "\n</table></div>"


def _milliseconds(point: Point, name: str) -> float:
    value = getattr(point.latency_ms, name)
    return float(value) if value is not None else 0.0


def _told(point: Point, name: str) -> str:
    load = Load(point.connections, point.rate)
    doubts = "".join(f"; {note}" for note in point.notes)
    return f"{load}: {point.requests_per_second:.1f} answers/s, {name} {_milliseconds(point, name):.2f} ms{doubts}"
