"""How cost grows with work: batch size, connections and image size, each measured and held to a rule."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.asking import bench_photo, resized_photo
from benchmarks.figures import Bound, Curve, Target, falling, outgrowing
from benchmarks.load import Drive, Load, Point
from benchmarks.server import Place, running
from benchmarks.subjects import ROOT, Subject

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MEGAPIXELS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0)

KEPT = Target(Bound.AT_LEAST, 0.85)
GROWTH = Target(Bound.AT_MOST, 1.5)

_FALLING = "lowest of: throughput / best throughput at any smaller {}"
_BATCHES_TIMEOUT_S = 300
_ANSWERS = 3  # of each connection
_LONGEST_S = 20.0
_SLOWEST = 1.0
_AT_ONCE = 4  # connections while the size of images grows


def batches(model: str, artifacts: Path, seconds: float) -> Curve:
    """The engine alone, in a process of its own. Raises CalledProcessError and TimeoutExpired."""
    command = [sys.executable, "-m", "benchmarks.batches", "--model", model, "--artifacts", str(artifacts)]
    command += ["--seconds", str(seconds / 6)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=_BATCHES_TIMEOUT_S)
    points = tuple((float(size), rate) for size, rate in json.loads(done.stdout).items())
    return kept("batch", "engine alone over batch size", "images in a batch", "images/s", points)


def together(figures: Mapping[str, float]) -> list[Curve]:
    """Over the number of loaded models, of what `benchmarks.models` gave; nothing where it gave nothing."""
    found = {name: value for name, value in figures.items() if name.startswith("models=") and name.endswith(".ratio")}
    points = tuple(sorted((float(name[len("models=") : -len(".ratio")]), value) for name, value in found.items()))
    if not points:
        return []
    title, up = "throughput over loaded models", "mixed / one after the other"
    rule = "lowest of: requests/s of models mixed / one after the other"
    return [Curve("models", title, "models", up, points, rule, min(value for _, value in points), KEPT)]


def kept(name: str, title: str, across: str, up: str, points: tuple[tuple[float, float], ...]) -> Curve:
    """A curve of throughput, which must not fall."""
    return Curve(name, title, across, up, points, _FALLING.format(across), falling(points), KEPT)


def served(
    subject: Subject, place: Place, drive: Drive, rounds: int, seconds: float, tell: Callable[[str], None]
) -> list[Curve]:
    """Over connections and over image sizes, on one server, in rounds of turning order."""
    with running(subject, place, bench_photo()) as server:
        rate = drive(server, [bench_photo()], Load(seconds)).per_second

        def driven(photo: bytes, connections: int) -> Point:
            """So long that each connection has a few answers, by the rate of the load before."""
            nonlocal rate
            lasting = min(_LONGEST_S, max(seconds, _ANSWERS * connections / rate))
            point = drive(server, [photo], Load(lasting, connections))
            rate = max(point.per_second, _SLOWEST)
            return point

        def throughput(connections: float) -> float:
            point = driven(bench_photo(), int(connections))
            return point.per_second if not point.errors else 0.0

        def cost(megapixels: float) -> float:
            return driven(photos[megapixels], _AT_ONCE).cpu_ms

        connections = turns(CONNECTIONS, rounds, throughput)
        tell("measured over connections")
        photos = {size: resized_photo(size) for size in MEGAPIXELS}
        sizes = turns(MEGAPIXELS, rounds, cost)
        tell("measured over image sizes")
    return [
        kept("connections", "requests over connections", "connections", "requests/s", connections),
        Curve(
            "size",
            "CPU time over image size",
            "megapixels",
            "ms of CPU per request",
            sizes,
            "highest of: growth of the cost / growth of the pixels, from a size to the next",
            outgrowing(sizes),
            GROWTH,
        ),
    ]


def turns(places: Sequence[float], rounds: int, figure: Callable[[float], float]) -> tuple[tuple[float, float], ...]:
    """The median figure at each place, over rounds that go up and down in turn."""
    found: dict[float, list[float]] = {place: [] for place in places}
    for number in range(rounds):
        for place in places if number % 2 == 0 else reversed(places):
            found[place].append(figure(place))
    return tuple((place, statistics.median(values)) for place, values in found.items())
