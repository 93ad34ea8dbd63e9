"""`topfive doctor`: its diagnosis of scripted machines, its screen and its status."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from models.artifact.artifact import GRAPH, load, read_manifest
from models.artifact.engine_plan import Flavour, write_plan
from service.cli.diagnosis import Diagnosis, diagnose
from service.common.cpus import Host
from service.common.gpus import Cards
from service.common.settings import Settings
from service.common.types import Precision, Runtime
from service.engines.selection.compatibility import Machine
from service.engines.selection.opening import open_engine
from service.engines.selection.parity import reference_of
from service.engines.selection.select import EngineOptions, installed
from tests.command_line import topfive
from tests.engines.test_compatibility import ADA, NO_CARD, TURING, machine
from tests.engines.test_parity_check import Faithful
from tests.models.test_plan import CONTENT, record
from tests.models.test_tuning import installed_here, keep, trial

HOST = Host(2, 16, ("AVX2",), 32 << 30, 4 << 30)


def settings(artifacts: Path, *models: str, **changes: Any) -> Settings:
    """Settings of a server of that folder, on any ports."""
    ports = {"port": 0, "grpc_port": 0}
    return Settings(models=models or ("tiny",), artifacts=artifacts, cache=artifacts / "cache", **{**ports, **changes})


def found(given: Settings, where: Machine = NO_CARD) -> Diagnosis:
    """The diagnosis on that machine."""
    return diagnose(given, look=lambda: where, measure=lambda: HOST)


def plan(artifacts: Path, **changes: object) -> None:
    """Put a plan with that record into the artifact of `tiny`."""
    graph = read_manifest(artifacts, "tiny")[1].files[GRAPH]
    write_plan(artifacts / "tiny" / "1", CONTENT, record(**{"graph_sha256": graph, **changes}))


def doctor(artifacts: Path, *words: object, columns: int = 120) -> Result:
    """Run the command with any ports, in a terminal of that width."""
    return topfive("doctor", "--artifacts", artifacts, "--port", 0, "--grpc-port", 0, *words, columns=columns)


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
    diagnosis = found(settings(artifacts), where)

    [tiny] = diagnosis.artifacts
    assert (tiny.name, tiny.version, tiny.weights, tiny.damage) == ("tiny", 1, "untrained", None)
    assert tiny.runtime is runtime
    assert [engine.fits for engine in tiny.engines] == [runtime is Runtime.TENSORRT_RTX] * built
    assert diagnosis.broken == ()
    assert [text in line for text, line in zip(advice, diagnosis.advice, strict=True)] == [True] * len(advice)


def test_runtime_that_was_tuned(artifacts: Path) -> None:
    """The runtime of a tuning record comes first, as in `serve`, on the number of CPUs of the record."""
    tuned = trial("onnxruntime", "f32", version=installed_here(Runtime.ONNXRUNTIME))
    keep(load(artifacts, "tiny"), tuned)

    assert found(settings(artifacts, cpus=2)).artifacts[0].runtime is Runtime.ONNXRUNTIME
    assert found(settings(artifacts, cpus=1)).artifacts[0].runtime is Runtime.OPENVINO
    printed = json.loads(doctor(artifacts, "--models", "tiny", "--cpus", 2, "--json").output)
    assert printed["artifacts"][0]["runtime"] == "onnxruntime"


def test_engine_that_is_known_to_fail(artifacts: Path) -> None:
    """An engine that failed its check at an earlier start would not serve; the advice names the difference."""
    plan(artifacts)
    asked, where = settings(artifacts), machine(ADA)
    artifact = load(artifacts, "tiny")
    reference = reference_of(artifact)

    def build(*_: object) -> Faithful:
        return Faithful(reference, error=0.2)

    opened = open_engine(artifact, EngineOptions(cache=asked.cache), look=lambda: where, build_plan=build)
    opened.engine.close()
    diagnosis = found(asked, where)

    [tiny] = diagnosis.artifacts
    assert [engine.fits for engine in tiny.engines] == [True]
    assert tiny.runtime == opened.engine.describe().runtime == "openvino"
    assert diagnosis.broken == ()
    assert "its answers on this GPU differ" in diagnosis.advice[0]
    strict = found(settings(artifacts, precision=Precision.FP16), where)
    assert "its answers on this GPU differ" in strict.broken[0]


@pytest.mark.parametrize(
    ("models", "changes", "reason"),
    [
        (
            ["tiny"],
            {"runtime": Runtime.TENSORRT},
            "nothing runs tiny: .*" + ("--engine tensorrt " if installed(Runtime.TENSORRT) else r"\[tensorrt\]"),
        ),
        (["tiny"], {"precision": Precision.INT8}, "nothing runs tiny: .*int8"),
        (["tiny", "resnet50"], {}, "^resnet50 is not exported; run: topfive export resnet50 --artifacts /"),
        (["resnet5"], {}, "no model 'resnet5'; did you mean resnet50"),
    ],
)
def test_what_cannot_be_served(artifacts: Path, models: list[str], changes: dict[str, Any], reason: str) -> None:
    """What keeps `serve` from starting is broken, with the reason and what to do."""
    diagnosis = found(settings(artifacts, *models, **changes))

    assert (diagnosis.artifacts[0].runtime is None) == bool(changes)
    [broken] = diagnosis.broken
    assert re.search(reason, broken)


def test_damaged_artifacts(artifacts: Path) -> None:
    """A damaged manifest and a missing file are broken; a damaged record of an engine is named and is not."""
    (artifacts / "tiny" / "1" / "engines").mkdir()
    (artifacts / "tiny" / "1" / "engines" / "zzz.json").write_text("{")
    assert found(settings(artifacts)).broken == ()
    assert "zzz.json" in found(settings(artifacts)).artifacts[0].unreadable[0]
    (artifacts / "tiny" / "1" / GRAPH).unlink()
    assert "lacks model.onnx" in found(settings(artifacts)).broken[0]
    (artifacts / "tiny" / "1" / "manifest.json").write_text("{}")
    assert "is not a manifest that this version reads" in found(settings(artifacts)).broken[0]


def test_ports(artifacts: Path) -> None:
    """A port is broken if another process listens on it or two options name it; the listener gets no connection."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        diagnosis = found(settings(artifacts, port=number))
        taken.setblocking(False)
        with pytest.raises(BlockingIOError):
            taken.accept()

    assert [bool(port.problem) for port in diagnosis.ports] == [True, False]
    assert f"port {number} of 127.0.0.1" in diagnosis.broken[0]
    assert found(settings(artifacts, port=number)).broken == ()
    twice = f"port {number} is asked for twice; choose another --port or --grpc-port"
    assert found(settings(artifacts, port=number, grpc_port=number)).broken == (twice,)


def test_cache(artifacts: Path) -> None:
    """A missing cache is no problem and is not created; a file in its place is advice, and nothing is broken."""
    assert found(settings(artifacts)).cache_problem is None
    assert not (artifacts / "cache").exists()
    (artifacts / "cache").write_text("")
    diagnosis = found(settings(artifacts))
    assert diagnosis.broken == ()
    assert "is not a folder; name another folder with --cache" in diagnosis.advice[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_cache_of_another(artifacts: Path) -> None:
    """A cache that this user cannot write is a problem."""
    (artifacts / "cache").mkdir(mode=0o500)
    assert "cannot be written by this user" in (found(settings(artifacts)).cache_problem or "")


def test_packages(artifacts: Path) -> None:
    """Each package has its version, or the command that installs it."""
    packages = {one.name: one for one in found(settings(artifacts), replace(NO_CARD, versions={})).packages}

    assert packages["TensorRT"].version is None
    assert packages["TensorRT"].install == "pip install '.[tensorrt]'"
    assert (packages["OpenVINO"].version or "")[0].isdigit()
    assert "CPU" in packages["ONNX Runtime"].details


def test_status(artifacts: Path) -> None:
    """If `serve` could not start, the status is 1, and the last line is the whole reason."""
    words = ("--models", "vgg16")
    result, printed = doctor(artifacts, *words, columns=80), doctor(artifacts, *words, "--json")

    assert result.exit_code == printed.exit_code == 1
    reason = f"vgg16 is not exported; run: topfive export vgg16 --artifacts {artifacts}"
    assert result.output.splitlines()[-1] == f"serve cannot start: {reason}"
    assert json.loads(printed.output)["broken"] == [reason]


def test_json(artifacts: Path) -> None:
    """--json prints the whole diagnosis as one object."""
    plan(artifacts, flavour=Flavour.TENSORRT, targets=("sm75",))
    result = doctor(artifacts, "--models", "tiny", "--json")
    printed = json.loads(result.output)

    assert result.exit_code == 0
    assert printed["models"] == ["tiny"]
    assert printed["artifacts"][0]["engines"][0]["targets"] == ["sm75"]
    assert [port["number"] for port in printed["ports"]] == [0, 0]
    assert {"machine", "host", "packages", "broken", "advice"} <= printed.keys()


@pytest.mark.parametrize("columns", [80, 120])
def test_screen(artifacts: Path, columns: int) -> None:
    """The output fits one screen and the width of the terminal; its last line is the result."""
    plan(artifacts)
    result = doctor(artifacts, "--models", "tiny", columns=columns)

    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert max(len(line) for line in lines) <= columns
    assert len(lines) <= 24
    assert lines[-1].startswith("tiny would be served by ")
    assert any(line.split()[:2] == ["tiny", "v1"] for line in lines)


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
