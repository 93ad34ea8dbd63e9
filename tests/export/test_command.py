"""The command `topfive export`: exit codes, messages, `--missing`, and that options and variables are the same."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from export import terminal
from export.command import export_command
from export.common import Reporter
from export.parity_gate import ParityError
from export.pipeline import ExportResult
from export.weights_choice import WeightsChoice
from models.artifact.artifact import ArtifactError, WeightRecord, WeightSource, load, read_manifest, versions
from models.artifact.quantized import read_quantized
from models.catalog import Architecture
from service.cli.main import main
from tests.download_host import Host

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs `topfive export` with these arguments and variables."""

    def invoke(*arguments: str | Path, **variables: str) -> Result:
        return CliRunner().invoke(main, ["export", *map(str, arguments)], env=variables)

    return invoke


@dataclass(frozen=True, slots=True)
class Call:
    """What one export was asked for."""

    name: str
    choice: WeightsChoice
    root: Path


Script = Callable[..., list[Call]]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, exported: Path) -> Script:
    """Replaces exports by a script: for each model by name what happens, nothing where it is not named."""

    def start(**script: Exception | str) -> list[Call]:
        calls: list[Call] = []

        def pretend(architecture: Architecture, choice: WeightsChoice, root: Path, reporter: Reporter) -> ExportResult:
            calls.append(Call(architecture.name, choice, root))
            outcome = script.get(architecture.name)
            if isinstance(outcome, Exception):
                raise outcome
            reporter.step("network and weights")
            reporter.phase("download", 1_000_000, 5_000_000)
            return ExportResult(7, load(exported, "tiny").manifest, outcome)

        monkeypatch.setattr("export.pipeline.export", pretend)
        return calls

    return start


def present(root: Path, exported: Path, name: str, weights: WeightRecord) -> Path:
    """Put an artifact of `name` under `root` whose manifest names these weights; its graph is that of `tiny`."""
    folder = root / name / "1"
    shutil.copytree(exported / "tiny" / "1", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    changed = manifest | {"name": name, "weights": weights.model_dump(mode="json")}
    (folder / "manifest.json").write_text(json.dumps(changed))
    return folder


DOWNLOADED = "squeezenet1_1@IMAGENET1K_V1"
UNTRAINED = WeightRecord(source=WeightSource.UNTRAINED, name="untrained", seed=1)
PRETRAINED = WeightRecord(source=WeightSource.PRETRAINED, name="IMAGENET1K_V1", sha256="0" * 64)


def test_export_writes_an_artifact_and_says_so(run: Run, tmp_path: Path) -> None:
    """`topfive export tiny` ends with 0 and names the folder, the weights and the engines; `-v` shows the figures."""
    short, result = run("tiny", "--artifacts", tmp_path / "other"), run("tiny", "--artifacts", tmp_path, "-v")

    assert result.exit_code == 0, result.output
    assert f"tiny is in {tmp_path}/tiny/1, untrained weights" in result.stderr
    for report in load(tmp_path, "tiny").manifest.parity:
        assert f"{report.runtime} {report.precision}: max |dp|" in result.stderr
    assert "  passed in OpenVINO f32" in short.stderr
    assert "|dp|" not in short.stderr
    assert result.stdout == ""


def test_console_script_exports_the_same_file_in_another_process(exported: Path, tmp_path: Path) -> None:
    """The installed command in a process of its own, with another hash seed, writes the same graph byte for byte."""
    script = Path(sys.executable).parent / "topfive"
    variables = os.environ | {"PYTHONHASHSEED": "42", "TOPFIVE_ARTIFACTS": str(tmp_path), "PYTHONWARNINGS": "error"}

    done = subprocess.run(
        [str(script), "export", "tiny"], env=variables, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert load(tmp_path, "tiny").manifest.files == load(exported, "tiny").manifest.files
    assert done.stdout == ""
    assert "\x1b" not in done.stderr  # no terminal, no colours


def test_names(run: Run, scripted: Script) -> None:
    """`a,b`, `a b` and `a, b` are the same list, and each model is exported once; no name is a usage error.

    So is a misspelt one, with the names that look like it, before anything is exported.
    """
    calls = scripted()

    assert run().exit_code == run(",").exit_code == 2
    unknown = run("tiny", "googlnet")
    assert unknown.exit_code == 2
    assert "there is no model 'googlnet'; did you mean googlenet" in unknown.output
    assert calls == []
    assert run("tiny,alexnet", "googlenet,", "tiny", " resnet50 ").exit_code == 0
    assert [call.name for call in calls] == ["tiny", "alexnet", "googlenet", "resnet50"]


def test_one_failure_does_not_stop_the_others(run: Run, scripted: Script) -> None:
    """Models after one that failed are exported all the same; the exit code is 1 and the reason is shown."""
    calls = scripted(alexnet=ParityError("alexnet differs from PyTorch [badly]"))

    result = run("alexnet", "tiny")

    assert result.exit_code == 1
    assert [call.name for call in calls] == ["alexnet", "tiny"]
    assert "alexnet was not exported: alexnet differs from PyTorch [badly]" in result.stderr
    assert "tiny is in artifacts/tiny/7" in result.stderr


def test_fallback_to_untrained_weights_is_loud(run: Run, scripted: Script) -> None:
    """Where `auto` took untrained weights the reason, what it means and the way out are on the screen."""
    scripted(googlenet="http://host/googlenet.pth cannot be reached: no route")

    result = run("googlenet")

    assert result.exit_code == 0
    assert "cannot be reached: no route" in result.stderr
    assert "UNTRAINED" in result.stderr
    assert "topfive export googlenet --weights pretrained" in result.stderr


def test_bad_weights_file_is_an_error(run: Run, tmp_path: Path) -> None:
    """A weights file that is not a state dict ends with 1 and one line that names it; nothing is left."""
    file, root = tmp_path / "bad.pth", tmp_path / "artifacts"
    file.write_bytes(b"this is no pickle")

    result = run("tiny", "--weights", file, "--artifacts", root)

    assert result.exit_code == 1
    assert "tiny was not exported:" in result.stderr
    assert f"{file} cannot be read as a state dict" in result.stderr
    assert not isinstance(result.exception, BaseException) or isinstance(result.exception, SystemExit)
    assert not root.exists()


def test_pretrained_that_cannot_be_reached_is_an_error(
    run: Run, tmp_path: Path, exported: Path, unreachable: str
) -> None:
    """`--weights pretrained` ends with 1 where the host does not answer, though an untrained model is there."""
    present(tmp_path, exported, DOWNLOADED, UNTRAINED)

    arguments = ("--weights", "pretrained", "--weights-mirror", unreachable, "--artifacts", tmp_path)
    result = run(DOWNLOADED, "--missing", *arguments)

    assert result.exit_code == 1
    assert f"{DOWNLOADED} was not exported:" in result.stderr
    assert f"{unreachable}/squeezenet1_1-b8a52dc0.pth cannot be reached" in result.stderr
    assert versions(tmp_path, DOWNLOADED) == [1]


def test_artifacts_folder_that_cannot_be_written_is_an_error(run: Run, tmp_path: Path) -> None:
    """A folder that cannot be made is one line with the reason and exit code 1, not a traceback."""
    (tmp_path / "file").write_text("in the way")

    result = run("tiny", "--artifacts", tmp_path / "file" / "artifacts")

    assert result.exit_code == 1
    assert "tiny was not exported:" in result.stderr
    assert "Not a directory" in result.stderr


@pytest.mark.parametrize(
    ("name", "there", "exported_from"),
    [
        ("googlenet", None, [None]),
        ("googlenet", PRETRAINED, []),
        ("googlenet", PRETRAINED.model_copy(update={"source": WeightSource.FILE}), []),
        ("googlenet", UNTRAINED, [WeightSource.PRETRAINED]),
        ("tiny", UNTRAINED, []),
    ],
    ids=["nothing", "pretrained", "file", "untrained", "nothing published"],
)
def test_missing(
    run: Run,
    tmp_path: Path,
    exported: Path,
    scripted: Script,
    name: str,
    there: WeightRecord | None,
    exported_from: list[WeightSource | None],
) -> None:
    """`--missing` exports what is not there, keeps trained weights, and replaces untrained ones by published ones."""
    calls = scripted()
    if there is not None:
        present(tmp_path, exported, name, there)

    with closing(Host()) as host:
        result = run(name, "--missing", "--artifacts", tmp_path, "--weights-mirror", host.url)

    assert result.exit_code == 0
    assert [call.choice.source for call in calls] == exported_from
    assert calls or f"{name}: exported already, {there.source if there else ''} weights" in result.stderr


def test_missing_keeps_untrained_weights_where_the_host_cannot_be_reached(
    run: Run, tmp_path: Path, exported: Path, unreachable: str
) -> None:
    """With `auto` and no connection the untrained model stays as it is, with the warning and exit code 0."""
    folder = present(tmp_path, exported, DOWNLOADED, UNTRAINED)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    result = run(DOWNLOADED, "--missing", "--weights-mirror", unreachable, "--artifacts", tmp_path)

    assert result.exit_code == 0
    assert "UNTRAINED" in result.stderr
    assert f"{unreachable} cannot be reached" in result.stderr
    assert versions(tmp_path, DOWNLOADED) == [1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_missing_looks_at_the_sha256_of_a_file(run: Run, tmp_path: Path, exported: Path, scripted: Script) -> None:
    """The same file again is there already; another content under the same name, or no file at all, is not."""
    calls = scripted()
    file = tmp_path / "mine.pth"
    file.write_bytes(b"first")
    digest = hashlib.sha256(b"first").hexdigest()
    present(tmp_path, exported, "tiny", WeightRecord(source=WeightSource.FILE, name="mine.pth", sha256=digest))

    arguments = ("tiny", "--missing", "--weights", file, "--artifacts", tmp_path)
    assert run(*arguments).exit_code == 0
    assert calls == []

    file.write_bytes(b"second")
    assert run(*arguments).exit_code == 0
    assert len(calls) == 1


def test_missing_weights_file_is_found_first(run: Run, scripted: Script, tmp_path: Path) -> None:
    """A weights file that is not there is a usage error before PyTorch is imported, and so is a folder."""
    calls = scripted()
    script = (
        "import sys\nfrom service.cli.main import main\n"
        "try: main(['export', 'tiny', '--weights', 'nosuch.pth'], standalone_mode=False)\n"
        "except Exception as error: print(error.message, 'torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)

    assert done.stdout == "nosuch.pth is not there; give auto, pretrained, untrained or a file False\n"
    folder = run("tiny", "--weights", tmp_path)
    assert (folder.exit_code, calls) == (2, [])
    assert "is a folder" in folder.output


def test_lines_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns no word and no number is broken, and a path that is longer than a line stays whole."""
    long_path = "artifacts/" * 12
    printed = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=printed, force_terminal=True, width=80, color_system=None))

    terminal.print_line(text := "  openvino bf16: cosine 0.999932 (at least 0.99), top-1 agrees in 93.8 % of 48 images")
    terminal.print_line(f"tiny is in {long_path}")

    first, second, third = printed.getvalue().splitlines()
    assert f"{first} {second}".split() == text.split()
    assert third == f"tiny is in {long_path}"


def test_failed_export_leaves_no_spinner(monkeypatch: pytest.MonkeyPatch) -> None:
    """When an export ends, the last line of its progress is erased."""
    printed = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=printed, force_terminal=True, width=80))

    def fail() -> None:
        with terminal.ProgressBar("tiny"):
            raise ParityError

    with pytest.raises(ParityError):
        fail()

    assert printed.getvalue().endswith("\x1b[1A\x1b[2K")


def test_missing_keeps_what_comes_with_topfive(run: Run, tmp_path: Path, scripted: Script) -> None:
    """The packaged model is not exported again because it is missing in the folder; without --missing it is."""
    calls = scripted()
    kept = run("squeezenet1_1", "--missing", "--artifacts", tmp_path)
    assert (kept.exit_code, calls) == (0, [])
    assert "squeezenet1_1: comes with topfive, pretrained weights" in kept.stderr

    run("squeezenet1_1", "--artifacts", tmp_path)
    assert [call.name for call in calls] == ["squeezenet1_1"]


def test_missing_replaces_an_artifact_that_cannot_be_read(
    run: Run, tmp_path: Path, exported: Path, scripted: Script
) -> None:
    """A damaged manifest is named on the screen and the model exported again."""
    calls = scripted()
    folder = present(tmp_path, exported, "googlenet", PRETRAINED)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError):
        read_manifest(tmp_path, "googlenet")

    result = run("googlenet", "--missing", "--artifacts", tmp_path)

    assert result.exit_code == 0
    assert f"{folder / 'manifest.json'} is not a manifest" in result.stderr
    assert [call.choice.source for call in calls] == [None]


def test_every_option_shows_its_variable_and_its_default(run: Run) -> None:
    """`--help` has the environment variable and the default of each option."""
    result = run("--help")
    text = " ".join(result.output.split())

    assert result.exit_code == 0
    options = [one for one in export_command.params if isinstance(one, click.Option)]
    own = {"weights", "artifacts", "weights_mirror", "missing", "verbose", "engine", "cache"}
    of_engines = {"precision", "target", "batch", "calibration", "samples"}
    assert {one.name for one in options} == own | of_engines
    for one in options:
        assert one.envvar == f"TOPFIVE_{'ENGINE_' if one.name in of_engines else ''}{str(one.name).upper()}"
        (rest,) = text.split(f"{one.opts[0]} ")[1:2] or [""]
        assert f"[env var: {one.envvar}; default: " in rest.partition(" --")[0], one.name


def test_variables_stand_for_options(run: Run, tmp_path: Path, exported: Path, scripted: Script) -> None:
    """Each option can be given by its variable, and the option wins where both are given."""
    calls = scripted()
    present(tmp_path, exported, "alexnet", PRETRAINED)
    variables = {
        "TOPFIVE_WEIGHTS": "pretrained",
        "TOPFIVE_ARTIFACTS": str(tmp_path),
        "TOPFIVE_WEIGHTS_MIRROR": "http://mirror",
        "TOPFIVE_MISSING": "1",
    }

    result = run("alexnet", "googlenet", **variables)
    run("googlenet", "--weights", "untrained", "--artifacts", "elsewhere", **variables)

    assert "alexnet: exported already" in result.stderr
    assert calls == [
        Call("googlenet", WeightsChoice(WeightSource.PRETRAINED, mirror="http://mirror"), tmp_path),
        Call("googlenet", WeightsChoice(WeightSource.UNTRAINED, mirror="http://mirror"), Path("elsewhere")),
    ]


def test_export_without_torch_names_the_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an install that only serves, the command says what to install."""
    monkeypatch.delitem(sys.modules, "export.pipeline")
    monkeypatch.setitem(sys.modules, "torch", None)

    result = run("tiny")

    assert result.exit_code == 1
    assert "torch is not installed; exporting needs: pip install '.[export]'" in result.output


def test_int8_for_cpus(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--engine openvino` quantizes the exported model and prints how; with --missing it is kept."""
    monkeypatch.setattr("export.quantization._ROUND_S", 0.01)
    done = run("tiny", "--engine", "openvino", "--artifacts", tmp_path)
    again = run("tiny", "--engine", "openvino", "--precision", "int8", "--missing", "--artifacts", tmp_path)

    assert done.exit_code == again.exit_code == 0, done.output
    graph = read_quantized(load(tmp_path, "tiny"))
    assert graph is not None
    assert f"tiny has an int8 graph, {graph.path()}" in done.stderr
    assert "NNCF" in done.stderr
    assert "images/s on this machine: f32" in done.stderr
    assert "tiny: quantized already" in again.stderr
    assert read_quantized(load(tmp_path, "tiny")) == graph

    graph.path().write_text("damaged")
    mended = run("tiny", "--engine", "openvino", "--missing", "--artifacts", tmp_path)
    assert mended.exit_code == 0
    newer = read_quantized(load(tmp_path, "tiny"))
    assert newer is not None
    assert newer.path().read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "openvino", "--precision", "fp16"], "--engine openvino is for int8"),
        (["--engine", "openvino", "--target", "sm89"], "--target does not apply to --engine openvino"),
        (["--engine", "openvino", "--batch", "1,2,3"], "--batch does not apply to --engine openvino"),
        (["--engine", "tensorrt-rtx", "--samples", "300"], "--samples does not apply to --engine tensorrt-rtx"),
        (["--samples", "300"], "--samples without --engine; name openvino, tensorrt or tensorrt-rtx"),
        (["--engine", "openvino", "--samples", "9"], "9 is not in the range x>=10"),
    ],
)
def test_options_that_do_not_fit(run: Run, scripted: Script, options: list[str], said: str) -> None:
    """They are usage errors before anything is exported."""
    calls = scripted()
    result = run("tiny", *options)

    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert calls == []


def test_failed_quantization(run: Run, tmp_path: Path) -> None:
    """Too few photos: exit status 1, the reason, and the export stays."""
    (tmp_path / "photos").mkdir()
    result = run("tiny", "--engine", "openvino", "--calibration", tmp_path / "photos", "--artifacts", tmp_path)

    assert result.exit_code == 1
    assert "tiny was not quantized" in result.stderr
    assert f"no image in {tmp_path / 'photos'}" in result.stderr
    assert load(tmp_path, "tiny").manifest.name == "tiny"
