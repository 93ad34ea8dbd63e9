"""What `topfive bench` shows and draws."""

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from loadgen.display import show, sparkline, watched
from loadgen.images import read
from loadgen.measurement import Load, Progress
from loadgen.plot import as_html
from loadgen.report import Report
from loadgen.results import Group, Latency, Point, Window

GOOD = Point(
    connections=1,
    rate=None,
    seconds=10,
    requests=500,
    requests_per_second=50,
    latency_ms=Latency(mean=20, p50=20, p90=21, p95=22, p99=23, max=24),
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
    latency_ms=Latency(mean=700, p50=690, p90=800, p95=900, p99=1000, max=1100),
    valid=False,
    notes=("a <doubt>",),
)
SILENT = replace(
    GOOD, connections=128, requests=0, requests_per_second=0, latency_ms=Latency(), errors={"timeout": 128},
    error_examples={"timeout": ""},
)  # fmt: skip


def page(*points: Point, url: str = "http://host:1") -> tuple[str, ElementTree.Element | None]:
    """The page, and its picture if it has one; the picture must be well-formed."""
    html = as_html(Report("0.1.0", "raw", (url,), "", tuple(read([])), 0, points))
    found = re.search(r"<svg.*</svg>", html, re.DOTALL)
    return html, ElementTree.fromstring(found[0]) if found else None


def circles(picture: ElementTree.Element, name: str) -> list[tuple[float, float]]:
    """The points of a curve, in order."""
    found = [one for one in picture.iter("circle") if name in one.attrib["class"].split()]
    return [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in found]


def test_curves() -> None:
    """More throughput lies to the right, more latency above; each point says its load, and what is not valid shows."""
    html, picture = page(GOOD, FAST, SILENT)

    assert picture is not None
    for name in ("p50", "p90", "p99"):
        (x, y), (right, above) = circles(picture, name)
        assert right > x
        assert above < y
    (_, low), (_, high) = circles(picture, "p50")[0], circles(picture, "p99")[0]
    assert high < low
    titles = [one.text for one in picture.iter("title")]
    assert "1 connection: 50.0 answers/s, p50 20.00 ms" in titles
    assert "64 connections: 90.0 answers/s, p99 1000.00 ms; a <doubt>" in titles
    assert sum("valid" in one.attrib["class"] for one in picture.iter("circle")) == 3
    assert "a &lt;doubt&gt;" in html
    assert "http" not in re.sub(r"http://host:1", "", html)  # it loads nothing


def test_on_a_linear_axis() -> None:
    """Latencies of about the same size stand on an axis from 0, in proportion."""
    slower = replace(GOOD, requests_per_second=60, latency_ms=replace(GOOD.latency_ms, p50=40, p90=41, p99=42))

    _, picture = page(GOOD, slower)

    assert picture is not None
    zero = max(float(one.attrib["y1"]) for one in picture.iter("line"))
    (_, twenty), (_, forty) = circles(picture, "p50")
    assert zero - forty == pytest.approx(2 * (zero - twenty), abs=0.2)


def test_nothing_to_draw() -> None:
    """Without any good answer there is no picture, but the table."""
    html, picture = page(SILENT, url="http://<b>")

    assert picture is None
    assert "<td>128</td>" in html
    assert "http://&lt;b&gt;" in html


def shown(*points: Point) -> str:
    """The table of those points."""
    file = io.StringIO()
    show(Console(file=file, width=100), points)
    return file.getvalue()


def test_table() -> None:
    """Each load has its row, below it its notes, its errors with what was said, and the sizes of its images."""
    groups = (Group("below 0.1 MP", 1, 5, Latency(1, 2, 3, 4, 5, 6)), Group("0.1 to 0.3 MP", 1, 0, Latency()))
    failing = replace(FAST, errors={"status 503": 7}, error_examples={"status 503": "full"}, groups=groups)

    text = shown(GOOD, failing)

    rows = {cells[0]: cells for line in text.splitlines() if len(cells := line.split()) == 8 and cells[0].isdecimal()}
    assert rows["1"][1:] == ["50.0", "20.00", "20.00", "21.00", "23.00", "24.00", "0"]
    assert rows["64"][-1] == "7"
    assert "64: a <doubt>" in text
    assert "64: 7 x status 503: full" in text
    assert "64: images below 0.1 MP: 5 answers, p50 2.00 p99 5.00 ms" in text
    assert "64: images 0.1 to 0.3 MP: 0 answers, no answer" in text


def progress(elapsed_s: float) -> Progress:
    """A measurement so long after its start."""
    return Progress(Load(connections=2), elapsed_s < 2, elapsed_s, Window(1, 50, 50, GOOD.latency_ms), 3, 2)


def test_plain_lines() -> None:
    """Where the output is no terminal a line comes every five seconds, of each load anew."""
    file = io.StringIO()
    with watched(Console(file=file, width=100)) as watch:
        for elapsed in (*range(12), *range(6)):
            watch(progress(elapsed))

    said = "2 connections, {} s: 50.0/s, p50 20.0 p99 23.0 ms, 3 errors, 2 open"
    assert file.getvalue().splitlines() == [said.format(5), said.format(10), said.format(5)]


def test_live_line() -> None:
    """In a terminal one line lives, with a bar for each look, and is gone at the end."""
    file = io.StringIO()
    with watched(Console(file=file, width=120, force_terminal=True, color_system=None)) as watch:
        watch(progress(1))
        watch(progress(3))

    assert "warm-up 1 s" in file.getvalue()
    assert "connections, 3 s: 50.0/s" in file.getvalue()
    assert "██" in file.getvalue()
    assert file.getvalue().endswith("\x1b[1A\x1b[2K")


def test_the_live_line_fits_a_terminal() -> None:
    """At 80 columns errors and open requests of a busy load are to be seen, not cut off."""
    latency = Latency(30.0, 128.8, 340.1, 350.2, 353.3, 400.0)
    file = io.StringIO()
    with watched(Console(file=file, width=80, force_terminal=True, color_system=None)) as watch:
        watch(Progress(Load(connections=64), False, 12, Window(1, 2094, 2093.8, latency), 17, 64))

    assert "64 connections, 12 s: 2093.8/s, p50 128.8 p99 353.3 ms, 17 errors, 64 open" in file.getvalue()


def test_sparkline() -> None:
    """A bar for each value, as high as its share of the largest."""
    assert sparkline([0, 1, 4, 8]) == "▁▂▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
