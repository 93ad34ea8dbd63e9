"""The tables, the progress and the charts of `topfive bench`."""

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from loadgen import plot
from loadgen.display import print_results, progress_display, sparkline
from loadgen.images import read_images
from loadgen.measurement import LoadProgress
from loadgen.plot import ChartError, line_chart
from loadgen.report import LoadReport, as_html
from loadgen.results import LatencySummary, LevelResult, LoadLevel, SizeGroup, Window

GOOD = LevelResult(
    connections=1,
    rate=None,
    seconds=10,
    requests=500,
    requests_per_second=50,
    latency_ms=LatencySummary(mean=20, p50=20, p90=21, p95=22, p99=23, max=24),
    errors={},
    error_examples={},
    unanswered=0,
    stable=True,
    valid=True,
    notes=(),
    windows=(),
    groups=(),
    server_ms=None,
    bytes_sent=1,
    bytes_received=1,
    reconnects=0,
    late_ms=None,
    cpu_s=0.1,
)
FAST = replace(
    GOOD,
    connections=64,
    requests_per_second=90,
    latency_ms=LatencySummary(mean=700, p50=690, p90=800, p95=900, p99=1000, max=1100),
    valid=False,
    notes=("a <doubt>",),
)
SILENT = replace(
    GOOD, connections=128, requests=0, requests_per_second=0, latency_ms=LatencySummary(), errors={"timeout": 128},
    error_examples={"timeout": ""},
)  # fmt: skip


def page(*results: LevelResult, url: str = "http://host:1") -> tuple[str, ElementTree.Element | None]:
    """The page, and its chart if it has one; the chart must be well-formed."""
    html = as_html(LoadReport("0.1.0", "raw", (url,), "", tuple(read_images([])), 0, results))
    found = re.search(r"<svg.*</svg>", html, re.DOTALL)
    return html, ElementTree.fromstring(found[0]) if found else None


def markers(chart: ElementTree.Element) -> list[list[tuple[float, float, str]]]:
    """Place and fill of the points of each curve, in order."""
    groups = [group for group in chart.iter() if group.get("id", "").startswith("PathCollection")]
    curves = []
    for group in groups:
        uses = [one for one in group.iter() if one.tag.endswith("use")]
        fills = [re.search("fill: (#[0-9a-f]*)", one.attrib["style"]) for one in uses]
        curves.append(
            [
                (float(one.attrib["x"]), float(one.attrib["y"]), fill[1])
                for one, fill in zip(uses, fills, strict=True)
                if fill
            ]
        )
    return curves


def test_page() -> None:
    """The chart has throughput to the right and latency upwards; loads have labels, invalid points are hollow."""
    html, chart = page(GOOD, FAST, SILENT)

    assert chart is not None
    curves = markers(chart)
    assert [len(curve) for curve in curves] == [2, 2, 2]
    for (x, y, fill), (right, above, hollow) in curves:
        assert right > x
        assert above < y
        assert hollow == "#ffffff" != fill
    assert curves[2][1][1] < curves[0][1][1]  # p99 is above p50
    texts = {one.text for one in chart.iter() if one.tag.endswith("text")}
    assert {"1", "64", "p50", "p90", "p99", "ms"} <= texts
    assert "a &lt;doubt&gt;" in html
    assert set(re.findall(r"https?://[^\s\"'<,]*", html)) == {
        "http://host:1",
        "http://www.w3.org/1999/xlink",  # names, which nothing loads
        "http://www.w3.org/2000/svg",
    }


def test_nothing_to_draw() -> None:
    """Without a good response the page has the table and no chart."""
    html, chart = page(SILENT, url="http://<b>")

    assert chart is None
    assert "<td>128</td>" in html
    assert "http://&lt;b&gt;" in html


def test_chart() -> None:
    """Linear axes begin at 0; the same chart is the same text."""

    def draw() -> str:
        points = [(1, 20.0), (2, 40.0), (4, 40.0)]
        return line_chart({"a": points}, title="t", x_label="images", y_label="images/s")

    chart = ElementTree.fromstring(draw())

    (one, two, four), *_ = markers(chart)
    assert 2 * (two[0] - one[0]) == pytest.approx(four[0] - two[0])
    texts = {text.text for text in chart.iter() if text.tag.endswith("text")}
    assert {"t", "images", "images/s", "0"} <= texts
    assert draw() == draw()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib an error names the extra to install."""
    monkeypatch.setattr(plot, "find_spec", lambda _name: None)

    with pytest.raises(ChartError, match=re.escape("pip install '.[bench]'")):
        page(GOOD)


def printed(*results: LevelResult) -> str:
    """The table of these results."""
    file = io.StringIO()
    print_results(Console(file=file, width=100), results)
    return file.getvalue()


def test_table() -> None:
    """Each load has its row; below the table are its notes, its errors with an example, and its images by size."""
    groups = (
        SizeGroup("below 0.1 MP", 1, 5, LatencySummary(1, 2, 3, 4, 5, 6)),
        SizeGroup("0.1 to 0.3 MP", 1, 0, LatencySummary()),
    )
    failing = replace(FAST, errors={"status 503": 7}, error_examples={"status 503": "full"}, groups=groups)

    text = printed(GOOD, failing)

    rows = {cells[0]: cells for line in text.splitlines() if len(cells := line.split()) == 8 and cells[0].isdecimal()}
    assert rows["1"][1:] == ["50.0", "20.00", "20.00", "21.00", "23.00", "24.00", "0"]
    assert rows["64"][-1] == "7"
    assert "64: a <doubt>" in text
    assert "64: 7 x status 503: full" in text
    assert "64: images below 0.1 MP: 5 answers, p50 2.00 p99 5.00 ms" in text
    assert "64: images 0.1 to 0.3 MP: 0 answers, no answer" in text


def progress(elapsed_s: float) -> LoadProgress:
    """A measurement so long after its start."""
    return LoadProgress(
        LoadLevel(connections=2), elapsed_s < 2, elapsed_s, Window(1, 50, 50, GOOD.latency_ms), failed=3, in_flight=2
    )


def test_plain_progress() -> None:
    """Without a terminal a line follows every five seconds of each load."""
    file = io.StringIO()
    with progress_display(Console(file=file, width=100)) as show:
        for elapsed in (*range(12), *range(6)):
            show(progress(elapsed))

    text = "2 connections, {} s: 50.0/s, p50 20.0 p99 23.0 ms, 3 errors, 2 open"
    assert file.getvalue().splitlines() == [text.format(5), text.format(10), text.format(5)]


def test_live_progress() -> None:
    """In a terminal one line changes, gains a bar each time, and disappears at the end.

    80 columns do not cut off the errors and open requests of a busy load.
    """
    latency = LatencySummary(30.0, 128.8, 340.1, 350.2, 353.3, 400.0)
    file = io.StringIO()
    with progress_display(Console(file=file, width=80, force_terminal=True, color_system=None)) as show:
        show(progress(1))
        show(progress(3))
        show(LoadProgress(LoadLevel(connections=64), False, 12, Window(1, 2094, 2093.8, latency), 17, 64))

    assert "warm-up 1 s" in file.getvalue()
    assert "connections, 3 s: 50.0/s" in file.getvalue()
    assert "██" in file.getvalue()
    assert file.getvalue().endswith("\x1b[1A\x1b[2K")
    assert "64 connections, 12 s: 2093.8/s, p50 128.8 p99 353.3 ms, 17 errors, 64 open" in file.getvalue()


def test_sparkline() -> None:
    """A bar for each value, as high as its share of the largest."""
    assert sparkline([0, 1, 4, 8]) == "▁▂▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
