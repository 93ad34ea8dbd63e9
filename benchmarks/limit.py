"""The limits of the machine: decoder and engine without any server, in a process that measures whenever it is told to.

Each line on standard input is a `Limit`'s name and seconds; the answer is one line of JSON. As a program:
`python -m benchmarks.limit --model NAME --artifacts FOLDER`.
"""

import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import click
import numpy as np
from PIL import Image

from benchmarks.asking import bench_photo
from benchmarks.peers.common import cut
from benchmarks.subjects import ROOT
from benchmarks.throughput import per_second
from models.artifact.artifact import load
from service.common.cpus import cpu_quota
from service.common.types import Decode, ImageLimits, Precision, Runtime, Sample
from service.engines.base import Engine
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions
from service.preprocessing import decode, transforms

_TRY_S = 0.5


class Limit(StrEnum):
    """What runs without a server."""

    OURS = "our decoder and the default engine"
    OURS_F32 = "our decoder and ONNX Runtime f32"
    PEERS = "Pillow and ONNX Runtime f32"


@dataclass(frozen=True, slots=True)
class Figures:
    """Images per second of all threads, CPU milliseconds for each, and milliseconds of one alone (median)."""

    per_second: float
    cpu_ms: float
    alone_ms: float
    threads: int
    engine: str


@dataclass(frozen=True, slots=True)
class Loop:
    """What one thread does again and again, and in how many threads that is fastest."""

    work: Callable[[], object]
    threads: int
    engine: str

    def measure(self, seconds: float) -> Figures:
        """A quarter of the time one thread alone, the rest all of them."""
        alone_s: list[float] = []
        end = time.monotonic() + seconds / 4
        while not alone_s or time.monotonic() < end:
            began = time.monotonic()
            self.work()
            alone_s.append(time.monotonic() - began)
        before = time.process_time()
        began = time.monotonic()
        rate = per_second(self.work, self.threads, seconds * 3 / 4)
        cpu_ms = 1000 * (time.process_time() - before) / (rate * (time.monotonic() - began))
        return Figures(rate, cpu_ms, 1000 * statistics.median(alone_s), self.threads, self.engine)


def opened(limit: Limit, model: str, artifacts: Path) -> Loop:
    """The loop of a limit, with as many threads as bring most of these: one for each slot, or two."""
    artifact = load(artifacts, model)
    options = EngineOptions(cpus=cpu_quota())
    if limit is not Limit.OURS:
        options = EngineOptions(Runtime.ONNXRUNTIME, Precision.F32, cpus=cpu_quota())
    engine: Engine = open_engine(artifact, options).engine
    spec, limits, photo = artifact.manifest.input, ImageLimits(), bench_photo()
    enough = transforms.enough(spec, Decode.AUTO)

    def decoded() -> Sample:
        if limit is Limit.PEERS:
            return cut(Image.open(io.BytesIO(photo)))
        sample: Sample = transforms.crops(spec, decode.picture(photo, limits, enough), 1)[0]
        return sample

    def work() -> None:
        engine.run(decoded()[np.newaxis])

    work()
    rates = {threads: per_second(work, threads, _TRY_S) for threads in (engine.slots, 2 * engine.slots)}
    info = engine.describe()
    return Loop(work, max(rates, key=lambda threads: rates[threads]), f"{info.runtime} {info.precision}")


class LimitError(Exception):
    """The process of the limits has ended; its error is on the terminal."""


Measure = Callable[[Limit, float], Figures]
"""Measures a limit for so many seconds. Raises LimitError."""


@contextmanager
def limits(model: str, artifacts: Path) -> Iterator[Measure]:
    """The process, which keeps its engines open and sleeps between measurements."""
    command = [sys.executable, "-m", "benchmarks.limit", "--model", model, "--artifacts", str(artifacts)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def measure(limit: Limit, seconds: float) -> Figures:
            with suppress(BrokenPipeError):
                stdin.write(f"{limit.name} {seconds}\n")
                stdin.flush()
            if not (line := stdout.readline()):
                raise LimitError(f"the process of the limits ended with status {process.wait()}")
            return Figures(**json.loads(line))

        try:
            yield measure
        finally:
            process.kill()


@click.command()
@click.option("--model", default="googlenet", show_default=True)
@click.option("--artifacts", type=click.Path(path_type=Path, exists=True), default=Path("artifacts"))
def main(model: str, artifacts: Path) -> None:
    """Answer each line `NAME SECONDS` on standard input by figures."""
    loops: dict[Limit, Loop] = {}
    for line in sys.stdin:
        name, _, seconds = line.strip().partition(" ")
        limit = Limit[name]
        if limit not in loops:
            loops[limit] = opened(limit, model, artifacts)
        click.echo(json.dumps(asdict(loops[limit].measure(float(seconds)))))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
