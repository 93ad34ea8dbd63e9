"""`topfive evaluate`: figures on the screen, in files and in the manifest, and again after a stop."""

import asyncio
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from models.artifact.artifact import LABELS, MANIFEST, load, read_manifest, sha256
from service.cli.main import main
from service.common.settings import Settings
from service.offline.dataset import read_dataset
from service.offline.evaluate_command import Job, evaluate
from service.offline.rows import BulkError
from service.offline.session import StoppedError
from service.server.app import Core
from tests.conftest import png
from tests.fakes import FakeEngine, opener, reached
from tests.fleet import copy_model

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.anyio


def topfive(artifacts: Path, *words: str | Path) -> Result:
    """Run the command in this process."""
    command = ["evaluate", *map(str, words), "--artifacts", str(artifacts)]
    return CliRunner().invoke(main, command, env={"COLUMNS": "120"})


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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


class Runs:
    """Evaluates on one fake engine, so that its images can be counted over several runs."""

    def __init__(
        self, artifacts: Path, shades: Path, out: Path, names: tuple[str, ...] = ("tiny",), crops: int = 1
    ) -> None:
        self.engine = FakeEngine(max_batch=4)
        self.out = out
        self._settings = Settings(models=("tiny",), artifacts=artifacts, cpus=2)
        self._job = Job(read_dataset(shades), names, out, crops)
        self._screen = io.StringIO()
        self._console = Console(file=self._screen, width=120)

    @property
    def images(self) -> int:
        """How many images the engine has run."""
        return sum(self.engine.batches)

    @property
    def journal(self) -> Path:
        """The record of predictions."""
        return self.out / "tiny.predictions.jsonl"

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """The command, without the command line."""
        stop = stop or asyncio.Event()
        opened = lambda settings: Core(settings, opener=opener(self.engine))  # noqa: E731
        await evaluate(self._settings, self._job, (self._console, self._console), stop, opened)

    def said(self) -> str:
        """What was printed."""
        return self._screen.getvalue()


@pytest.fixture
def runs(artifacts: Path, shades: Path, tmp_path: Path) -> Runs:
    """Evaluations of tiny on the shades."""
    return Runs(artifacts, shades, tmp_path / "out")


async def test_figures(runs: Runs, artifacts: Path) -> None:
    """Errors, intervals, class figures and confusions of a run whose answers are known."""
    await runs.run()

    (model,) = json.loads((runs.out / "report.json").read_text())["models"]
    assert (model["images"], model["crops"], model["top1_error"]["percent"]) == (40, 1, pytest.approx(2.5))
    assert [round(model["top1_error"][side], 2) for side in ("low", "high")] == [0.44, 12.88]
    assert [one["path"] for one in model["unanswered"]] == ["0/bad.png"]
    classes = {row["class_id"]: row for row in table(runs.out / "tiny.per_class.csv")}
    assert len(classes) == 39
    assert [classes["5"][name] for name in ("images", "top1_correct", "recall", "precision")] == [
        "2",
        "1",
        "0.5",
        "1.0",
    ]
    assert classes["5"]["mistaken_for"] == load(artifacts, "tiny").labels[4].label
    (confusion,) = table(runs.out / "tiny.confusions.csv")
    assert (confusion["true_class_id"], confusion["predicted_class_id"], confusion["count"]) == ("5", "4", "1")
    said = runs.said()
    assert "2.50 [0.44, 12.88]" in said
    assert "for want of an answer: 1" in said
    assert "0/bad.png: bad_image" in said
    assert "untrained weights" in said
    (measured,) = read_manifest(artifacts, "tiny")[1].measured
    assert (measured.dataset, measured.images, measured.acc1, measured.crops) == ("shades", 40, 97.5, 1)
    assert (measured.runtime, measured.precision) == ("fake", "f32")


async def test_again(runs: Runs, artifacts: Path) -> None:
    """Running it again runs no image, says so, and gives the same files and the same manifest."""
    await runs.run()
    files = {path.name: path.read_bytes() for path in runs.out.iterdir() if path.name != "report.json"}
    manifest = sha256(artifacts / "tiny" / "1" / MANIFEST)

    await runs.run()

    assert runs.images == 40
    assert "nothing is run" in runs.said()
    assert {path.name: path.read_bytes() for path in runs.out.iterdir() if path.name != "report.json"} == files
    assert sha256(artifacts / "tiny" / "1" / MANIFEST) == manifest


async def test_stopped_and_again(runs: Runs) -> None:
    """After a stop the same command goes on: no image is run twice, and the figures are those of one run."""
    stop = asyncio.Event()
    runs.engine.gate.clear()
    task = asyncio.create_task(runs.run(stop))
    await reached(runs.journal.exists)
    stop.set()
    runs.engine.gate.set()
    with pytest.raises(StoppedError, match="the same command goes on"):
        await task
    kept = runs.journal.read_text().count("\n") - 1
    assert 0 < runs.images < 40

    await runs.run()

    assert runs.images == 40
    assert f"going on: {kept} are done" in runs.said()
    (model,) = json.loads((runs.out / "report.json").read_text())["models"]
    assert (model["images"], model["top1_error"]["percent"]) == (40, pytest.approx(2.5))


async def test_ten_crops(artifacts: Path, shades: Path, tmp_path: Path) -> None:
    """Ten crops run ten times as many, are named beside the figures and in the manifest, and are not mixed with one."""
    runs = Runs(artifacts, shades, tmp_path / "out", crops=10)
    await runs.run()

    assert runs.images == 400
    assert "40 images of shades, 10 crops" in runs.said()
    (model,) = json.loads((runs.out / "report.json").read_text())["models"]
    assert (model["crops"], model["images"], model["top1_error"]["percent"]) == (10, 40, pytest.approx(2.5))
    with pytest.raises(BulkError, match="crops was 10 and is now 1"):
        await Runs(artifacts, shades, tmp_path / "out").run()

    single = Runs(artifacts, shades, tmp_path / "single")
    await single.run()
    assert "40 images of shades, single crop" in single.said()
    assert [one.crops for one in read_manifest(artifacts, "tiny")[1].measured] == [10, 1]


async def test_ensemble(artifacts: Path, shades: Path, tmp_path: Path) -> None:
    """An ensemble runs every image in each member, its record names them all, and no manifest is touched."""
    copy_model(artifacts, "other")
    manifests = [artifacts / name / "1" / MANIFEST for name in ("tiny", "other")]
    before = [sha256(manifest) for manifest in manifests]
    runs = Runs(artifacts, shades, tmp_path / "out", ("ensemble: tiny + other", "ensemble:tiny+other"))
    await runs.run()

    assert runs.images == 80
    header = json.loads((runs.out / "ensemble:tiny+other.predictions.jsonl").read_text().splitlines()[0])["settings"]
    assert [(one["model"], one["version"], one["runtime"]) for one in header["members"]] == [
        ("tiny", 1, "fake"),
        ("other", 1, "fake"),
    ]
    (model,) = json.loads((runs.out / "report.json").read_text())["models"]
    assert (model["model"], model["images"], model["top1_error"]["percent"]) == (
        "ensemble:tiny+other",
        40,
        pytest.approx(2.5),
    )
    assert [one["model"] for one in model["members"]] == ["tiny", "other"]
    assert "/models will not show it" in runs.said()
    assert [sha256(manifest) for manifest in manifests] == before


def test_published_of_an_ensemble(artifacts: Path, shades: Path, tmp_path: Path) -> None:
    """Beside an ensemble stands what is published of its members, each under its name."""
    copy_model(artifacts, "alexnet")
    copy_model(artifacts, "googlenet")
    out = tmp_path / "out"
    result = topfive(artifacts, shades, "--model", "ensemble:alexnet+googlenet", "--out", out)

    assert result.exit_code == 0, result.output
    (model,) = json.loads((out / "report.json").read_text())["models"]
    what = [one["what"] for one in model["published"]]
    assert {name.partition(":")[0] for name in what} == {"alexnet", "googlenet"}
    assert "alexnet: weights IMAGENET1K_V1 (not those inside)" in what


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ensemble:tiny", "an ensemble has 2 to 8 members"),
        ("ensemble:tiny+digits", "tiny and digits have different classes"),
        ("ensemble:tiny+alexnet", "topfive export alexnet"),
    ],
)
def test_no_such_ensemble(name: str, reason: str, artifacts: Path, tmp_path: Path) -> None:
    """What makes no ensemble is refused before anything is run, even after a model that could be."""
    copy_model(artifacts, "digits", digits=10)
    (tmp_path / "in" / "7").mkdir(parents=True)
    (tmp_path / "in" / "7" / "a.png").write_bytes(png(7))
    result = topfive(artifacts, tmp_path / "in", "--model", f"tiny,{name}", "--out", tmp_path / "out")

    assert (result.exit_code, reason in result.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


def test_changed_dataset(artifacts: Path, shades: Path, tmp_path: Path) -> None:
    """The record of other images is refused, and --overwrite begins anew."""
    command = (shades, "--model", "tiny", "--out", tmp_path / "out")
    assert topfive(artifacts, *command).exit_code == 0
    (shades / "7" / "more.png").write_bytes(png(7))

    refused = topfive(artifacts, *command)
    assert refused.exit_code == 1
    assert "dataset was" in refused.stderr
    assert "--overwrite" in refused.stderr
    anew = topfive(artifacts, *command, "--overwrite")
    assert anew.exit_code == 0, anew.output
    assert "41 images of shades" in anew.stdout


def test_nothing_readable(artifacts: Path, tmp_path: Path) -> None:
    """Where no image can be read there are no figures but an error, and the manifest stays."""
    folder = tmp_path / "bad"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "bad.png").write_text("no image")
    result = topfive(artifacts, folder, "--model", "tiny", "--out", tmp_path / "none")

    assert result.exit_code == 1
    assert "none of the 1 images has an answer; 1/bad.png: bad_image" in result.stderr
    assert read_manifest(artifacts, "tiny")[1].measured == ()


def test_unknown_labels_run_nothing(artifacts: Path, shades: Path, tmp_path: Path) -> None:
    """A label or a model that is unknown ends it before any image is run, whichever model it is."""
    (shades / "tiger catt").mkdir()
    (shades / "tiger catt" / "a.png").write_bytes(png())
    out = tmp_path / "out"
    unknown = topfive(artifacts, shades, "--model", "tiny", "--out", out)
    assert (unknown.exit_code, "did you mean 'tiger cat'?" in unknown.stderr) == (1, True)
    missing = topfive(artifacts, shades, "--model", "tiny,alexnet", "--out", out)
    assert (missing.exit_code, "did you mean 'tiger cat'?" in missing.stderr) == (1, True)
    (shades / "tiger catt" / "a.png").unlink()
    missing = topfive(artifacts, shades, "--model", "tiny,alexnet", "--out", out)
    assert (missing.exit_code, "topfive export alexnet" in missing.stderr) == (1, True)
    assert not out.exists()


async def test_unwritable_manifest(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the artifacts cannot be written the figures are given all the same, with a warning."""

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("tempfile.mkstemp", refuse)  # the tests may run as root, whom no mode stops
        await runs.run()

    assert "/models will not show this accuracy" in runs.said()
    assert "2.50 [0.44, 12.88]" in runs.said()
    assert (runs.out / "report.json").exists()


def test_nobody_reads(artifacts: Path, shades: Path, tmp_path: Path) -> None:
    """With standard output closed the files and the manifest are written all the same, and nothing is traced."""
    program = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1); from service.cli.main import main; main()"
    words = ("evaluate", shades, "--model", "tiny", "--artifacts", artifacts, "--out", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120
    )

    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "report.json").exists()
    assert len(read_manifest(artifacts, "tiny")[1].measured) == 1


async def test_few_classes(artifacts: Path, tmp_path: Path) -> None:
    """A model of three classes has no top-5, on the screen, in the report and in the manifest."""
    folder = artifacts / "tiny" / "1"
    (folder / LABELS).write_text("class_id,wnid,label\n0,,dark\n1,,grey\n2,,light\n")
    content = json.loads((folder / MANIFEST).read_text())
    content["classes"] = 3
    content["files"][LABELS] = sha256(folder / LABELS)
    (folder / MANIFEST).write_text(json.dumps(content))
    for name, shade in (("dark", 0), ("Grey", 1), ("2", 2)):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.png").write_bytes(png(shade))
    runs = Runs(artifacts, tmp_path / "in", tmp_path / "out")
    runs.engine.classes = 3

    await runs.run()

    (model,) = json.loads((runs.out / "report.json").read_text())["models"]
    assert (model["top5_error"], model["top1_error"]["percent"]) == (None, 0)
    assert "3 classes" in runs.said()
    assert read_manifest(artifacts, "tiny")[1].measured[0].acc5 is None


def test_the_photos(trained: Path, shared_data: Path, tmp_path: Path) -> None:
    """Trained SqueezeNet is right on ten of ten photos, beside its published figures; predictions are kept."""
    out = tmp_path / "out"
    result = topfive(trained, shared_data / "photos" / "labels.csv", "--model", "squeezenet1_1", "--out", out)

    assert result.exit_code == 0, result.output
    (model,) = json.loads((out / "report.json").read_text())["models"]
    assert (model["images"], model["top1_error"]["percent"], model["top5_error"]["percent"]) == (10, 0, 0)
    assert model["top1_error"]["high"] == pytest.approx(27.75, abs=0.01)
    assert (model["published"][0]["top1"], model["published"][0]["on"]) == (41.822, "ImageNet-1k, validation")
    assert "0.00 [0.00, 27.75]" in result.stdout
    assert "41.82" in result.stdout
    lines = [json.loads(line) for line in (out / "squeezenet1_1.predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 11
    assert all(line["predictions"][0]["class_id"] == line["truth"] for line in lines[1:])
