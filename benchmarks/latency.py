"""Latency at one connection beside decoding and inference alone: `python -m benchmarks.latency`.

The server runs in a process of its own. Just before and just after each load this process decodes and infers the same
photo in a loop, with the same engine. A loop of the same length that only counts shows the noise of the machine.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.load import put_load
from benchmarks.report import BenchmarkReport, Measurement, ReportRow, page, spread
from benchmarks.requests import bench_photo
from benchmarks.server_under_test import ServerUnderTest
from benchmarks.servers import ours
from loadgen.measurement import LoadLevel
from models.artifact.artifact import load
from service.common.cpus import cpu_quota
from service.common.types import Decode, ImageLimits
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions
from service.preprocessing.decode import decode_image
from service.preprocessing.transforms import make_samples, needed_side

_MOST_MS = 1.0  # above decoding and inference
_PERCENTILES = (50, 99)

Percentiles = tuple[float, float]
"""The 50th and the 99th of some durations, in milliseconds."""


@dataclass(frozen=True, slots=True)
class LatencyRound:
    """Decoding and inference alone just before and just after the load, the load, and the loop that only counts."""

    before: Percentiles
    served: Percentiles
    after: Percentiles
    counting: Percentiles

    @property
    def above_ms(self) -> float:
        """What the server adds to decoding and inference, at the 50th percentile."""
        return self.served[0] - (self.before[0] + self.after[0]) / 2


def repeat(work: Callable[[], object], seconds: float) -> Percentiles:
    """Do the work again and again for so many seconds."""
    took_ms: list[float] = []
    began = now = time.monotonic()
    while now - began < seconds:
        work()
        took_ms.append(1000 * (time.monotonic() - now))
        now = time.monotonic()
    p50, p99 = np.percentile(took_ms, _PERCENTILES, method="inverted_cdf").tolist()
    return p50, p99


def measure(model: str, artifacts: Path, rounds: int, seconds: float) -> Measurement:
    """Measure in rounds of four parts of so many seconds. Raises ServerError and LoadTestError."""
    photo, artifact = bench_photo(), load(artifacts, model)
    spec = artifact.manifest.input
    needed = needed_side(spec, Decode.AUTO)
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerUnderTest(ours("topfive", model, artifacts), Path(folder), photo) as server,
        closing(open_engine(artifact, EngineOptions(cpus=cpu_quota())).engine) as engine,
        ThreadPoolExecutor(1) as thread,  # servers decode on threads, where glibc keeps the memory of pixels
    ):

        def classify() -> None:
            engine.run(make_samples(spec, decode_image(photo, ImageLimits(), needed), 1))

        def alone(work: Callable[[], object]) -> Percentiles:
            return thread.submit(repeat, work, seconds).result()

        def one() -> LatencyRound:
            before = alone(classify)
            served = put_load(server, photo, LoadLevel(connections=1), seconds).result.latency_ms
            after = alone(classify)
            counts = range(round(_counts_per_ms() * after[0]))
            return LatencyRound(before, (served["p50"], served["p99"]), after, alone(lambda: sum(counts)))

        alone(classify)
        put_load(server, photo, LoadLevel(connections=1), seconds)  # both are warm then
        return report([one() for _ in range(rounds)])


def report(rounds: Sequence[LatencyRound]) -> Measurement:
    """The table and the row of these rounds."""
    alone = [one for each in rounds for one in (each.before, each.after)]
    lines = {
        "topfive, one connection": [each.served for each in rounds],
        "decoding and inference alone": alone,
        "a loop that only counts": [each.counting for each in rounds],
    }
    table = [
        [name, *(spread([one[column] for one in found], 2) for column in (0, 1)), spread(map(_tail, found), 2)]
        for name, found in lines.items()
    ]
    note = f"decoding and inference alone: {statistics.median(p50 for p50, _ in alone):.2f}, just before and after"
    above = ReportRow(
        "topfive, one connection: p50 above decoding and inference",
        [each.above_ms for each in rounds],
        "ms",
        at_most=_MOST_MS,
        note=note,
    )
    return Measurement("Latency at one connection", ("", "p50 ms", "p99 ms", "p99 / p50"), table, [above])


def _tail(found: Percentiles) -> float:
    return found[1] / found[0]


def _counts_per_ms() -> float:
    began = time.thread_time()
    sum(range(1_000_000))
    return 1000 / (time.thread_time() - began)


@click.command()
@click.option("--model", default="googlenet", show_default=True, help="An exported model")
@click.option("--artifacts", type=click.Path(path_type=Path), default="artifacts", envvar="TOPFIVE_ARTIFACTS")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Of each of four parts")
def main(model: str, artifacts: Path, rounds: int, seconds: float) -> None:
    """Measure what the server adds to the time of decoding and inference where it answers one request at a time."""
    Console().print(Markdown(page(BenchmarkReport((), "", [measure(model, artifacts, rounds, seconds)]))))


if __name__ == "__main__":
    main()
