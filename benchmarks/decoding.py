"""CPU time of decoding, resizing and cropping a JPEG, beside the plain Pillow recipe: `python -m benchmarks.decoding`.

The photos are made of noise, so that anybody has the same ones.
"""

import io
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from models.catalog import InputSpec
from service import image, recipe
from service.types import Decode, ImageLimits, Pixels, Sample

MEGAPIXELS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0)
"""The sizes, four to three, beside the photo of 500 x 375 pixels and about 100 kB that the peers are measured with."""

_ROUNDS = 9
_ROUND_S = 0.02  # below it a round is too short for the clock
_SMALL = (500, 375)
_SMALL_BYTES = 100_000
_QUALITY = 90
_GRAIN = 4.0  # grey levels of noise in each pixel: 0.3 bytes a pixel at that quality, as photos of phones have
_DETAIL = (61, 46)
_SPEC = InputSpec()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way costs for one photo: medians of CPU time, and the worst pixel against the plain recipe."""

    width: int
    height: int
    size_bytes: int
    way: str
    scale: str
    cpu_ms: float
    plain_ms: float
    ratio: float
    levels: int


def plain(data: bytes) -> Sample:
    """The recipe as it is written down everywhere: decode, resize the whole photo, crop, to an array."""
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    size = recipe.resized_size(photo.width, photo.height, _SPEC.resize)
    left, top = (round((side - _SPEC.crop) / 2) for side in size)
    resized = photo.resize(size, Image.Resampling.BILINEAR)
    return np.array(resized.crop((left, top, left + _SPEC.crop, top + _SPEC.crop)))


def ours(data: bytes, decode: Decode) -> tuple[Sample, int]:
    """The way of the server, and by how much the photo was reduced."""
    picture = image.picture(data, ImageLimits(), recipe.enough(_SPEC, decode))
    sample: Sample = recipe.crops(_SPEC, picture, 1)[0]
    return sample, picture.reduction


def photo_of(width: int, height: int, *, quality: int = _QUALITY) -> bytes:
    """A JPEG of smooth shapes under fine grain, the same each time."""
    chance = np.random.default_rng(1998)
    shapes = Image.fromarray(chance.integers(0, 256, (_DETAIL[1], _DETAIL[0], 3), dtype=np.uint8))
    smooth = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = chance.standard_normal((height, width, 1), dtype=np.float32) * _GRAIN
    pixels: Pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def small_photo() -> bytes:
    """500 x 375 pixels in about 100 kB: of all qualities the one that comes nearest."""
    photos = [photo_of(*_SMALL, quality=quality) for quality in range(80, 100)]
    return min(photos, key=lambda photo: abs(len(photo) - _SMALL_BYTES))


def decode_costs(megapixels: Sequence[float] = MEGAPIXELS, rounds: int = _ROUNDS) -> list[Cost]:
    """The costs of every way for the small photo and for each size, interleaved in one run."""
    sides = [math.sqrt(size * 1e6 / 12) for size in megapixels]
    photos = [small_photo(), *(photo_of(round(4 * side), round(3 * side)) for side in sides)]
    return [cost for photo in photos for cost in _costs(photo, rounds)]


def _costs(photo: bytes, rounds: int) -> list[Cost]:
    expected = plain(photo).astype(int)
    ways: dict[str, Callable[[], object]] = {"plain": lambda: plain(photo)}
    for decode in Decode:
        ways[decode.value] = lambda decode=decode: ours(photo, decode)  # type: ignore[misc]
    times: dict[str, list[float]] = {way: [] for way in ways}
    times_over = max(1, math.ceil(_ROUND_S / max(_cpu_s(ways["plain"], 1), 1e-6)))
    for _ in range(rounds):
        for way, work in ways.items():
            times[way].append(_cpu_s(work, times_over))
    plain_s = statistics.median(times["plain"])
    width, height = Image.open(io.BytesIO(photo)).size
    costs = []
    for decode in Decode:
        sample, reduction = ours(photo, decode)
        spent_s = statistics.median(times[decode.value])
        ratio = statistics.median(a / b for a, b in zip(times[decode.value], times["plain"], strict=True))
        levels = int(np.abs(sample - expected).max())
        scale = f"1/{reduction}"
        costs.append(Cost(width, height, len(photo), decode, scale, spent_s * 1000, plain_s * 1000, ratio, levels))
    return costs


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
        title=f"CPU time of decode, resize and crop beside the plain Pillow recipe, medians of {rounds} rounds"
    )
    for column in ("pixels", "kB", "--decode", "scale", "ms", "plain ms", "ratio", "grey levels"):
        table.add_column(column, justify="left" if column == "pixels" else "right")
    for cost in costs:
        table.add_row(
            f"{cost.width} x {cost.height}",
            f"{cost.size_bytes / 1000:.0f}",
            cost.way,
            cost.scale,
            f"{cost.cpu_ms:.2f}",
            f"{cost.plain_ms:.2f}",
            f"{cost.ratio:.2f}",
            str(cost.levels),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
