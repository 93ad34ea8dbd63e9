"""`topfive evaluate`: figures on the screen, in files and in the manifest, and a run that resumes after a stop."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from models.artifact.artifact import MANIFEST, read_manifest, sha256
from tests.command_line import SignallingEngine, topfive
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.fleet import copy_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Forty images, one for each of the brightnesses 0 to 39, which are their classes for a fake engine.

    Those of 4 lie in the folder of class 5, and one more file is no image.
    """
    for number in range(40):
        folder = tmp_path / "shades" / str(5 if number == 4 else number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.png").write_bytes(png(number))
    (tmp_path / "shades" / "0" / "bad.png").write_text("no image")
    return tmp_path / "shades"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of the results."""
    return tmp_path / "out"


@pytest.fixture
def engine() -> FakeEngine:
    """The engine of every run of a test."""
    return FakeEngine(max_batch=4)


@pytest.fixture
def command(artifacts: Path, shades: Path, out: Path) -> tuple[object, ...]:
    """Evaluate tiny on the shades."""
    return ("evaluate", shades, "--model", "tiny", "--artifacts", artifacts, "--out", out, "--cpus", "2")


def run(*words: object, engine: FakeEngine | None = None) -> Result:
    """Run a command that succeeds."""
    result = topfive(*words, engine=engine, columns=120)
    assert result.exit_code == 0, result.output
    return result


def reported(out: Path) -> Any:
    """The only model in report.json."""
    (model,) = json.loads((out / "report.json").read_text())["models"]
    return model


def test_figures(command: tuple[object, ...], engine: FakeEngine, artifacts: Path, out: Path) -> None:
    """The screen, every file and the manifest have the right accuracy and interval."""
    result = run(*command, engine=engine)

    model = reported(out)
    assert (model["images"], model["crops"], model["top1"]["percent"]) == (40, 1, pytest.approx(97.5))
    assert [round(model["top1"][side], 2) for side in ("low", "high")] == [87.12, 99.56]
    assert [one["path"] for one in model["unanswered"]] == ["0/bad.png"]
    assert "97.50" in result.stdout
    assert "[87.12, 99.56]" in result.stdout
    assert "no answer: 1" in result.stderr
    assert "0/bad.png: bad_image" in result.stderr
    assert "untrained weights" in result.stderr
    (measured,) = read_manifest(artifacts, "tiny")[1].measured
    assert (measured.dataset, measured.images, measured.acc1, measured.crops) == ("shades", 40, 97.5, 1)
    assert (measured.runtime, measured.precision) == ("fake", "f32")


def test_resumes(command: tuple[object, ...], artifacts: Path, out: Path, tmp_path: Path) -> None:
    """After a stop the same command resumes, and the figures are those of one run.

    After that it runs no image, says so, and writes the same files and the same manifest.
    """
    engine = SignallingEngine(tmp_path / "log", after=8)
    first = topfive(*command, engine=engine, columns=200)
    assert first.exit_code == 143
    assert "the same command without --overwrite resumes" in first.stderr
    assert 8 <= engine.ran().total() < 40

    files = []
    totals = []
    for said in ("resuming: ", "all done by an earlier run"):
        assert said in run(*command, engine=engine).stderr
        assert (reported(out)["images"], reported(out)["top1"]["percent"]) == (40, pytest.approx(97.5))
        totals.append(engine.ran().total())
        files.append([sha256(path) for path in (artifacts / "tiny" / "1" / MANIFEST, *sorted(out.glob("tiny.*s*")))])
    assert files[0] == files[1]
    assert len(files[0]) == 2
    assert totals[0] == totals[1] < 80


def test_ten_crops(command: tuple[object, ...], engine: FakeEngine, artifacts: Path, out: Path, tmp_path: Path) -> None:
    """Ten crops of each image are run; figures and manifest say so; a run of one crop does not resume them."""
    result = run(*command, "--crops", "10", engine=engine)

    assert sum(engine.batches) == 400
    assert "40 images of shades, 10 crops" in result.stdout
    model = reported(out)
    assert (model["crops"], model["images"], model["top1"]["percent"]) == (10, 40, pytest.approx(97.5))
    refused = topfive(*command, engine=engine, columns=200)
    assert (refused.exit_code, "crops was 10 and is now 1" in refused.stderr) == (1, True)

    single = run(*command, "--out", tmp_path / "single", engine=engine)
    assert "40 images of shades, single crop" in single.stdout
    assert [one.crops for one in read_manifest(artifacts, "tiny")[1].measured] == [10, 1]


def test_ensemble(artifacts: Path, shades: Path, out: Path, engine: FakeEngine) -> None:
    """An ensemble runs every image in each member; its results name the members and their published figures.

    No manifest changes.
    """
    copy_model(artifacts, "alexnet")
    manifests = [artifacts / name / "1" / MANIFEST for name in ("tiny", "alexnet")]
    before = [sha256(manifest) for manifest in manifests]
    names = "ensemble: tiny + alexnet,ensemble:tiny+alexnet"
    result = run("evaluate", shades, "--model", names, "--artifacts", artifacts, "--out", out, engine=engine)

    assert sum(engine.batches) == 80
    line = json.loads((out / "ensemble:tiny+alexnet.predictions.jsonl").read_text().splitlines()[0])
    members = [(one["name"], one["version"], one["runtime"]) for one in line["model"]["members"]]
    assert members == [("tiny", 1, "fake"), ("alexnet", 1, "fake")]
    model = reported(out)
    assert (model["model"], model["images"]) == ("ensemble:tiny+alexnet", 40)
    assert model["top1"]["percent"] == pytest.approx(97.5)
    assert [one["model"] for one in model["members"]] == ["tiny", "alexnet"]
    assert "alexnet: weights IMAGENET1K_V1 (not those inside)" in result.stdout
    assert "/models will not show it" in result.stderr
    assert [sha256(manifest) for manifest in manifests] == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ensemble:tiny+digits", "different classes"),
        ("ensemble:tiny+alexnet", "topfive export alexnet"),
        ("digits", "digits does not know '10'"),
    ],
)
def test_refused_models(name: str, reason: str, shades: Path, artifacts: Path, out: Path) -> None:
    """No image is run if the model cannot be opened or does not know a label."""
    copy_model(artifacts, "digits", digits=10)
    engine = FakeEngine(classes=10)
    words = ("evaluate", shades, "--model", name, "--artifacts", artifacts, "--out", out)
    result = topfive(*words, engine=engine, columns=200)

    assert (result.exit_code, reason in result.stderr) == (1, True), result.output
    assert not engine.batches
    assert not out.exists()


def test_changed_dataset(command: tuple[object, ...], engine: FakeEngine, shades: Path) -> None:
    """A run over other images does not resume the results; --overwrite replaces them."""
    run(*command, engine=engine)
    (shades / "7" / "more.png").write_bytes(png(7))

    refused = topfive(*command, engine=engine, columns=200)
    assert refused.exit_code == 1
    assert "dataset was" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert "41 images of shades" in run(*command, "--overwrite", engine=engine).stdout


def test_nothing_readable(artifacts: Path, tmp_path: Path, out: Path) -> None:
    """If no image can be read, the command ends in an error and leaves the manifest as it is."""
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "bad.png").write_text("no image")
    words = ("evaluate", tmp_path / "bad", "--model", "tiny", "--artifacts", artifacts, "--out", out)
    result = topfive(*words, columns=200)

    assert result.exit_code == 1
    assert "none of the 1 images has an answer; 1/bad.png: bad_image" in result.stderr
    assert read_manifest(artifacts, "tiny")[1].measured == ()


def test_unwritable_manifest(
    command: tuple[object, ...], engine: FakeEngine, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the manifest cannot be written, the figures are printed with a warning."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        "models.artifact.measured.write_atomically", refuse
    )  # the tests may run as root, whom no mode stops
    result = run(*command, engine=engine)

    assert "/models will not show this accuracy" in result.stderr
    assert "[87.12, 99.56]" in result.stdout
    assert (out / "report.json").exists()


def test_nobody_reads(command: tuple[object, ...], artifacts: Path, out: Path) -> None:
    """With standard output closed, the files and the manifest are written, without a traceback."""
    program = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1); from service.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, command)], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120
    )

    assert "Traceback" not in done.stderr
    assert (out / "report.json").exists()
    assert len(read_manifest(artifacts, "tiny")[1].measured) == 1


def test_the_photos(trained: Path, shared_data: Path, out: Path) -> None:
    """Trained SqueezeNet is right on ten of ten photos; its published figures are beside that, within 80 columns."""
    photos = shared_data / "photos" / "labels.csv"
    words = ("evaluate", photos, "--model", "squeezenet1_1", "--artifacts", trained, "--out", out)
    result = topfive(*words, columns=80)

    assert result.exit_code == 0, result.output
    model = reported(out)
    assert (model["images"], model["top1"]["percent"], model["top5"]["percent"]) == (10, 100, 100)
    assert model["top1"]["low"] == pytest.approx(72.25, abs=0.01)
    assert "[72.25, 100.00]" in result.stdout
    assert "58.38" in result.stdout
    assert max(map(len, result.stdout.splitlines()[:-2])) <= 80
    lines = [json.loads(line) for line in (out / "squeezenet1_1.predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert all(line["predictions"][0]["class_id"] == line["truth"] for line in lines)
