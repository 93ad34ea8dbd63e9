"""How far faster decoding moves the answers of a trained model: `python -m benchmarks.drift`.

No photo of the project is large, so photos are enlarged, and get grain and a fine pattern of stripes. Each pattern has
another width, direction and strength: decoding at a smaller size can get wrong what lies between the pixels that it
keeps. The first photo made of each file has no stripes.
"""

import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.command import artifacts_option, json_option, print_measurement
from benchmarks.decoding import ours, plain
from benchmarks.figures import FigureTarget, Measurement, ReportRow
from export.gate_images import PHOTOS
from models.artifact.artifact import ArtifactError, WeightSource, load
from models.catalog import InputSpec
from service.common.cpus import cpu_quota
from service.common.errors import TopfiveError
from service.common.types import Batch, Decode, ImageLimits, Pixels, Precision, Probabilities, Runtime
from service.engines.base import Engine, EngineUnavailableError
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions
from service.preprocessing import decode

MODEL = "squeezenet1_1"
FAR = 0.02
"""The change of a probability that faster decoding should stay below."""

_GRAIN = 4.0  # grey levels
_STRIPES = (2.0, 16.0)  # pixels from one to the next
_STRENGTH = (8.0, 48.0)  # grey levels
_QUALITY = 90
_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one value of `--decode` moves the answers from those to photos that Pillow decodes and resizes whole.

    `largest` is the largest change of the probability of any class. `far` counts the photos in which one changed by
    more than 0.02, `other_best` those with another best class.
    """

    way: str
    photos: int
    largest: float
    far: int
    other_best: int


def enlarged(file: Path, megapixels: float, pattern: int) -> bytes:
    """A JPEG of about so many megapixels: the image in a file, under grain and stripes.

    The stripes of each pattern differ, and are the same in every run; pattern 0 has none. Raises ClickException where
    the server does not take the file.
    """
    try:
        data = file.read_bytes()
        photo = Image.fromarray(decode.decode_pixels(data, ImageLimits()))
    except (OSError, TopfiveError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    random = np.random.default_rng((zlib.crc32(data), pattern))
    factor = math.sqrt(megapixels * 1e6 / (photo.width * photo.height))
    width, height = round(photo.width * factor), round(photo.height * factor)
    smooth = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    texture = random.standard_normal((height, width), dtype=np.float32) * _GRAIN
    if pattern:
        texture += _stripes(width, height, random)
    pixels: Pixels = np.clip(smooth + texture[..., np.newaxis], 0, 255).astype(np.uint8)
    jpeg = BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=_QUALITY)
    return jpeg.getvalue()


def _stripes(width: int, height: int, random: np.random.Generator) -> NDArray[np.float32]:
    """A wave of random length, direction and strength, [height, width]."""
    period, strength, angle = random.uniform(*_STRIPES), random.uniform(*_STRENGTH), random.uniform(0, math.pi)
    across = np.arange(width, dtype=np.float32) * np.float32(math.cos(angle))
    down = np.arange(height, dtype=np.float32)[:, np.newaxis] * np.float32(math.sin(angle))
    wave: NDArray[np.float32] = np.sin((across + down) * np.float32(2 * math.pi / period)) * np.float32(strength)
    return wave


def samples(photo: bytes, spec: InputSpec) -> Batch:
    """The samples of one photo: by `plain`, then by each value of `--decode`."""
    return np.stack([plain(photo, spec), *(ours(photo, mode, spec) for mode in Decode)])


def measure_drift(engine: Engine, spec: InputSpec, files: Sequence[Path], megapixels: float, each: int) -> list[Drift]:
    """Every value of `--decode` beside `plain`, over `each` photos made of every file."""
    cases = list(product(files, range(each)))
    with ThreadPoolExecutor(cpu_quota()) as threads:
        batches = threads.map(lambda case: samples(enlarged(case[0], megapixels, case[1]), spec), cases)
        answers = np.stack([_answers(engine, batch) for batch in batches])  # [photos, ways, classes]
    expected, others = answers[:, :1], answers[:, 1:]
    moved = np.abs(others - expected).max(axis=2)
    other_best = others.argmax(axis=2) != expected.argmax(axis=2)
    return [
        Drift(way, len(cases), float(far.max()), int((far > FAR).sum()), int(best.sum()))
        for way, far, best in zip(Decode, moved.T, other_best.T, strict=True)
    ]


def _answers(engine: Engine, batch: Batch) -> Probabilities:
    """The probabilities of every row, [N, C], in batches that the engine takes."""
    most = engine.max_batch
    return np.concatenate([engine.run(batch[first : first + most]) for first in range(0, len(batch), most)])


def images_of(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, whatever they hold, and the images in the folders that are named."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        else:
            files.append(path)
    return files


def measure(photos: Sequence[Path], model: str, artifacts: Path, megapixels: float, each: int) -> Measurement:
    """Measure `measure_drift` over files and folders.

    Raises ClickException where the model or a photo cannot be used.
    """
    try:
        artifact = load(artifacts, model)
        options = EngineOptions(Runtime.ONNXRUNTIME, Precision.F32, cpus=cpu_quota(), max_batch=1 + len(Decode))
        if artifact.manifest.weights.source is WeightSource.UNTRAINED:
            raise click.ClickException(
                f"{model} was exported with untrained weights: whatever it sees, its answer is noise"
            )
        if not (files := images_of(photos)):
            raise click.ClickException(f"no image ({', '.join(_SUFFIXES)}) in the folders")
        engine = open_engine(artifact, options).engine
    except (ArtifactError, EngineUnavailableError) as error:
        raise click.ClickException(str(error)) from error
    with closing(engine):
        drifts = measure_drift(engine, artifact.manifest.input, files, megapixels, each)
    auto = next(one for one in drifts if one.way == Decode.AUTO)
    note = f"{model}, {auto.photos} photos"
    rows = [
        ReportRow(
            f"largest |dp| by scaled decoding, {megapixels:g} MP", (auto.largest,), "", FigureTarget(at_most=FAR), note
        ),
        ReportRow(
            f"other best classes by scaled decoding, {megapixels:g} MP",
            (auto.other_best,),
            "photos",
            FigureTarget(at_most=0),
            note,
        ),
    ]
    title = f"{model} on {auto.photos} photos of {megapixels:g} MP, against every pixel by Pillow"
    heads = ("decode", "largest |dp|", f"|dp| above {FAR:g}", "another best class")
    table = [(one.way, f"{one.largest:.4f}", str(one.far), str(one.other_best)) for one in drifts]
    return Measurement("drift", title, heads, table, drifts, rows)


@click.command()
@click.argument("photos", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--model", default=MODEL, show_default=True, help="An exported model with trained weights")
@artifacts_option
@click.option("--megapixels", type=click.FloatRange(0.01, 60), default=8.0, show_default=True)
@click.option("--each", type=click.IntRange(min=1), default=20, show_default=True, help="Patterns over each photo")
@json_option
def main(photos: tuple[Path, ...], model: str, artifacts: Path, megapixels: float, each: int, as_json: bool) -> None:
    """Measure over PHOTOS, files or folders; those of the project without any."""
    print_measurement(measure(photos or (PHOTOS,), model, artifacts, megapixels, each), as_json=as_json)


if __name__ == "__main__":
    main()
