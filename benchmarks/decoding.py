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
from dataclasses import dataclass
from functools import partial

import click
import numpy as np
from PIL import Image

from benchmarks.command import json_option, print_measurement
from benchmarks.figures import FigureTarget, Measurement, ReportRow
from models.catalog import InputSpec
from service.common.sample_photo import made_photo
from service.common.types import Decode, ImageLimits, Sample
from service.preprocessing import decode, transforms

MEGAPIXELS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0)
"""The sizes, four to three, beside the photo of 500 x 375 pixels and about 100 kB that the peers are measured with."""

ROUNDS = 9
_ROUND_S = 0.02  # below it a round is too short for the clock
_QUALITY = 90  # of the larger ones
_SPEC = InputSpec()


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """What one value of `--decode` costs for one photo: medians of CPU time, and the worst pixel, in grey levels.

    `plain` is the recipe without this project, whose pixels are compared. `decode_ms` is the part of `cpu_ms` for
    decoding, `plain_decode_ms` that of `plain_ms`; the rest is for resize and crop.
    """

    width: int
    height: int
    size_bytes: int
    way: str
    scale: str
    cpu_ms: float
    decode_ms: float
    plain_ms: float
    plain_decode_ms: float
    ratio: float
    levels: int


def plain(data: bytes, spec: InputSpec = _SPEC) -> Sample:
    """The usual recipe, as an array [S, S, 3]: decode the whole photo, resize it, crop it."""
    photo = plain_photo(data)
    size = transforms.resized_size(photo.width, photo.height, spec.resize)
    left, top = (round((side - spec.crop) / 2) for side in size)
    resized = photo.resize(size, Image.Resampling[spec.interpolation.name])
    return np.array(resized.crop((left, top, left + spec.crop, top + spec.crop)))


def plain_photo(data: bytes) -> Image.Image:
    """The first step of `plain`."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def our_photo(data: bytes, mode: Decode, spec: InputSpec = _SPEC) -> decode.DecodedImage:
    """The first step of `ours`."""
    return decode.decode_image(data, ImageLimits(), transforms.needed_side(spec, mode))


def ours(data: bytes, mode: Decode, spec: InputSpec = _SPEC) -> Sample:
    """The sample that the server makes of a photo."""
    sample: Sample = transforms.make_samples(spec, our_photo(data, mode, spec), 1)[0]
    return sample


def decode_costs(megapixels: Sequence[float] = MEGAPIXELS, rounds: int = ROUNDS) -> list[DecodeCost]:
    """The costs of every value of `--decode` for the small photo and for each size; rounds are interleaved."""
    sides = [math.sqrt(size * 1e6 / 12) for size in megapixels]
    photos = [made_photo(), *(made_photo(round(4 * side), round(3 * side), quality=_QUALITY) for side in sides)]
    with ThreadPoolExecutor(1) as thread:
        return [cost for photo in photos for cost in thread.submit(_costs, photo, rounds).result()]


def _costs(photo: bytes, rounds: int) -> list[DecodeCost]:
    works: dict[str, Callable[[], object]] = {
        "plain": partial(plain, photo),
        "plain photo": partial(plain_photo, photo),
    }
    for mode in Decode:
        works |= {mode.value: partial(ours, photo, mode), f"{mode} photo": partial(our_photo, photo, mode)}
    times: dict[str, list[float]] = {name: [] for name in works}
    times_over = max(1, math.ceil(_ROUND_S / max(_cpu_s(works["plain"], 1), 1e-6)))
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(_cpu_s(work, times_over))
    return [_cost(photo, mode, times) for mode in Decode]


def _cost(photo: bytes, mode: Decode, times: dict[str, list[float]]) -> DecodeCost:
    width, height = Image.open(io.BytesIO(photo)).size
    ms = {name: statistics.median(each) * 1000 for name, each in times.items()}
    return DecodeCost(
        width=width,
        height=height,
        size_bytes=len(photo),
        way=mode,
        scale=f"1/{our_photo(photo, mode).reduction}",
        cpu_ms=ms[mode.value],
        decode_ms=ms[f"{mode} photo"],
        plain_ms=ms["plain"],
        plain_decode_ms=ms["plain photo"],
        ratio=statistics.median(a / b for a, b in zip(times[mode.value], times["plain"], strict=True)),
        levels=int(np.abs(ours(photo, mode).astype(int) - plain(photo)).max()),
    )


def _cpu_s(work: Callable[[], object], times_over: int) -> float:
    """CPU seconds of this thread for one call, of `times_over` calls."""
    began = time.thread_time()
    for _ in range(times_over):
        work()
    return (time.thread_time() - began) / times_over


def measure(megapixels: Sequence[float] = MEGAPIXELS, rounds: int = ROUNDS) -> Measurement:
    """Measure `decode_costs`."""
    costs = decode_costs(megapixels, rounds)
    ratios = {(cost.width, cost.way): cost.ratio for cost in costs}
    rows = [
        ReportRow(
            f"decode and resize / plain Pillow, {photo}",
            (ratios[width, Decode.AUTO],),
            "of its CPU time",
            FigureTarget(at_most=most),
            f"with --decode fast {ratios[width, Decode.FAST]:.2f}",
        )
        for width, photo, most in ((500, "500 x 375", 0.65), (3266, "8 MP", 0.2))
        if (width, Decode.AUTO) in ratios
    ]
    table = [
        (
            f"{cost.width}x{cost.height}",
            f"{cost.size_bytes / 1000:.0f}",
            cost.way,
            cost.scale,
            f"{cost.cpu_ms:.2f} ({cost.decode_ms:.2f})",
            f"{cost.plain_ms:.2f} ({cost.plain_decode_ms:.2f})",
            f"{cost.ratio:.2f}",
            str(cost.levels),
        )
        for cost in costs
    ]
    title = f"CPU ms of decode, resize and crop (of it decode), medians of {rounds} rounds"
    heads = ("pixels", "kB", "decode", "scale", "ms (decode)", "plain Pillow", "ratio", "levels")
    return Measurement("decoding", title, heads, table, costs, rows)


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(min=1))
@click.option("--megapixels", multiple=True, type=click.FloatRange(0.01, 60), default=MEGAPIXELS, show_default=True)
@json_option
def main(rounds: int, megapixels: tuple[float, ...], as_json: bool) -> None:
    """Measure on this machine."""
    print_measurement(measure(megapixels, rounds), as_json=as_json)


if __name__ == "__main__":
    main()
