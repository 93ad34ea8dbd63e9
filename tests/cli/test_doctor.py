"""`topfive doctor` on scripted machines: its screen and its status."""

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from models.artifact.artifact import GRAPH, load, read_manifest
from models.artifact.engine_plan import write_plan
from models.weights.hosts import TORCHVISION
from service.common.gpus import Cards
from service.common.types import Runtime
from service.engines.selection.compatibility import Machine
from service.engines.selection.opening import open_engine
from service.engines.selection.parity import reference_of
from service.engines.selection.select import EngineOptions, installed
from tests.command_line import topfive
from tests.engines.test_compatibility import ADA, NO_CARD, TURING, machine
from tests.engines.test_parity_check import Faithful
from tests.fleet import copy_model
from tests.models.test_plan import CONTENT, record
from tests.models.test_tuning import installed_here, keep, trial


def plan(artifacts: Path, **changes: object) -> None:
    """Put a plan with that record into the artifact of `tiny`."""
    graph = read_manifest(artifacts, "tiny")[1].files[GRAPH]
    write_plan(artifacts / "tiny" / "1", CONTENT, record(**{"graph_sha256": graph, **changes}))


def doctor(artifacts: Path, *words: object, where: Machine = NO_CARD, columns: int = 200) -> Result:
    """Run the command for `tiny` with any ports on that machine, in a terminal of that width."""
    folders = ("--artifacts", artifacts, "--cache", artifacts / "cache")
    models = () if "--models" in words else ("--models", "tiny")
    return topfive("doctor", *folders, *models, "--port", 0, "--grpc-port", 0, *words, columns=columns, obj=where)


def lines(result: Result, start: str) -> list[str]:
    """The lines that start so, without the start."""
    return [line.removeprefix(start).strip() for line in result.stdout.splitlines() if line.startswith(start)]


def broken(result: Result) -> list[str]:
    """What keeps `serve` from starting."""
    found = lines(result, "serve cannot start: ")
    assert result.exit_code == bool(found)
    return found


RTX = "not installed: pip install '.[tensorrt-rtx]'"
BUILD = "run: topfive export tiny --engine tensorrt"
DRIVER = replace(NO_CARD, driver="580.82.07")
ONE_OF_TWO = replace(machine(ADA), cards=Cards((ADA,), "GPU 0 cannot be used: busy"))


@pytest.mark.parametrize(
    ("built", "where", "runtime", "advice"),
    [
        (False, NO_CARD, Runtime.OPENVINO, []),
        (False, DRIVER, Runtime.OPENVINO, ["no GPU can be used: no CUDA-capable device is detected"]),
        (False, machine(TURING), Runtime.OPENVINO, [f"{BUILD} --precision fp16 --target this"]),
        (True, machine(TURING), Runtime.OPENVINO, ["built for sm86, sm89; here is NVIDIA GeForce RTX 2080 Ti (sm75)"]),
        (True, machine(ADA), Runtime.TENSORRT_RTX, []),
        (True, ONE_OF_TWO, Runtime.TENSORRT_RTX, ["GPU 0 cannot be used: busy"]),
    ],
)
def test_cards(artifacts: Path, built: bool, where: Machine, runtime: Runtime, advice: list[str]) -> None:
    """doctor names the runtime that would serve, and what to do if a card cannot be used or an engine does not fit."""
    if built:
        plan(artifacts)
    result = doctor(artifacts, where=where)

    assert lines(result, "tiny v1 ")[0].startswith("untrained")
    assert lines(result, "tiny would be served by ") == [runtime]
    assert (": fits" in result.stdout) == (runtime is Runtime.TENSORRT_RTX)
    assert broken(result) == []
    better = lines(result, "better: ")
    assert [text in line for text, line in zip(advice, better, strict=True)] == [True] * len(advice)


def test_runtime_that_was_tuned(artifacts: Path) -> None:
    """The runtime of a tuning record comes first, as in `serve`, on the number of CPUs of the record."""
    tuned = trial("onnxruntime", "f32", version=installed_here(Runtime.ONNXRUNTIME))
    keep(load(artifacts, "tiny"), tuned)

    for cpus, runtime in ((2, "onnxruntime"), (1, "openvino")):
        assert lines(doctor(artifacts, "--cpus", cpus), "tiny would be served by ") == [runtime]


def test_engine_that_is_known_to_fail(artifacts: Path) -> None:
    """An engine that failed its check at an earlier start would not serve; the advice names the difference."""
    plan(artifacts)
    where = machine(ADA)
    artifact = load(artifacts, "tiny")
    reference = reference_of(artifact)

    def build(*_: object) -> Faithful:
        return Faithful(reference, error=0.2)

    opened = open_engine(artifact, EngineOptions(cache=artifacts / "cache"), look=lambda: where, build_plan=build)
    opened.engine.close()
    result = doctor(artifacts, where=where)

    assert ": fits" in result.stdout
    assert lines(result, "tiny would be served by ") == [opened.engine.describe().runtime] == ["openvino"]
    assert broken(result) == []
    assert "its answers on this GPU differ" in lines(result, "better: ")[0]
    assert "its answers on this GPU differ" in broken(doctor(artifacts, "--precision", "fp16", where=where))[0]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["--runtime", "tensorrt"],
            "nothing runs tiny: .*" + ("--engine tensorrt " if installed(Runtime.TENSORRT) else r"\[tensorrt\]"),
        ),
        (["--precision", "int8"], "nothing runs tiny: .*int8"),
        (["--models", "tiny", "--models", "resnet50"], "^resnet50 is not exported; run: topfive export resnet50 --art"),
        (["--models", "resnet5"], "no model 'resnet5'; did you mean resnet50"),
    ],
)
def test_what_cannot_be_served(artifacts: Path, words: list[str], reason: str) -> None:
    """What keeps `serve` from starting is broken, with the reason and what to do."""
    [problem] = broken(doctor(artifacts, *words))

    assert re.search(reason, problem)


def test_damaged_artifacts(artifacts: Path) -> None:
    """A damaged manifest and a missing file are broken; a damaged record of an engine is named and is not."""
    (artifacts / "tiny" / "1" / "engines").mkdir()
    (artifacts / "tiny" / "1" / "engines" / "zzz.json").write_text("{")
    result = doctor(artifacts)
    assert broken(result) == []
    assert "zzz.json" in result.stdout
    (artifacts / "tiny" / "1" / GRAPH).unlink()
    assert "lacks model.onnx" in broken(doctor(artifacts))[0]
    (artifacts / "tiny" / "1" / "manifest.json").write_text("{}")
    assert "is not a manifest that this version reads" in broken(doctor(artifacts))[0]


def test_ports(artifacts: Path) -> None:
    """A port is broken if another process listens on it or two options name it; the listener gets no connection."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        result = doctor(artifacts, "--host", "127.0.0.1", "--port", number)
        taken.setblocking(False)
        with pytest.raises(BlockingIOError):
            taken.accept()

    assert [line.split()[0] for line in lines(result, "REST port") + lines(result, "gRPC port")] == [
        f"{number}:",
        "any",
    ]
    assert f"port {number} of 127.0.0.1" in broken(result)[0]
    assert broken(doctor(artifacts, "--port", number)) == []
    twice = f"port {number} is asked for twice; choose another --port or --grpc-port"
    assert broken(doctor(artifacts, "--port", number, "--grpc-port", number)) == [twice]


def test_cache(artifacts: Path) -> None:
    """A missing cache is no problem and is not created; a file in its place is advice, and nothing is broken."""
    assert lines(doctor(artifacts), "cache") == [f"{artifacts / 'cache'}: can be written"]
    assert not (artifacts / "cache").exists()
    (artifacts / "cache").write_text("")
    result = doctor(artifacts)
    assert broken(result) == []
    assert "is not a folder; name another folder with --cache" in lines(result, "better: ")[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_cache_of_another(artifacts: Path) -> None:
    """A cache that this user cannot write is a problem."""
    (artifacts / "cache").mkdir(mode=0o500)
    assert "cannot be written by this user" in doctor(artifacts).stdout


def test_packages(artifacts: Path) -> None:
    """Each package has its version, or the command that installs it."""
    result = doctor(artifacts, where=replace(NO_CARD, versions={}))

    assert lines(result, "TensorRT ") == ["not installed: pip install '.[tensorrt]'", f"for RTX  {RTX}"]
    assert lines(result, "OpenVINO")[0][0].isdigit()


def test_untrained(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained models with published weights are named, and whether the host of the weights answers, asked once."""
    asked: list[str] = []

    def silent(url: str) -> str:
        asked.append(url)
        return "no route"

    monkeypatch.setattr("models.weights.hosts.silent", silent)
    for name in ("googlenet", "resnet18", "lenet5"):
        copy_model(artifacts, name)
    found = lines(doctor(artifacts), "better: ")

    assert [one.split()[0] for one in found if "is untrained" in one] == ["googlenet", "lenet5", "resnet18"]
    assert f"{TORCHVISION} cannot be reached: no route; run: topfive export googlenet" in found[0]
    assert asked == [TORCHVISION]


def test_status(artifacts: Path) -> None:
    """If `serve` could not start, the status is 1, and the last line is the whole reason."""
    result = doctor(artifacts, "--models", "vgg16", columns=80)

    assert result.exit_code == 1
    reason = f"vgg16 is not exported; run: topfive export vgg16 --artifacts {artifacts}"
    assert result.output.splitlines()[-1] == f"serve cannot start: {reason}"


@pytest.mark.parametrize("columns", [80, 120])
def test_screen(artifacts: Path, columns: int) -> None:
    """The output fits one screen and the width of the terminal; its last line is the result."""
    plan(artifacts)
    result = doctor(artifacts, columns=columns)

    assert result.exit_code == 0
    printed = result.output.splitlines()
    assert max(len(line) for line in printed) <= columns
    assert len(printed) <= 24
    assert printed[-1].startswith("tiny would be served by ")
    assert any(line.split()[:2] == ["tiny", "v1"] for line in printed)


def test_imports_no_torch(artifacts: Path) -> None:
    """Looking at a machine loads neither torch nor a library of TensorRT."""
    script = (
        "import sys; from click.testing import CliRunner; from service.cli.main import main\n"
        "result = CliRunner().invoke(main, ['doctor', '--artifacts', sys.argv[1]])\n"
        "assert 'tiny' in result.output\n"
        "print({'torch', 'tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(artifacts)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout == "set()\n"
