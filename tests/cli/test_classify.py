"""`topfive classify`: a row for each image, errors, and a run that resumes after a stop."""

import json
import signal
from pathlib import Path

import pytest
from click.testing import Result

from export.gate_images import PHOTOS
from service.offline.journal import Journal
from tests.command_line import SignallingEngine, table, topfive
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.fleet import copy_model


def classify(artifacts: Path, *words: object, model: str = "tiny") -> Result:
    """Run the command."""
    return topfive("classify", "--model", model, "--artifacts", artifacts, *words, columns=200)


def predicted(artifacts: Path, *words: object) -> list[list[dict[str, object]]]:
    """The predictions of `predict` for each image."""
    lines = topfive("predict", *words, "--artifacts", artifacts, "--json").stdout.splitlines()
    return [json.loads(line)["predictions"] for line in lines]


def test_photos(artifacts: Path, tmp_path: Path) -> None:
    """Every photo of a folder has a row, in order, with the answers of predict."""
    out = tmp_path / "r.csv"
    result = classify(artifacts, PHOTOS, "--out", out, "--top-k", "2")

    assert result.exit_code == 0, result.output
    photos = sorted(str(path) for path in PHOTOS.glob("*.jpeg"))
    rows = table(out)
    wanted = predicted(artifacts, *photos, "--model", "tiny", "--top-k", "2")
    assert [row["path"] for row in rows] == photos
    assert [[int(row[f"top{rank}_class_id"]) for rank in (1, 2)] for row in rows] == [
        [one["class_id"] for one in predictions] for predictions in wanted
    ]
    assert [float(row["top1_probability"]) for row in rows] == pytest.approx(
        [predictions[0]["probability"] for predictions in wanted], rel=1e-4
    )
    assert f"{out}: 10 images" in result.stderr
    assert "untrained weights" in result.stderr
    assert list(tmp_path.glob("*r.csv*")) == [out]


def test_crops_and_ensembles(artifacts: Path, tmp_path: Path) -> None:
    """Ten crops of an ensemble have the answers of predict; rows name members and crops; three crops are an error."""
    copy_model(artifacts, "other")
    name, options = "ensemble:tiny+other", ("--crops", "10", "--top-k", "3")
    out, photo = tmp_path / "r.jsonl", PHOTOS / "bee.jpeg"
    result = classify(artifacts, photo, "--out", out, *options, model=name)

    assert result.exit_code == 0, result.output
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    (wanted,) = predicted(artifacts, photo, "--model", name, *options)
    assert [one["class_id"] for one in row["predictions"]] == [one["class_id"] for one in wanted]
    assert [one["probability"] for one in row["predictions"]] == pytest.approx([one["probability"] for one in wanted])
    assert (row["model"]["name"], row["model"]["crops"]) == (name, 10)
    assert [(one["name"], one["version"]) for one in row["model"]["members"]] == [("tiny", 1), ("other", 1)]

    refused = classify(artifacts, photo, "--out", tmp_path / "s.csv", "--crops", "3")
    assert (refused.exit_code, "'3' is not one of '1', '10'" in refused.stderr) == (2, True)


def test_bad_files_are_rows(artifacts: Path, tmp_path: Path) -> None:
    """A file that cannot be classified has a row with its error; the status is 0, and a line counts these files."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (folder / "b.png").write_text("not an image")
    (folder / "c.png").write_bytes(b"x" * 5000)
    (folder / "d.png").symlink_to(folder / "gone.png")
    (folder / "list.txt").write_text("a.png\nb.png\nc.png\nd.png\nvanished.png\n.\n")
    result = classify(artifacts, folder / "list.txt", "--out", tmp_path / "r.jsonl", "--max-image-bytes", "4000")

    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert result.exit_code == 0
    codes = [row["error"] and row["error"]["code"] for row in rows]
    assert codes == [None, "bad_image", "too_large", "unreadable", "unreadable", "unreadable"]
    assert [row["error"]["detail"] for row in rows[4:]] == ["No such file or directory", "Is a directory"]
    assert len(rows[0]["predictions"]) == 5
    assert rows[0]["model"]["name"] == "tiny"
    assert set(rows[0]["model"]) == {"name", "version", "weights", "runtime", "precision", "crops", "decode"}
    assert "could not be classified; their rows have the errors: 5" in result.stderr
    assert "b.png: bad_image: " in result.stderr


def test_refused_before_anything_runs(artifacts: Path, tmp_path: Path) -> None:
    """An unknown suffix, no image, a finished file and too many classes are errors that say what to do."""
    (tmp_path / "r.csv").write_text("mine")
    (tmp_path / "empty").mkdir()

    for words, reason in (
        ((PHOTOS, "--out", tmp_path / "r.xlsx"), ".csv, .jsonl, .parquet"),
        ((tmp_path / "empty", "--out", tmp_path / "s.csv"), "no image in"),
        ((PHOTOS, "--out", tmp_path / "r.csv"), "--overwrite"),
        ((PHOTOS, "--out", tmp_path / "s.csv", "--top-k", "1001"), "classes for 1 to 1000"),
    ):
        result = classify(artifacts, *words)
        assert result.exit_code == 1
        assert reason in result.stderr
        assert "Traceback" not in result.output
    assert (tmp_path / "r.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "empty", "r.csv"]


def test_overwrite(artifacts: Path, tmp_path: Path) -> None:
    """--overwrite replaces finished results and an unfinished run of other settings."""
    out = tmp_path / "r.csv"
    out.write_text("mine")
    with Journal(tmp_path / "r.csv.partial", {"name": "other"}):
        pass

    refused = classify(artifacts, PHOTOS / "bee.jpeg", "--out", out)
    assert (refused.exit_code, out.read_text()) == (1, "mine")
    assert "name was other and is now tiny" in refused.stderr

    assert classify(artifacts, PHOTOS / "bee.jpeg", "--out", out, "--overwrite").exit_code == 0
    assert len(table(out)) == 1


SHADES = [str(number) for number in range(40)]


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """A folder of forty images, each of its own brightness, which is its class for a fake engine."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(png(number))
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_and_again(number: signal.Signals, artifacts: Path, shades: Path, tmp_path: Path) -> None:
    """After Ctrl-C or SIGTERM the same command resumes with the images that are missing; the result is whole."""
    words = ("classify", shades, "--out", tmp_path / "r.csv", "--model", "tiny", "--artifacts", artifacts)
    engine = SignallingEngine(tmp_path / "log", number, after=12)
    first = topfive(*words, engine=engine, columns=200)

    done = engine.ran().total()
    assert first.exit_code == 128 + number
    assert 12 <= done < 40
    assert "the same command without --overwrite resumes" in first.stderr
    assert not (tmp_path / "r.csv").exists()

    second = topfive(*words, engine=SignallingEngine(tmp_path / "log"), columns=200)
    assert second.exit_code == 0
    assert "resuming: " in second.stderr
    assert [row["top1_class_id"] for row in table(tmp_path / "r.csv")] == SHADES
    assert engine.ran().total() < 80
    assert not list(tmp_path.glob("r.csv.partial*"))


def test_fewer_classes_than_five(artifacts: Path, tmp_path: Path) -> None:
    """Without --top-k a model of three classes gives three; --top-k 4 is an error before any image is run."""
    copy_model(artifacts, "three", digits=3)
    words = ("classify", PHOTOS / "bee.jpeg", "--model", "three", "--artifacts", artifacts)
    engine = FakeEngine(classes=3)
    result = topfive(*words, "--out", tmp_path / "r.csv", engine=engine)
    refused = topfive(*words, "--out", tmp_path / "four.csv", "--top-k", "4", engine=engine)

    assert result.exit_code == 0, result.output
    columns = [name for name in table(tmp_path / "r.csv")[0] if name.endswith("_label")]
    assert columns == [f"top{rank}_label" for rank in (1, 2, 3)]
    assert refused.exit_code == 1
    assert "top_k is 4; three has classes for 1 to 3" in refused.stderr
    assert sum(engine.batches) == 1
