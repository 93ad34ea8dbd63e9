"""Engines built for real by TensorRT for RTX, which needs no card: what is in the artifact then, what is refused."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from export.common import OPSET, ExportError
from export.parity_gate import ParityError
from export.pipeline import export
from export.tensorrt.build import build_engines, present_plans
from export.tensorrt.builder import BuildError, BuildJob, build_plan, known_targets
from export.tensorrt.targets import BuildRequest, rtx_targets
from export.weights_choice import WeightsChoice
from models.artifact.artifact import Artifact, WeightSource, load, sha256, versions
from models.artifact.engine_plan import ENGINES, BatchProfile, ComputeCapability, Flavour, read_plans
from models.artifact.reference import REFERENCE
from models.build import build
from models.catalog import CATALOG
from service.cli.main import main
from service.common.gpus import Card, Cards, cards
from service.common.types import Precision
from service.engines.tensorrt.packages import is_installed, module
from tests.conftest import NullReporter
from tests.scripted_builder import Script, fake

Run = Callable[..., Result]
SM75, SM86 = ComputeCapability(7, 5), ComputeCapability(8, 6)
SMALL_PROFILE = BatchProfile(smallest=1, best=2, largest=4)


@pytest.fixture(scope="session")
def rtx() -> ModuleType:
    """The real module of TensorRT for RTX."""
    if not is_installed(Flavour.TENSORRT_RTX):
        pytest.skip("TensorRT for RTX is not installed; run: pip install '.[tensorrt-rtx]'")
    return module(Flavour.TENSORRT_RTX)


@pytest.fixture
def run(rtx: ModuleType, artifacts: Path) -> Run:
    """Runs `topfive export tiny` with these arguments on a copy of the exported tiny network."""

    def invoke(*arguments: str | Path, name: str = "tiny") -> Result:
        common = ["export", name, "--weights", "untrained", "--artifacts", str(artifacts)]
        return CliRunner().invoke(main, [*common, *map(str, arguments)])

    return invoke


def order(precision: Precision = Precision.FP16, target: str = "sm86") -> BuildRequest:
    """An order of small batches for those cards."""
    groups = rtx_targets(
        target, precision, (SM75, SM86, ComputeCapability(8, 9), ComputeCapability(12, 0)), Cards((), "none")
    )
    return BuildRequest(Flavour.TENSORRT_RTX, precision, groups, Path("cache"), SMALL_PROFILE)


def changed(artifact: Artifact, folder: Path) -> Artifact:
    """A copy of the artifact in `folder`, for changes that its manifest does not know."""
    shutil.copytree(artifact.folder, folder)
    return dataclasses.replace(artifact, folder=folder)


def graph(path: Path, nodes: list[onnx.NodeProto], *, weights: onnx.TensorProto | None = None) -> Path:
    """An ONNX file from uint8 images [N, 4, 4, 3] to `probabilities`."""
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, None)],
        [weights] if weights is not None else [],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), path)
    return path


def ignore(phase: str, done: int, total: int) -> None:
    """Progress that is not shown."""


def test_turing_and_the_rest(run: Run, artifacts: Path) -> None:
    """Without a card both plans come, into the artifact that is there; their records say all that was decided."""
    if cards().found:
        pytest.skip("this machine has a card, which is the default then")
    before = load(artifacts, "tiny")
    result = run("--engine", "tensorrt-rtx")
    plans, damage = read_plans(before.folder)

    assert result.exit_code == 0, result.output
    assert versions(artifacts, "tiny") == [before.version]
    assert load(artifacts, "tiny") == before
    assert damage == []
    assert [plan.record.targets for plan in plans] == [("sm75",), ("sm86", "sm89", "sm120")]
    for plan in plans:
        record = plan.record
        assert plan.path.name == f"tensorrt-rtx-{record.version}-{'+'.join(record.targets)}-fp16.plan"
        assert len(plan.content()) == record.size_bytes > 2 * before.manifest.parameters
        assert (record.card, record.calibration_images, record.precision) == (None, None, "fp16")
        assert record.profile == BatchProfile(smallest=1, best=8, largest=32)
        assert record.graph_sha256 == sha256(before.graph) != record.source_sha256
        assert record.tools["tensorrt-rtx-cu13-bindings"] == record.version
        assert 0 < record.build_s < 120
        assert f"{record.version} for {', '.join(record.targets)} in fp16: batches 1 to 32, best 8" in result.stderr
    assert "passed onnxruntime fp16: max |dp|" in result.stderr


def test_missing_builds_what_is_not_there(run: Run, artifacts: Path) -> None:
    """--missing keeps a plan of the same batches, cards and precision, adds others, and replaces a damaged one."""
    arguments = ("--engine", "tensorrt-rtx", "--missing", "--batch", "1,2,4", "--target")
    folder = load(artifacts, "tiny").folder / ENGINES
    assert run(*arguments, "sm86").exit_code == 0
    (first,) = folder.glob("*.plan")
    made = first.stat().st_mtime_ns

    again = run(*arguments, "sm75,sm86")
    assert again.exit_code == 0
    assert f"tiny: built already, {first}" in again.stderr
    assert len(list(folder.glob("*.plan"))) == 2
    assert first.stat().st_mtime_ns == made

    first.write_bytes(b"damaged")
    assert run(*arguments, "sm86").exit_code == 0
    assert first.stat().st_size > 1000
    assert run("--engine", "tensorrt-rtx", "--missing", "--target", "sm86").exit_code == 0  # other batches
    assert json.loads(first.with_suffix(".json").read_text())["profile"]["largest"] == 32


def test_what_is_not_exported_is_exported_first(rtx: ModuleType, tmp_path: Path) -> None:
    """On an empty folder the artifact comes first, then the engine in it."""
    arguments = ["export", "tiny", "--weights", "untrained", "--artifacts", str(tmp_path), "--engine", "tensorrt-rtx"]
    result = CliRunner().invoke(main, [*arguments, "--target", "sm86", "--precision", "f32"])

    assert result.exit_code == 0, result.output
    (plan,), _ = read_plans(load(tmp_path, "tiny").folder)
    assert plan.record.graph_sha256 == plan.record.source_sha256  # f32 is the artifact's own graph


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "f32"], "--precision without --engine"),
        (["--batch", "1,2,4", "--target", "this"], "--target, --batch without --engine"),
        (["--engine", "tensorrt-rtx", "--precision", "int8"], "go together"),
        (["--engine", "tensorrt-rtx", "--calibration", "."], "go together"),
        (["--engine", "tensorrt-rtx", "--batch", "8"], "such as 1,8,32"),
        (["--engine", "tensorrt-rtx", "--target", "sm61"], "builds for sm75, sm80, sm86, sm89, sm120, sm121, not for"),
        (["--engine", "tensorrt-rtx", "--target", "sm75", "--precision", "f32"], "use --precision fp16"),
        (["--engine", "tensorrt-rtx", "--precision", "bf16"], "'bf16' is not one of"),
    ],
)
def test_usage(run: Run, artifacts: Path, arguments: list[str], message: str) -> None:
    """What does not fit together is a usage error before anything is exported or built."""
    result = run(*arguments)

    assert result.exit_code == 2
    assert message in result.output
    assert not (load(artifacts, "tiny").folder / ENGINES).exists()


def test_tensorrt_that_is_not_installed(run: Run) -> None:
    """Without the package, --engine tensorrt names the command that installs it."""
    if is_installed(Flavour.TENSORRT):
        pytest.skip("TensorRT is installed")
    result = run("--engine", "tensorrt")

    assert result.exit_code == 1
    assert "tensorrt is not installed; run: pip install" in result.output


def test_known_targets(rtx: ModuleType) -> None:
    """The real module builds for Turing and all RTX cards since."""
    assert {SM75, SM86, ComputeCapability(8, 9), ComputeCapability(12, 0)} <= set(known_targets(rtx))


def test_uint8_that_is_transposed_is_the_parsers_error(rtx: ModuleType, tmp_path: Path) -> None:
    """A graph that the parser refuses gives its words, the node and the operator."""
    nodes = [
        helper.make_node("Transpose", ["image"], ["turned"], name="turn", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["turned"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["probabilities"], name="mean", keepdims=0),
    ]
    job = BuildJob(Flavour.TENSORRT_RTX, graph(tmp_path / "turned.onnx", nodes), 4, SMALL_PROFILE, (SM86,))

    with pytest.raises(BuildError, match=r"cannot read the graph: turn Transpose: .*UInt8") as refusal:
        build_plan(rtx, job, ignore)
    assert "cudaError 35" not in str(refusal.value)


def test_builders_that_fail_in_turn_each_give_their_own_words(rtx: ModuleType, tmp_path: Path, exported: Path) -> None:
    """A matrix product in f32 on Turing, twice, then a wrong profile: no error is lost to an earlier build's log."""
    tiny = load(exported, "tiny")
    job = BuildJob(Flavour.TENSORRT_RTX, tiny.graph, 32, SMALL_PROFILE, (SM75,))
    for _ in range(2):
        with pytest.raises(BuildError, match=r"cannot build it for sm75: .*FP32 GEMM is not supported"):
            build_plan(rtx, job, ignore)
    wrong = BuildJob(Flavour.TENSORRT_RTX, tiny.graph, 33, SMALL_PROFILE, (SM86,))
    with pytest.raises(BuildError, match="Dimension mismatch for tensor image"):
        build_plan(rtx, wrong, ignore)
    assert len(build_plan(rtx, dataclasses.replace(job, targets=(SM86,)), ignore).content) > 1000


def test_real_progress_and_interruption(rtx: ModuleType, exported: Path) -> None:
    """The real builder tells its phases, each up to its end, and stops where it is told to."""
    job = BuildJob(Flavour.TENSORRT_RTX, load(exported, "tiny").graph, 32, SMALL_PROFILE, (SM86,))
    seen: list[tuple[str, int, int]] = []
    build_plan(rtx, job, lambda *told: seen.append(told))
    (total,) = {total for phase, _, total in seen if phase == "Building engine"}

    def stop(phase: str, done: int, total: int) -> None:
        raise TimeoutError("enough")

    assert ("Building engine", total - 1, total) in seen
    with pytest.raises(TimeoutError):
        build_plan(rtx, job, stop)


def test_interrupted_build_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    """Ctrl-C while the second engine is built: the first is there and whole, of the second there is nothing."""
    artifact = changed(load(exported, "tiny"), tmp_path / "tiny")
    begun = []

    def interrupt() -> None:
        begun.append(1)
        if len(begun) > 2:  # each build has two steps
            raise KeyboardInterrupt

    order_of_two = dataclasses.replace(
        order(Precision.F32), groups=((SM86,), (ComputeCapability(8, 9),)), flavour=Flavour.TENSORRT
    )
    with pytest.raises(KeyboardInterrupt):
        build_engines(artifact, order_of_two, fake(Script(during=interrupt)), NullReporter())
    plans, damage = read_plans(artifact.folder)

    assert ([plan.record.targets for plan in plans], damage) == ([("sm86",)], [])
    assert plans[0].content() == b"a plan"
    assert len(list((artifact.folder / ENGINES).iterdir())) == 2


@pytest.mark.parametrize("precision", [Precision.F32, Precision.FP16])
def test_folder_that_takes_nothing(exported: Path, tmp_path: Path, precision: Precision) -> None:
    """Where nothing can be written into the artifact, that is found before anything is built."""
    artifact = changed(load(exported, "tiny"), tmp_path / "tiny")
    script = Script()
    gone = dataclasses.replace(artifact, folder=tmp_path / "gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        build_engines(gone, order(precision), fake(script), NullReporter())
    assert script.calls == []


def test_graphs_lie_in_the_artifact_while_they_are_needed(exported: Path, tmp_path: Path) -> None:
    """The graph in fp16 takes no room in the folder for temporary files, which may be small; after it, it is gone."""
    artifact = changed(load(exported, "tiny"), tmp_path / "tiny")
    seen: list[list[Path]] = []
    script = Script(during=lambda: seen.append(list(artifact.folder.glob(".engine-*/model.onnx"))))
    build_engines(artifact, dataclasses.replace(order(), flavour=Flavour.TENSORRT), fake(script), NullReporter())

    assert [len(files) for files in seen] == [1, 1]
    assert list(artifact.folder.glob(".*")) == []


def test_engines_that_cannot_be_written(run: Run, artifacts: Path) -> None:
    """An engine that cannot be written names the folder; what is in its way stays as it is."""
    blocked = load(artifacts, "tiny").folder / ENGINES
    blocked.write_bytes(b"in the way")
    result = run("--engine", "tensorrt-rtx", "--target", "sm86", "--precision", "f32")

    assert result.exit_code == 1
    assert f"{artifacts / 'tiny'} must be writable and have room for graphs and engines" in result.stderr
    assert blocked.read_bytes() == b"in the way"


def test_failure_after_an_engine_was_written(exported: Path, tmp_path: Path) -> None:
    """The one before stands and is given with the failure of the next; where it is the first, the failure is raised."""
    artifact = changed(load(exported, "tiny"), tmp_path / "tiny")
    script = Script(errors=["no room"])

    def fail() -> None:
        if script.steps > 2:  # each build has two steps
            script.plan = None

    script.during = fail
    of_two = dataclasses.replace(
        order(Precision.F32),
        groups=((SM86,), (ComputeCapability(8, 9),), (ComputeCapability(12, 0),)),
        flavour=Flavour.TENSORRT,
    )
    done = build_engines(artifact, of_two, fake(script), NullReporter())

    assert [plan.record.targets for plan in done.plans] == [("sm86",)]
    assert str(done.failure) == "tensorrt cannot build it for sm89: no room"
    assert len(script.of("parse_from_file")) == 2
    with pytest.raises(BuildError, match="sm86: no room"):
        build_engines(artifact, of_two, fake(script), NullReporter())


def test_second_engine_that_cannot_be_written(run: Run, rtx: ModuleType, artifacts: Path) -> None:
    """The command tells of the engine that is there, then why the next is not, and fails."""
    folder = load(artifacts, "tiny").folder / ENGINES
    (folder / f"tensorrt-rtx-{rtx.__version__}-sm86-fp16.plan").mkdir(parents=True)
    result = run("--engine", "tensorrt-rtx", "--target", "sm75,sm86")

    assert result.exit_code == 1
    assert "tiny has 1 new engine" in result.stderr
    assert "the next engine of tiny was not built" in result.stderr
    assert "must be writable and have room" in result.stderr
    assert [plan.record.targets for plan in read_plans(folder.parent)[0]] == [("sm75",)]
    assert list(folder.glob(".*")) == []


def test_tensorrt_on_its_card(exported: Path, tmp_path: Path) -> None:
    """TensorRT's plan names the card; its timings are kept in the cache folder and given to the next build."""
    artifact = changed(load(exported, "tiny"), tmp_path / "tiny")
    card = Card(0, "NVIDIA GeForce RTX 2080 Ti", SM75, 11 << 30, 10 << 30)
    cache = tmp_path / "cache"
    wanted = BuildRequest(Flavour.TENSORRT, Precision.FP16, ((SM75,),), cache, SMALL_PROFILE, card)
    first, second = Script(timings=b"first", warnings=["slow"]), Script(timings=b"second")
    (plan,) = build_engines(artifact, wanted, fake(first), NullReporter()).plans
    build_engines(artifact, wanted, fake(second), NullReporter())

    assert plan.path.name == "tensorrt-11.4.0.106-sm75-fp16.plan"
    assert (plan.record.card, plan.record.warnings) == (card.name, ("slow",))
    assert first.of("create_timing_cache") == [(b"",)]
    assert second.of("create_timing_cache") == [(b"first",)]
    (kept,) = (cache / "timing").iterdir()
    assert kept.read_bytes().endswith(b"second")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, 1),
        ({"precision": Precision.F32}, 0),
        ({"profile": BatchProfile(smallest=1, best=2, largest=8)}, 0),
        ({"groups": ((SM75,),)}, 0),
        ({"groups": ((SM75,), (SM86,))}, 1),
        ({"flavour": Flavour.TENSORRT_RTX}, 0),
        ({"card": Card(0, "NVIDIA GeForce RTX 3060", SM86, 12 << 30, 11 << 30)}, 0),
    ],
)
def test_what_counts_as_present(exported: Path, tmp_path: Path, change: dict[str, object], found: int) -> None:
    """A plan is that of an order where flavour, precision, batches and cards are; another version or graph is not."""
    artifact = changed(load(exported, "tiny"), tmp_path / "tiny")
    made = dataclasses.replace(order(), flavour=Flavour.TENSORRT)
    build_engines(artifact, made, fake(Script()), NullReporter())
    asked = dataclasses.replace(made, **change)  # type: ignore[arg-type]

    assert len(present_plans(artifact, asked, "11.4.0.106")) == found
    assert present_plans(artifact, asked, "11.4.1.2") == []
    other = artifact.manifest.model_copy(update={"files": {**artifact.manifest.files, "model.onnx": "another"}})
    assert present_plans(dataclasses.replace(artifact, manifest=other), asked, "11.4.0.106") == []


def test_overflow_in_half_precision_is_refused(rtx: ModuleType, tmp_path: Path) -> None:
    """Maps beyond 65504 are fine in f32 and infinite in fp16: no engine, the figures, and f32 as the way out."""
    network = build(CATALOG["tiny"])
    state = network.state_dict()
    state["features.2.1.weight"] *= 1e6
    state["classifier.weight"] *= 1e-6
    torch.save(state, tmp_path / "large.pth")
    export(CATALOG["tiny"], WeightsChoice.parse(str(tmp_path / "large.pth"), None), tmp_path, NullReporter())
    artifact = load(tmp_path, "tiny")

    with pytest.raises(ParityError, match=r"tiny in fp16 differs .* use --precision f32: .* cosine -1\.0"):
        build_engines(artifact, order(), rtx, NullReporter())
    assert not (artifact.folder / ENGINES).exists()
    assert build_engines(artifact, order(Precision.F32), rtx, NullReporter()).plans[0].record.precision == "f32"


def test_other_answers_than_those_kept_are_refused(
    rtx: ModuleType, exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph that gives other answers than the artifact's is not built; untrained it is, and the log says so.

    One without such answers is not built either way.
    """
    artifact = changed(load(exported, "tiny"), tmp_path / "tiny")
    with np.load(artifact.folder / REFERENCE) as content:
        images, probabilities = content["images"], content["probabilities"]
    np.savez(artifact.folder / REFERENCE, images=images, probabilities=np.roll(probabilities, 1, axis=0))
    trained = artifact.manifest.weights.model_copy(update={"source": WeightSource.FILE})
    claimed = dataclasses.replace(artifact, manifest=artifact.manifest.model_copy(update={"weights": trained}))
    with pytest.raises(ParityError, match="tiny in fp16 differs from PyTorch, no engine was built"):
        build_engines(claimed, order(), rtx, NullReporter())
    assert not (artifact.folder / ENGINES).exists()
    done = build_engines(artifact, order(), rtx, NullReporter())
    assert done.parity is not None
    assert not done.parity.passed
    assert "its weights are noise" in caplog.text
    (artifact.folder / REFERENCE).write_bytes(b"damaged")
    with pytest.raises(ParityError, match="cannot be read"):
        build_engines(artifact, order(), rtx, NullReporter())
    (artifact.folder / REFERENCE).unlink()
    with pytest.raises(ParityError, match="exported by an older version"):
        build_engines(artifact, order(), rtx, NullReporter())


def test_imported_model(run: Run, artifacts: Path) -> None:
    """An imported model is built in f32; in fp16 it is refused, because it has no PyTorch network."""
    folder = artifacts / "mine" / "1"
    shutil.copytree(artifacts / "tiny" / "1", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"name": "mine", "family": "imported", "max_batch": 4}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    arguments = ("--engine", "tensorrt-rtx", "--target", "sm86", "--precision")

    refused = run(*arguments, "fp16", name="mine")
    assert refused.exit_code == 1
    assert "mine has no PyTorch network to export in fp16" in refused.stderr
    built = run(*arguments, "f32", name="mine")
    assert built.exit_code == 0, built.output
    assert "batches 1 to 4, best 4" in built.stderr  # the default, as far as the graph goes
    wide = run(*arguments, "f32", "--batch", "1,8,8", name="mine")
    assert wide.exit_code == 1
    assert "takes batches of 4 at most" in wide.stderr
    assert versions(artifacts, "mine") == [1]


def test_network_without_its_weights(rtx: ModuleType, exported: Path, tmp_path: Path) -> None:
    """An artifact without weights.safetensors is said to lack it, with the command that mends it: without --engine."""
    artifact = changed(load(exported, "tiny"), tmp_path / "tiny" / "1")
    (artifact.folder / "weights.safetensors").unlink()

    command = f"run first, without --engine: topfive export tiny --artifacts {tmp_path}"
    with pytest.raises(ExportError, match=f"holds no weights.safetensors, .* {re.escape(command)}, or use --precision"):
        build_engines(artifact, order(), rtx, NullReporter())
