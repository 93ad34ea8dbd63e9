"""CPU time of decoding, resizing and cropping a JPEG, beside the plain Pillow recipe: `python -m benchmarks.decoding`.

The photos are made of noise, so that everybody has the same ones. Everything is measured on a thread of its own, as
servers decode: on the main thread glibc gives the pixels back after each photo, for which plain Pillow paid a third
more at 8 megapixels.
"""

import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.report import BenchmarkReport, Measurement, ReportRow, page
from models.catalog import InputSpec
from service.common.sample_photo import made_photo
from service.common.types import Decode, ImageLimits, Sample
from service.preprocessing import decode, transforms

SIZES = ((500, 375, 94), (1633, 1225, 90), (3266, 2449, 90))
"""Width, height and JPEG quality; the first has about 100 kB, as the photo that the peers are measured with."""

_TARGETS = {500: 0.65, 3266: 0.3}  # by width
_ROUNDS = 9
_ROUND_S = 0.02  # below it a round is too short for the clock
_SPEC = InputSpec()


def plain(data: bytes, spec: InputSpec = _SPEC) -> Sample:
    """The usual recipe, as an array [S, S, 3]: decode the whole photo, resize it, crop it."""
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    size = transforms.resized_size(photo.width, photo.height, spec.resize)
    left, top = (round((side - spec.crop) / 2) for side in size)
    resized = photo.resize(size, Image.Resampling[spec.interpolation.name])
    return np.array(resized.crop((left, top, left + spec.crop, top + spec.crop)))


def ours(data: bytes, mode: Decode, spec: InputSpec = _SPEC) -> Sample:
    """The sample that the server makes of a photo."""
    photo = decode.decode_image(data, ImageLimits(), transforms.needed_side(spec, mode))
    sample: Sample = transforms.make_samples(spec, photo, 1)[0]
    return sample


def decode_costs(photo: bytes, rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of `plain` and of every value of `--decode`; rounds are interleaved."""
    works: dict[str, Callable[[], object]] = {"plain": partial(plain, photo)}
    works |= {mode.value: partial(ours, photo, mode) for mode in Decode}
    costs: dict[str, list[float]] = {name: [] for name in works}
    times_over = max(1, math.ceil(_ROUND_S / max(_cpu_s(works["plain"], 1), 1e-6)))
    for _ in range(rounds):
        for name, work in works.items():
            costs[name].append(1000 * _cpu_s(work, times_over))
    return costs


def _cpu_s(work: Callable[[], object], times_over: int) -> float:
    """CPU seconds of this thread for one call, of `times_over` calls."""
    began = time.thread_time()
    for _ in range(times_over):
        work()
    return (time.thread_time() - began) / times_over


def measure(sizes: Sequence[tuple[int, int, int]] = SIZES, rounds: int = _ROUNDS) -> Measurement:
    """Measure `decode_costs` of photos of these sizes."""
    table, rows = [], []
    for width, height, quality in sizes:
        photo = made_photo(width, height, quality=quality)
        with ThreadPoolExecutor(1) as thread:
            costs = thread.submit(decode_costs, photo, rounds).result()
        ratios = [a / b for a, b in zip(costs[Decode.AUTO], costs["plain"], strict=True)]
        medians = [f"{statistics.median(each):.2f}" for each in costs.values()]
        levels = np.abs(ours(photo, Decode.AUTO).astype(int) - plain(photo)).max()
        table.append([f"{width} x {height}", f"{len(photo) / 1000:.0f}", *medians, str(levels)])
        name = f"decode and resize / plain Pillow, {width} x {height}"
        if width in _TARGETS:
            rows.append(ReportRow(name, ratios, "of its CPU time", at_most=_TARGETS[width]))
    heads = (
        "CPU ms of decode, resize and crop",
        "kB",
        "plain Pillow",
        *Decode,
        "largest difference of auto, grey levels",
    )
    return Measurement("Decoding", heads, table, rows)


if __name__ == "__main__":
    Console().print(Markdown(page(BenchmarkReport((), "", [measure()]))))
