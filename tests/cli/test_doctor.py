"""`topfive doctor`: what it finds on machines of the test's choice and on this one, and when its status is 1."""

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
from models.artifact.tuning import write_tuning
from service.cli.diagnosis import Diagnosis, diagnose
from service.common.cpus import Host
from service.common.gpus import Cards
from service.common.settings import Settings
from service.common.types import Precision, Runtime
from service.engines.selection.compatibility import Machine
from service.engines.selection.cpu_layout import conditions_here, installed_version, tuning_files
from service.engines.selection.opening import open_engine
from service.engines.selection.parity import reference_of
from service.engines.selection.select import EngineOptions, installed
from tests.cli.command_line import topfive
from tests.engines.test_compatibility import ADA, NO_CARD, TURING, machine
from tests.engines.test_parity_check import Faithful
from tests.models.test_plan import CONTENT, record
from tests.models.test_tuning import record as tuning_record
from tests.models.test_tuning import trial
from tests.test_layers import ROOT

HOST = Host(2, 16, ("AVX2",), 32 << 30, 4 << 30)


def settings(artifacts: Path, *models: str, **changes: Any) -> Settings:
    """Those of a server of that folder, on any ports."""
    ports = {"port": 0, "grpc_port": 0}
    return Settings(models=models or ("tiny",), artifacts=artifacts, cache=artifacts / "cache", **{**ports, **changes})


def found(given: Settings, where: Machine = NO_CARD) -> Diagnosis:
    """The diagnosis of that machine."""
    return diagnose(given, look=lambda: where, measure=lambda: HOST)


def plan(artifacts: Path, **changes: object) -> None:
    """Put a plan with that record into the artifact of `tiny`."""
    graph = read_manifest(artifacts, "tiny")[1].files[GRAPH]
    write_plan(artifacts / "tiny" / "1", CONTENT, record(**{"graph_sha256": graph, **changes}))


def doctor(artifacts: Path, *words: object, columns: int = 120) -> Result:
    """The command's outcome on any ports, in a terminal of that width."""
    return topfive("doctor", "--artifacts", artifacts, "--port", 0, "--grpc-port", 0, *words, columns=columns)


BUILD = "run: topfive export tiny --engine tensorrt"
DRIVER = replace(NO_CARD, driver="580.82.07")
ONE_OF_TWO = replace(machine(ADA), cards=Cards((ADA,), "card 0 cannot be used: busy"))


@pytest.mark.parametrize(
    ("built", "where", "runtime", "advice"),
    [
        (False, NO_CARD, Runtime.OPENVINO, []),
        (False, DRIVER, Runtime.OPENVINO, ["no card can be used: no CUDA-capable device is detected"]),
        (False, machine(TURING), Runtime.OPENVINO, [f"{BUILD} --precision fp16 --target this"]),
        (True, machine(TURING), Runtime.OPENVINO, ["built for sm86, sm89; here is NVIDIA GeForce RTX 2080 Ti (sm75)"]),
        (True, machine(ADA), Runtime.TENSORRT_RTX, []),
        (True, ONE_OF_TWO, Runtime.TENSORRT_RTX, ["card 0 cannot be used: busy"]),
    ],
)
def test_cards(artifacts: Path, built: bool, where: Machine, runtime: Runtime, advice: list[str]) -> None:
    """The runtime that would serve, and what to do where a card could serve or an engine does not fit."""
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
    """What was measured to be the best comes first, as in `serve`; only on as many CPUs as it was measured with."""
    artifact = load(artifacts, "tiny")
    version = installed_version(Runtime.ONNXRUNTIME)
    assert version is not None
    place = tuning_files(artifact, artifacts / "cache")
    kept = tuning_record(trial("onnxruntime", "f32", version=version), conditions=conditions_here(2))
    write_tuning(place, kept.model_copy(update={"graph_sha256": place.graph_sha256}))

    assert found(settings(artifacts, cpus=2)).artifacts[0].runtime is Runtime.ONNXRUNTIME
    assert found(settings(artifacts, cpus=1)).artifacts[0].runtime is Runtime.OPENVINO
    printed = json.loads(doctor(artifacts, "--models", "tiny", "--cpus", 2, "--json").output)
    assert printed["artifacts"][0]["runtime"] == "onnxruntime"


def test_engine_that_is_known_to_fail(artifacts: Path) -> None:
    """What an earlier start measured counts: the engine fits, would not serve, and the advice has the figures."""
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
    assert "its answers on this card differ" in diagnosis.advice[0]
    strict = found(settings(artifacts, precision=Precision.FP16), where)
    assert "its answers on this card differ" in strict.broken[0]


def test_artifact_of_an_older_version(artifacts: Path) -> None:
    """Without reference answers an engine that fits would not serve; what to run is said."""
    plan(artifacts)
    manifest = artifacts / "tiny" / "1" / "manifest.json"
    known = json.loads(manifest.read_text())
    del known["files"]["reference.npz"]
    manifest.write_text(json.dumps(known))
    diagnosis = found(settings(artifacts), machine(ADA))

    assert diagnosis.artifacts[0].runtime is Runtime.OPENVINO
    assert "nothing to check its answers against" in diagnosis.advice[0]
    assert "run: topfive export tiny" in diagnosis.advice[0]


@pytest.mark.parametrize(
    ("models", "changes", "reason"),
    [
        (
            ["tiny"],
            {"runtime": Runtime.TENSORRT},
            "nothing runs tiny: .*" + ("--engine tensorrt " if installed(Runtime.TENSORRT) else r"\[tensorrt\]"),
        ),
        (["tiny"], {"precision": Precision.INT8}, "nothing runs tiny: .*int8"),
        (
            ["tiny"],
            {"runtime": Runtime.ONNXRUNTIME, "precision": Precision.FP16},
            "nothing runs tiny: .*onnxruntime computes in f32",
        ),
        (["tiny", "resnet50"], {}, "^resnet50 is not exported; run: topfive export resnet50 --artifacts /"),
        (["resnet5"], {}, "no model 'resnet5'; did you mean resnet50"),
    ],
)
def test_what_cannot_be_served(artifacts: Path, models: list[str], changes: dict[str, Any], reason: str) -> None:
    """What `serve` would refuse is broken here too, with the reason and what to do."""
    diagnosis = found(settings(artifacts, *models, **changes))

    assert (diagnosis.artifacts[0].runtime is None) == bool(changes)
    [broken] = diagnosis.broken
    assert re.search(reason, broken)


def test_damaged_artifacts(artifacts: Path) -> None:
    """A manifest that cannot be read and a file that is gone are named; so is a record of an engine, without harm."""
    (artifacts / "tiny" / "1" / "engines").mkdir()
    (artifacts / "tiny" / "1" / "engines" / "zzz.json").write_text("{")
    assert found(settings(artifacts)).broken == ()
    assert "zzz.json" in found(settings(artifacts)).artifacts[0].unreadable[0]
    (artifacts / "tiny" / "1" / GRAPH).unlink()
    assert "lacks model.onnx" in found(settings(artifacts)).broken[0]
    (artifacts / "tiny" / "1" / "manifest.json").write_text("{}")
    assert "is not a manifest that this version reads" in found(settings(artifacts)).broken[0]


def test_ports(artifacts: Path) -> None:
    """A port is broken while another process listens on it, which nobody notices, or if it is asked for twice."""
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
    """A cache that is not there yet will be made, and is not made by asking; one that cannot be is advised against."""
    assert found(settings(artifacts)).cache_problem is None
    assert not (artifacts / "cache").exists()
    (artifacts / "cache").write_text("")
    diagnosis = found(settings(artifacts))
    assert diagnosis.broken == ()
    assert "is not a folder; name another folder with --cache" in diagnosis.advice[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_cache_of_another(artifacts: Path) -> None:
    """A folder of somebody else is named."""
    (artifacts / "cache").mkdir(mode=0o500)
    assert "cannot be written by this user" in (found(settings(artifacts)).cache_problem or "")


def test_packages(artifacts: Path) -> None:
    """Each package has its version, or the command that installs it."""
    packages = {one.name: one for one in found(settings(artifacts), replace(NO_CARD, versions={})).packages}

    assert packages["TensorRT"].version is None
    assert packages["TensorRT"].install == "pip install '.[tensorrt]'"
    assert (packages["OpenVINO"].version or "")[0].isdigit()
    assert "CPU" in packages["ONNX Runtime"].details


@pytest.mark.parametrize("columns", [80, 120])
def test_screen(artifacts: Path, columns: int) -> None:
    """One screen: no line of the tables is wider than the terminal, and the verdict is the last line."""
    plan(artifacts)
    result = doctor(artifacts, "--models", "tiny", columns=columns)

    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert max(len(line) for line in lines) <= columns
    assert len(lines) <= 24
    assert lines[-1].startswith("tiny would be served by ")
    assert any(line.split()[:2] == ["tiny", "v1"] for line in lines)


def test_status(artifacts: Path) -> None:
    """Where `serve` could not start the status is 1, and the last line says why in one piece."""
    result = doctor(artifacts, "--models", "vgg16", columns=80)

    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == (
        f"serve cannot start: vgg16 is not exported; run: topfive export vgg16 --artifacts {artifacts}"
    )


def test_json(artifacts: Path) -> None:
    """--json has the same as one object, with the same status."""
    plan(artifacts, flavour=Flavour.TENSORRT, targets=("sm75",))
    result = doctor(artifacts, "--models", "tiny", "--json")
    printed = json.loads(result.output)

    assert result.exit_code == 0
    assert printed["models"] == ["tiny"]
    assert printed["artifacts"][0]["engines"][0]["targets"] == ["sm75"]
    assert [port["number"] for port in printed["ports"]] == [0, 0]
    assert {"machine", "host", "packages", "broken", "advice"} <= printed.keys()


def test_imports_no_torch(artifacts: Path) -> None:
    """Looking at a machine loads neither torch nor a library of TensorRT."""
    script = (
        "import sys; from click.testing import CliRunner; from service.cli.main import main\n"
        "CliRunner().invoke(main, ['doctor', '--artifacts', sys.argv[1]])\n"
        "print({'torch', 'tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(artifacts)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"
