"""`topfive classify`: from files to a results file, through the serving path, and again after a stop."""

import csv
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper

from export.gate_images import PHOTOS
from models.artifact.artifact import read_manifest, write_manifest
from models.labels import imagenet_labels, write_labels
from service.cli.main import main
from tests.conftest import png
from tests.fleet import copy_model

ROOT = Path(__file__).resolve().parents[2]


def classify(*words: str | Path) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, ["classify", *map(str, words)], env={"COLUMNS": "200"})


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a results file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tiny(artifacts: Path, *words: str | Path) -> Result:
    """The same with the model tiny."""
    return classify(*words, "--model", "tiny", "--artifacts", artifacts)


def test_photos(artifacts: Path, tmp_path: Path) -> None:
    """Every photo of a folder is a row in order, and the answers are those of predict."""
    out = tmp_path / "r.csv"
    result = tiny(artifacts, PHOTOS, "--out", out, "--top-k", "2")

    assert result.exit_code == 0, result.output
    photos = sorted(str(path) for path in PHOTOS.glob("*.jpeg"))
    assert [row["path"] for row in table(out)] == photos
    predicted = CliRunner().invoke(
        main, ["predict", *photos, "--model", "tiny", "--artifacts", str(artifacts), "--json", "--top-k", "2"]
    )
    wanted = [json.loads(line)["predictions"] for line in predicted.stdout.splitlines()]
    assert [[int(row["top1_class_id"]), int(row["top2_class_id"])] for row in table(out)] == [
        [one["class_id"] for one in predictions] for predictions in wanted
    ]
    assert [float(row["top1_probability"]) for row in table(out)] == pytest.approx(
        [predictions[0]["probability"] for predictions in wanted], rel=1e-4
    )
    assert f"{out}: 10 images" in result.stderr
    assert "untrained weights" in result.stderr
    assert list(tmp_path.glob("*r.csv*")) == [out]


def test_crops_and_ensembles(artifacts: Path, tmp_path: Path) -> None:
    """Ten crops of an ensemble give what predict gives, and the rows say so; any other number of crops is refused."""
    copy_model(artifacts, "other")
    question = ("--model", "ensemble:tiny+other", "--crops", "10", "--top-k", "3", "--artifacts", str(artifacts))
    out, photo = tmp_path / "r.jsonl", PHOTOS / "bee.jpeg"
    result = classify(photo, "--out", out, *question)

    assert result.exit_code == 0, result.output
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    predicted = CliRunner().invoke(main, ["predict", str(photo), "--json", *question])
    wanted = json.loads(predicted.stdout)["predictions"]
    assert [one["class_id"] for one in row["predictions"]] == [one["class_id"] for one in wanted]
    assert [one["probability"] for one in row["predictions"]] == pytest.approx([one["probability"] for one in wanted])
    assert (row["model"]["name"], row["model"]["crops"]) == ("ensemble:tiny+other", 10)
    assert [(one["name"], one["version"]) for one in row["model"]["members"]] == [("tiny", 1), ("other", 1)]

    refused = tiny(artifacts, photo, "--out", tmp_path / "s.csv", "--crops", "3")
    assert (refused.exit_code, "'3' is not one of '1', '10'" in refused.stderr) == (2, True)


def test_bad_files_are_rows(artifacts: Path, tmp_path: Path) -> None:
    """What cannot be answered is a row with its error; the status is 0, and a line says how many."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (folder / "b.png").write_text("not an image")
    (folder / "c.png").write_bytes(b"x" * 5000)
    (folder / "d.png").symlink_to(folder / "gone.png")
    (folder / "list.txt").write_text("a.png\nb.png\nc.png\nd.png\nvanished.png\n.\n")
    result = tiny(artifacts, folder / "list.txt", "--out", tmp_path / "r.jsonl", "--max-image-bytes", "4000")

    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert result.exit_code == 0
    assert [row["error"] and row["error"]["code"] for row in rows] == [
        None,
        "bad_image",
        "too_large",
        "unreadable",
        "unreadable",
        "unreadable",
    ]
    assert rows[4]["error"]["detail"] == "No such file or directory"
    assert len(rows[0]["predictions"]) == 5
    assert rows[0]["model"]["name"] == "tiny"
    assert set(rows[0]["model"]) == {"name", "version", "weights", "runtime", "precision", "crops", "decode"}
    assert "5 could not be classified" in result.stderr


def test_refused_before_anything_runs(artifacts: Path, tmp_path: Path) -> None:
    """An unknown suffix, no image, a finished file in the way and too many classes are refused with what to do."""
    (tmp_path / "r.csv").write_text("mine")
    (tmp_path / "empty").mkdir()

    for words, reason in (
        ((PHOTOS, "--out", tmp_path / "r.xlsx"), ".csv, .jsonl, .parquet"),
        ((tmp_path / "empty", "--out", tmp_path / "s.csv"), "no image below the folder"),
        ((PHOTOS, "--out", tmp_path / "r.csv"), "--overwrite"),
        ((PHOTOS, "--out", tmp_path / "s.csv", "--top-k", "1001"), "classes for 1 to 1000"),
        ((PHOTOS, "--out", tmp_path / "s.csv", "--model", "alexnet"), "topfive export alexnet"),
    ):
        result = classify("--artifacts", artifacts, "--model", "tiny", *words)
        assert result.exit_code == 1
        assert reason in result.stderr
        assert "Traceback" not in result.output
    assert (tmp_path / "r.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "empty", "r.csv"]


def test_overwrite(artifacts: Path, tmp_path: Path) -> None:
    """--overwrite begins anew, over finished results and over an unfinished run of other settings."""
    out = tmp_path / "r.csv"
    out.write_text("mine")
    (tmp_path / "r.csv.partial").write_text('{"settings": {"model": "other"}}\n')

    refused = tiny(artifacts, PHOTOS / "bee.jpeg", "--out", out)
    assert (refused.exit_code, out.read_text()) == (1, "mine")
    assert "model was other and is now tiny" in refused.stderr

    assert tiny(artifacts, PHOTOS / "bee.jpeg", "--out", out, "--overwrite").exit_code == 0
    assert len(table(out)) == 1


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """A folder of forty images, each of its own brightness, which is its class for a fake engine."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(png(number))
    return folder


def process(artifacts: Path, folder: Path, log: Path, wait_after: int) -> subprocess.Popen[str]:
    """The command in a process of its own, on an engine that waits after so many images."""
    command = [sys.executable, "-m", "tests.bulk_process"]
    words = [str(artifacts), str(folder.parent / "r.csv"), str(log), str(wait_after), str(folder)]
    return subprocess.Popen(
        [*command, *words], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def ran(log: Path) -> Counter[int]:
    """How often each image was run by an engine."""
    return Counter(int(line) for line in log.read_text().split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_and_again(number: signal.Signals, artifacts: Path, shades: Path, tmp_path: Path) -> None:
    """After Ctrl-C or SIGTERM the same command goes on: the whole result, in order, and no image was run twice."""
    log, partial = tmp_path / "log", tmp_path / "r.csv.partial"
    first = process(artifacts, shades, log, 12)
    assert first.stdin is not None
    assert first.stderr is not None
    with first:
        while not (partial.exists() and partial.read_text().count("\n") > 12):
            assert first.poll() is None
        first.send_signal(number)
        while "stopping" not in (line := first.stderr.readline()):
            assert line
        first.stdin.close()
        said = first.stderr.read()
        assert first.wait(30) == 128 + number
    done = partial.read_text().count("\n") - 1
    assert 12 <= done < 40
    assert f"stopped: {done} of 40 are done" in said
    assert "the same command goes on" in said
    assert not (tmp_path / "r.csv").exists()

    with process(artifacts, shades, log, 1000) as second:
        _, said = second.communicate(timeout=60)
    assert second.returncode == 0
    assert f"going on: {done} are done" in said
    assert [row["top1_class_id"] for row in table(tmp_path / "r.csv")] == [str(number) for number in range(40)]
    assert ran(log) == Counter(range(40))
    assert not partial.exists()


def test_killed_and_again(artifacts: Path, shades: Path, tmp_path: Path) -> None:
    """After kill -9 every row that was finished is kept and not run again; the result is that of one run."""
    log, partial = tmp_path / "log", tmp_path / "r.csv.partial"
    with process(artifacts, shades, log, 12) as first:
        while not (partial.exists() and partial.read_text().count("\n") > 12):
            assert first.poll() is None
        first.kill()
    kept = {json.loads(line)["predictions"][0]["class_id"] for line in partial.read_text().splitlines()[1:]}
    assert len(kept) >= 12

    with process(artifacts, shades, log, 1000) as second:
        second.communicate(timeout=60)
    assert [row["top1_class_id"] for row in table(tmp_path / "r.csv")] == [str(number) for number in range(40)]
    assert set(ran(log)) == set(range(40))
    assert {shade for shade, count in ran(log).items() if count > 1}.isdisjoint(kept)


def test_fewer_classes_than_five(artifacts: Path, tmp_path: Path) -> None:
    """Where nobody says how many classes, a model of three gives its three; four are refused before anything is run."""
    folder = artifacts / "tiny" / "1"
    model = onnx.load(folder / "model.onnx")
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    bounds = {"s": 0, "e": 3, "a": 1}  # start, end, axis
    model.graph.initializer.extend(numpy_helper.from_array(np.array([value]), name) for name, value in bounds.items())
    cut = helper.make_node("Slice", [softmax.input[0], "s", "e", "a"], ["three"])
    softmax.input[0] = "three"
    place = list(model.graph.node).index(softmax)
    model.graph.node.insert(place, cut)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, folder / "model.onnx")
    write_labels(folder / "labels.csv", imagenet_labels()[:3])
    write_manifest(folder, read_manifest(artifacts, "tiny")[1].model_copy(update={"classes": 3}))
    out = tmp_path / "r.csv"
    result = tiny(artifacts, PHOTOS / "bee.jpeg", "--out", out)
    refused = tiny(artifacts, PHOTOS / "bee.jpeg", "--out", tmp_path / "four.csv", "--top-k", "4")

    assert result.exit_code == 0, result.output
    assert [name for name in table(out)[0] if name.endswith("_label")] == [f"top{rank}_label" for rank in (1, 2, 3)]
    assert refused.exit_code == 1
    assert "top_k is 4; tiny has classes for 1 to 3" in refused.stderr
