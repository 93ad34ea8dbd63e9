"""Line charts as SVG, drawn by matplotlib."""

import io
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import Literal

Scale = Literal["linear", "log"]

_INCHES = (8.6, 4.6)


class ChartError(Exception):
    """No chart can be drawn; the message says what to install."""


def check_charts() -> None:
    """Raises ChartError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise ChartError("charts need matplotlib; run: pip install '.[bench]'")


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_scale: Scale = "linear",
    point_labels: Sequence[str] = (),
    hollow: Collection[int] = (),
) -> str:
    """A curve through the points (x, y) of each series, as an `<svg>` element.

    Linear axes begin at 0. `point_labels` stand at the points of the
    last series. `hollow` are the indices of points that are drawn as circles. Raises ChartError.
    """
    check_charts()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "topfive"}):  # text as text, and the same file each time
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, yscale=y_scale)
        for name, points in series.items():
            xs, ys = zip(*points, strict=True)
            (line,) = axes.plot(xs, ys, label=name)
            color = line.get_color()
            fills = ["white" if index in hollow else color for index in range(len(points))]
            axes.scatter(xs, ys, s=36, c=fills, edgecolors=color, zorder=3)
        for label, point in zip(point_labels, points, strict=True) if point_labels else ():
            axes.annotate(label, point, xytext=(-7, 4), textcoords="offset points", ha="right")
        axes.set_xlim(left=0)
        if y_scale == "linear":
            axes.set_ylim(bottom=0)
        else:
            axes.yaxis.set_major_formatter("{x:g}")
        if len(series) > 1:
            axes.legend()
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
