"""How far faster decoding moves the answers of a trained model: `python -m benchmarks.drift`.

Photos are enlarged, as none that come with the project is large, and get grain and a fine pattern of stripes: each of
another width, direction and strength, because what lies between the pixels that are kept is what decoding at a smaller
size can get wrong. An enlarged photo without a pattern is the first of each.
"""

import json
import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import product
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.decoding import plain
from export.gate_images import PHOTOS
from models.artifact.artifact import ArtifactError, WeightSource, load
from models.catalog import InputSpec
from service.common.cpus import cpu_quota
from service.common.errors import TopfiveError
from service.common.types import Batch, Decode, ImageLimits, Pixels, Precision, Probabilities, Runtime
from service.engines.base import Engine, EngineUnavailableError
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions
from service.preprocessing import decode, transforms

FAR = 0.02
"""The change of a probability that faster decoding should stay below."""

_GRAIN = 4.0  # grey levels
_STRIPES = (2.0, 16.0)  # pixels from one to the next
_STRENGTH = (8.0, 48.0)  # grey levels
_QUALITY = 90
_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class Drift:
    """One way against decoding every pixel with Pillow and resizing the whole: over how many photos, and how far.

    `largest` is the largest change of any class's probability, `far` counts photos in which one changed by more than
    0.02, `other_best` those whose best class is another.
    """

    way: str
    photos: int
    largest: float
    far: int
    other_best: int


def enlarged(photo: Image.Image, megapixels: float, chance: np.random.Generator, *, striped: bool) -> bytes:
    """A JPEG of about so many megapixels: the photo under grain, and under stripes where asked."""
    factor = math.sqrt(megapixels * 1e6 / (photo.width * photo.height))
    width, height = round(photo.width * factor), round(photo.height * factor)
    smooth = np.asarray(photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    texture = chance.standard_normal((height, width), dtype=np.float32) * _GRAIN
    if striped:
        texture += _stripes(width, height, chance)
    pixels: Pixels = np.clip(smooth + texture[..., np.newaxis], 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _stripes(width: int, height: int, chance: np.random.Generator) -> NDArray[np.float32]:
    """A wave over [height, width]."""
    period, strength, angle = chance.uniform(*_STRIPES), chance.uniform(*_STRENGTH), chance.uniform(0, math.pi)
    across = np.arange(width, dtype=np.float32) * np.float32(math.cos(angle))
    down = np.arange(height, dtype=np.float32)[:, np.newaxis] * np.float32(math.sin(angle))
    wave: NDArray[np.float32] = np.sin((across + down) * np.float32(2 * math.pi / period)) * np.float32(strength)
    return wave


def made(file: Path, megapixels: float, pattern: int) -> bytes:
    """That file enlarged, under the same pattern of that number in every run; under none with 0.

    Raises ClickException where it is no image that the server takes.
    """
    try:
        data = file.read_bytes()
        photo = Image.fromarray(decode.decode(data, ImageLimits()))
    except (OSError, TopfiveError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    return enlarged(photo, megapixels, np.random.default_rng((zlib.crc32(data), pattern)), striped=pattern > 0)


def samples(photo: bytes, spec: InputSpec) -> Batch:
    """What a network is given: by `plain`, then by each way of the server."""
    pictures = [decode.picture(photo, ImageLimits(), transforms.enough(spec, mode)) for mode in Decode]
    return np.stack([plain(photo, spec), *(transforms.crops(spec, picture, 1)[0] for picture in pictures)])


def measure(engine: Engine, spec: InputSpec, files: Sequence[Path], megapixels: float, each: int) -> list[Drift]:
    """Every way of the server against `plain`, over `each` photos of every file."""
    cases = list(product(files, range(each)))
    with ThreadPoolExecutor(cpu_quota()) as threads:
        batches = threads.map(lambda case: samples(made(case[0], megapixels, case[1]), spec), cases)
        answers = np.stack([_answers(engine, batch) for batch in batches])  # [photos, ways, classes]
    expected, others = answers[:, :1], answers[:, 1:]
    moved = np.abs(others - expected).max(axis=2)
    other_best = others.argmax(axis=2) != expected.argmax(axis=2)
    return [
        Drift(way, len(cases), float(far.max()), int((far > FAR).sum()), int(best.sum()))
        for way, far, best in zip(Decode, moved.T, other_best.T, strict=True)
    ]


def _answers(engine: Engine, batch: Batch) -> Probabilities:
    """Of every row, in as many batches as its graph asks for."""
    most = engine.max_batch
    return np.concatenate([engine.run(batch[first : first + most]) for first in range(0, len(batch), most)])


def images_of(paths: Sequence[Path]) -> list[Path]:
    """The files that were named, whatever they are, and what is named as images are in folders that were."""
    inside = (_images_in(path) if path.is_dir() else [path] for path in paths)
    return [file for files in inside for file in files]


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)


@click.command()
@click.argument("photos", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--model", default="squeezenet1_1", show_default=True, help="An exported model with trained weights")
@click.option("--artifacts", type=click.Path(path_type=Path, exists=True), default=Path("artifacts"))
@click.option("--megapixels", type=click.FloatRange(0.01, 60), default=8.0, show_default=True)
@click.option("--each", type=click.IntRange(min=1), default=20, show_default=True, help="Patterns over each photo")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON")
def main(photos: tuple[Path, ...], model: str, artifacts: Path, megapixels: float, each: int, as_json: bool) -> None:
    """Measure over PHOTOS, files or folders; those of the project without any."""
    try:
        artifact = load(artifacts, model)
    except ArtifactError as error:
        raise click.ClickException(str(error)) from error
    if artifact.manifest.weights.source is WeightSource.UNTRAINED:
        raise click.ClickException(
            f"{model} was exported with untrained weights: whatever it sees, its answer is noise"
        )
    if not (files := images_of(photos or (PHOTOS,))):
        raise click.ClickException(f"no image ({', '.join(_SUFFIXES)}) in the folders")
    options = EngineOptions(Runtime.ONNXRUNTIME, Precision.F32, cpus=cpu_quota(), max_batch=1 + len(Decode))
    try:
        engine = open_engine(artifact, options).engine
    except EngineUnavailableError as error:
        raise click.ClickException(str(error)) from error
    try:
        drifts = measure(engine, artifact.manifest.input, files, megapixels, each)
    finally:
        engine.close()
    if as_json:
        click.echo(json.dumps([asdict(one) for one in drifts], indent=2))
        return
    console, table = Console(width=120), Table()
    console.print(f"{model} on {drifts[0].photos} photos of {megapixels:g} MP, against every pixel by Pillow")
    for column in ("decode", "largest |dp|", f"|dp| above {FAR:g}", "another best class"):
        table.add_column(column, justify="right" if table.columns else "left")
    for one in drifts:
        table.add_row(one.way, f"{one.largest:.4f}", str(one.far), str(one.other_best))
    console.print(table)


if __name__ == "__main__":
    main()
