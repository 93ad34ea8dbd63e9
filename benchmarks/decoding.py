"""CPU time of decoding, resizing and cropping a JPEG, beside the plain Pillow recipe: `python -m benchmarks.decoding`.

The photos are made of noise, so that anybody has the same ones. All is measured on a thread of its own, as servers
decode: on the main one glibc gives the pixels back after each photo, for which plain Pillow paid a third more at 8
megapixels.
"""

import io
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import click
import numpy as np
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from models.catalog import InputSpec
from service.common.sample_photo import made_photo
from service.common.types import Decode, ImageLimits, Sample
from service.preprocessing import decode, transforms

MEGAPIXELS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0)
"""The sizes, four to three, beside the photo of 500 x 375 pixels and about 100 kB that the peers are measured with."""

_ROUNDS = 9
_ROUND_S = 0.02  # below it a round is too short for the clock
_QUALITY = 90  # of the larger ones
_SPEC = InputSpec()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way costs for one photo: medians of CPU time, and the worst pixel against the plain recipe.

    `decode_ms` of `cpu_ms` and `plain_decode_ms` of `plain_ms` are for decoding, the rest is for resize and crop.
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
    """The recipe as it is written down everywhere: decode, resize the whole photo, crop, to an array [S, S, 3]."""
    photo = plain_photo(data)
    size = transforms.resized_size(photo.width, photo.height, spec.resize)
    left, top = (round((side - spec.crop) / 2) for side in size)
    resized = photo.resize(size, Image.Resampling[spec.interpolation.name])
    return np.array(resized.crop((left, top, left + spec.crop, top + spec.crop)))


def plain_photo(data: bytes) -> Image.Image:
    """The first step of `plain`."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def our_photo(data: bytes, mode: Decode) -> decode.Picture:
    """The first step of `ours`."""
    return decode.picture(data, ImageLimits(), transforms.enough(_SPEC, mode))


def ours(data: bytes, decode: Decode) -> tuple[Sample, int]:
    """The way of the server, and by how much the photo was reduced."""
    picture = our_photo(data, decode)
    sample: Sample = transforms.crops(_SPEC, picture, 1)[0]
    return sample, picture.reduction


def decode_costs(megapixels: Sequence[float] = MEGAPIXELS, rounds: int = _ROUNDS) -> list[Cost]:
    """The costs of every way for the small photo and for each size, interleaved in one run."""
    sides = [math.sqrt(size * 1e6 / 12) for size in megapixels]
    photos = [made_photo(), *(made_photo(round(4 * side), round(3 * side), quality=_QUALITY) for side in sides)]
    with ThreadPoolExecutor(1) as thread:
        return [cost for photo in photos for cost in thread.submit(_costs, photo, rounds).result()]


def _costs(photo: bytes, rounds: int) -> list[Cost]:
    works: dict[str, Callable[[], object]] = {"plain": lambda: plain(photo), "plain photo": lambda: plain_photo(photo)}
    for mode in Decode:
        works[mode.value] = lambda mode=mode: ours(photo, mode)  # type: ignore[misc]
        works[f"{mode} photo"] = lambda mode=mode: our_photo(photo, mode)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in works}
    times_over = max(1, math.ceil(_ROUND_S / max(_cpu_s(works["plain"], 1), 1e-6)))
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(_cpu_s(work, times_over))
    return [_cost(photo, decode, times) for decode in Decode]


def _cost(photo: bytes, decode: Decode, times: dict[str, list[float]]) -> Cost:
    width, height = Image.open(io.BytesIO(photo)).size
    sample, reduction = ours(photo, decode)
    ms = {name: statistics.median(each) * 1000 for name, each in times.items()}
    return Cost(
        width=width,
        height=height,
        size_bytes=len(photo),
        way=decode,
        scale=f"1/{reduction}",
        cpu_ms=ms[decode.value],
        decode_ms=ms[f"{decode} photo"],
        plain_ms=ms["plain"],
        plain_decode_ms=ms["plain photo"],
        ratio=statistics.median(a / b for a, b in zip(times[decode.value], times["plain"], strict=True)),
        levels=int(np.abs(sample.astype(int) - plain(photo)).max()),
    )


def _cpu_s(work: Callable[[], object], times_over: int) -> float:
    """CPU seconds of this thread for one of so many."""
    began = time.thread_time()
    for _ in range(times_over):
        work()
    return (time.thread_time() - began) / times_over


@click.command()
@click.option("--rounds", default=_ROUNDS, show_default=True, type=click.IntRange(min=1))
@click.option("--megapixels", multiple=True, type=click.FloatRange(0.01, 60), default=MEGAPIXELS, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON")
def main(rounds: int, megapixels: tuple[float, ...], as_json: bool) -> None:
    """Measure on this machine."""
    costs = decode_costs(megapixels, rounds)
    if as_json:
        click.echo(json.dumps([asdict(cost) for cost in costs], indent=2))
        return
    table = Table(
        title=f"CPU ms of decode, resize and crop (of it decode), medians of {rounds} rounds",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("pixels", "kB", "decode", "scale", "ms (decode)", "plain Pillow", "ratio", "levels"):
        table.add_column(column, justify="left" if column == "pixels" else "right", no_wrap=True)
    for cost in costs:
        table.add_row(
            f"{cost.width}x{cost.height}",
            f"{cost.size_bytes / 1000:.0f}",
            cost.way,
            cost.scale,
            f"{cost.cpu_ms:.2f} ({cost.decode_ms:.2f})",
            f"{cost.plain_ms:.2f} ({cost.plain_decode_ms:.2f})",
            f"{cost.ratio:.2f}",
            str(cost.levels),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
