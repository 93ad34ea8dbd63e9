"""How cost grows with work: batch size, connections and image size, each measured and held to a rule."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.batches import SIZES, measure_batches
from benchmarks.figures import Curve, FigureTarget, falling, outgrowing
from benchmarks.load import LoadResult, PutLoad
from benchmarks.requests import bench_photo, resized_photo
from benchmarks.server_under_test import ServerUnderTest, photo_probe
from benchmarks.servers import ServerSpec
from loadgen.results import LoadLevel

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MEGAPIXELS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0)

KEPT = FigureTarget(at_least=0.85)
GROWTH = FigureTarget(at_most=1.5)

_ANSWERS = 3  # of each connection
_LONGEST_S = 20.0
_SLOWEST = 1.0  # requests per second
_SIZE_CONNECTIONS = 4


def batch_curve(model: str, artifacts: Path, seconds: float) -> Curve:
    """The engine alone. Raises ArtifactError and EngineUnavailableError."""
    rates = measure_batches(model, artifacts, SIZES, rounds=5, seconds=seconds / 6)
    points = tuple((float(size), rate) for size, rate in rates.items())
    return kept("batch", "engine alone over batch size", "images in a batch", "images/s", points)


def kept(name: str, title: str, across: str, up: str, points: tuple[tuple[float, float], ...]) -> Curve:
    """A curve of throughput, which must not fall."""
    rule = f"lowest of: throughput / best throughput at any smaller {across}"
    return Curve(name, title, across, up, points, rule, falling(points), KEPT)


def served_curves(
    spec: ServerSpec, folder: Path, put_load: PutLoad, rounds: int, seconds: float, tell: Callable[[str], None]
) -> list[Curve]:
    """The curves over connections and over image sizes, on one server. Raises ServerError and LoadTestError."""
    photo = bench_photo()
    with ServerUnderTest(spec, folder, photo_probe(spec, photo)) as server:
        server.settle()
        rate = put_load(server, photo, LoadLevel(connections=16), seconds).per_second

        def loaded(photo: bytes, connections: int) -> LoadResult:
            """Load the server until each connection has a few answers, by the rate of the load before."""
            nonlocal rate
            load_s = min(_LONGEST_S, max(seconds, _ANSWERS * connections / rate))
            result = put_load(server, photo, LoadLevel(connections=connections), load_s)
            rate = max(result.per_second, _SLOWEST)
            return result

        def throughput(connections: float) -> float:
            result = loaded(photo, int(connections))
            return result.per_second if not result.errors else 0.0

        def cost(megapixels: float) -> float:
            return loaded(photos[megapixels], _SIZE_CONNECTIONS).cpu_ms

        connections = measured_points(CONNECTIONS, rounds, throughput)
        tell("measured over connections")
        photos = {size: resized_photo(size) for size in MEGAPIXELS}
        sizes = measured_points(MEGAPIXELS, rounds, cost)
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


def measured_points(
    places: Sequence[float], rounds: int, figure: Callable[[float], float]
) -> tuple[tuple[float, float], ...]:
    """Measure a figure at each place, in rounds that go up and down in turn; return the medians."""
    found: dict[float, list[float]] = {place: [] for place in places}
    for number in range(rounds):
        for place in places if number % 2 == 0 else reversed(places):
            found[place].append(figure(place))
    return tuple((place, statistics.median(values)) for place, values in found.items())
