"""The benchmark of what faster decoding does to answers: what it counts, its photos, and what it refuses."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.drift import enlarged, images_of, main, measure_drift
from export.gate_images import PHOTOS
from models.catalog import InputSpec
from service.common.types import Probabilities, Rows
from tests.fakes import FakeEngine

FILES = sorted(PHOTOS.glob("*.jpeg"))[:2]


class Scripted(FakeEngine):
    """The same answers for each photo: plain, then by `auto`, `fast` and `exact`."""

    def run(self, rows: Rows) -> Probabilities:
        assert len(rows) == 4
        return np.array([[0.50, 0.49, 0.01], [0.51, 0.48, 0.01], [0.45, 0.54, 0.01], [0.50, 0.49, 0.01]], "f4")


def test_counts() -> None:
    """The largest change of any class, the photos that changed far, and those with another best class, of each way."""
    drifts = measure_drift(Scripted(3), InputSpec(), FILES, 0.2, 3)

    assert [one.way for one in drifts] == ["auto", "fast", "exact"]
    assert [one.largest for one in drifts] == pytest.approx([0.01, 0.05, 0.0], abs=1e-6)
    assert [(one.photos, one.far, one.other_best) for one in drifts] == [(6, 0, 0), (6, 6, 6), (6, 0, 0)]


def test_photos() -> None:
    """So many pixels in the shape of the file, the same each time; each pattern differs, the first is nearest to it."""
    file = FILES[0]
    photos = [enlarged(file, 0.5, pattern) for pattern in (0, 1, 2)]
    images = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in photos]
    with Image.open(file) as original:
        size, pixels = original.size, np.asarray(original.convert("RGB"), dtype=float)
    shapes = [image.resize(size, Image.Resampling.BOX) for image in images]

    assert photos[1] == enlarged(file, 0.5, 1)
    assert len(set(photos)) == 3
    for image in images:
        assert image.width * image.height == pytest.approx(0.5e6, rel=0.01)
        assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.01)
    off = [np.abs(np.asarray(shape, dtype=float) - pixels).mean() for shape in shapes]
    assert off[0] == min(off) < 6


def test_files(tmp_path: Path) -> None:
    """Images in the folders that are named, and every file that is: none is left out in silence."""
    for name in ("b.png", "a.jpg", "notes.txt", "photo"):
        (tmp_path / name).touch()
    named = [tmp_path / "photo", FILES[0]]

    assert images_of([tmp_path, *named]) == [tmp_path / "a.jpg", tmp_path / "b.png", *named]


def test_a_graph_of_batch_one() -> None:
    """It is given no larger batch than it takes."""
    engine = FakeEngine(max_batch=1)
    measure_drift(engine, InputSpec(), FILES[:1], 0.2, 2)

    assert engine.batches == [1] * 8


def test_untrained_weights_are_refused(exported: Path) -> None:
    """Their answers would hardly move, whatever becomes of the photo."""
    result = CliRunner().invoke(main, ["--model", "tiny", "--artifacts", str(exported)])

    assert result.exit_code == 1
    assert "tiny was exported with untrained weights" in result.output


def test_a_file_that_is_no_image_is_named(trained: Path, tmp_path: Path) -> None:
    """One that holds something else, and one that is cut off: each is an error that says which file, not a trace."""
    other, cut = tmp_path / "other.jpg", tmp_path / "cut.jpg"
    other.write_text("no photo")
    cut.write_bytes(FILES[0].read_bytes()[:5000])
    for file in (other, cut):
        result = CliRunner().invoke(main, ["--artifacts", str(trained), str(file)])

        assert result.exit_code == 1
        assert f"Error: {file}: " in result.output
        assert "image" in result.output.partition(": ")[2].replace(str(file), "")


def test_command(trained: Path) -> None:
    """It prints a row for each way, as a table or as JSON; where every pixel is decoded hardly anything moves."""
    arguments = ["--model", "squeezenet1_1", "--artifacts", str(trained), "--megapixels", "1", "--each", "1", *FILES]
    shown, told = (CliRunner().invoke(main, [*map(str, arguments), *more]) for more in ([], ["--json"]))
    rows = json.loads(told.output)

    assert [row["way"] for row in rows] == ["auto", "fast", "exact"]
    assert {row["photos"] for row in rows} == {2}
    assert 0 < rows[2]["largest"] < 0.005
    assert f"{rows[0]['largest']:.4f}" in shown.output
