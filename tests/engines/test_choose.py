"""Which engine runs: the order of `auto`, when bf16 may be used, and errors that say why something may not."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.artifact.artifact import IMPORTED, Artifact, ParityReport, Thresholds, load
from service.common.types import Batch, Precision, Probabilities, Rows, Runtime
from service.engines.base import Engine, EngineUnavailableError, as_batch
from service.engines.selection import opening, select
from service.engines.selection.opening import open_engine
from service.engines.selection.precision import choose_precision
from service.engines.selection.select import EngineOptions, installed
from tests.fakes import FakeEngine

Built = list[tuple[Runtime, Precision]]
MODULES = {"openvino", "onnxruntime", "torch"}


def report(*, passed: bool, runtime: Runtime = Runtime.OPENVINO) -> ParityReport:
    """A report of bf16."""
    return ParityReport(
        runtime=runtime,
        runtime_version="1",
        precision=Precision.BF16,
        device="cpu",
        images=16,
        batch_sizes=(1, 3, 8),
        max_abs_diff=0.01 if passed else 0.25,
        logit_cosine=0.999,
        top1_agreement=1,
        top5_agreement=1,
        thresholds=Thresholds(max_abs_diff=0.03, logit_cosine=0.99, top1_agreement=1, top5_agreement=0.9),
        passed=passed,
    )


@pytest.fixture(scope="module")
def tiny(exported: Path) -> Artifact:
    """The artifact of `tiny`."""
    return load(exported, "tiny")


@pytest.fixture
def with_parity(tiny: Artifact) -> Callable[..., Artifact]:
    """`tiny` with these parity reports and no others."""
    return lambda *reports: replace(tiny, manifest=tiny.manifest.model_copy(update={"parity": reports}))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Built]:
    """Describes a machine; gives the list of what is built on it, each a fake engine."""

    def describe(*modules: str, cuda: bool = False, bf16: bool = True, broken: tuple[Runtime, ...] = ()) -> Built:
        built: Built = []

        def build(_artifact: Artifact, runtime: Runtime, precision: Precision, options: EngineOptions) -> Engine:
            if runtime in broken:
                raise EngineUnavailableError(f"{runtime} has no driver")
            built.append((runtime, precision))
            return FakeEngine(max_batch=options.max_batch)

        monkeypatch.setattr(select, "find_spec", lambda name: object() if name in modules else None)
        monkeypatch.setattr(opening, "build_engine", build)
        monkeypatch.setattr("service.engines.onnxruntime.has_cuda", lambda: cuda)
        monkeypatch.setattr("service.engines.openvino.engine.has_bf16", lambda: bf16)
        return built

    return describe


def test_auto_takes_cuda_first(machine: Callable[..., Built], with_parity: Callable[..., Artifact]) -> None:
    """Where ONNX Runtime has CUDA, and the export has checked it there, the card is taken before the CPU."""
    built = machine(*MODULES, cuda=True)

    open_engine(with_parity(f32(Runtime.ONNXRUNTIME_CUDA, passed=True)), EngineOptions())

    assert built == [(Runtime.ONNXRUNTIME_CUDA, Precision.F32)]


def test_auto_takes_openvino_on_a_cpu(machine: Callable[..., Built], with_parity: Callable[..., Artifact]) -> None:
    """Without CUDA OpenVINO comes first, then ONNX Runtime."""
    options = EngineOptions()
    built = machine(*MODULES)
    open_engine(with_parity(), options)
    assert built == [(Runtime.OPENVINO, Precision.F32)]

    built = machine("onnxruntime", "torch")
    open_engine(with_parity(), options)
    assert built == [(Runtime.ONNXRUNTIME, Precision.F32)]


def test_auto_never_takes_the_reference(machine: Callable[..., Built], tiny: Artifact) -> None:
    """torch serves only where it is asked for; with nothing else `auto` says what to install."""
    built = machine("torch")

    with pytest.raises(EngineUnavailableError, match="pip install openvino"):
        open_engine(tiny, EngineOptions())
    assert built == []

    open_engine(tiny, EngineOptions(runtime=Runtime.TORCH))
    assert built == [(Runtime.TORCH, Precision.F32)]


def test_auto_goes_on_where_a_runtime_cannot_run_and_says_so(
    machine: Callable[..., Built], tiny: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine with ONNX Runtime for CUDA and no driver computes on the CPU, and the log has a warning why."""
    built = machine(*MODULES, cuda=True, bf16=False, broken=(Runtime.ONNXRUNTIME_CUDA,))

    with caplog.at_level(logging.WARNING):
        open_engine(tiny, EngineOptions())

    assert built == [(Runtime.OPENVINO, Precision.F32)]
    assert "onnxruntime-cuda does not run tiny: onnxruntime-cuda has no driver" in caplog.text


def test_auto_gives_every_reason_where_nothing_runs(machine: Callable[..., Built], tiny: Artifact) -> None:
    """Where each installed runtime fails, the error has the reason of each."""
    machine(*MODULES, broken=(Runtime.OPENVINO, Runtime.ONNXRUNTIME))

    with pytest.raises(EngineUnavailableError, match="openvino has no driver; onnxruntime has no driver"):
        open_engine(tiny, EngineOptions())


def test_what_was_asked_for_is_not_replaced(machine: Callable[..., Built], tiny: Artifact) -> None:
    """A runtime asked for by name that fails is an error, though others would run."""
    built = machine(*MODULES, broken=(Runtime.ONNXRUNTIME,))

    with pytest.raises(EngineUnavailableError, match="onnxruntime has no driver"):
        open_engine(tiny, EngineOptions(runtime=Runtime.ONNXRUNTIME))

    assert built == []


@pytest.mark.parametrize(
    ("runtime", "package"),
    [
        (Runtime.OPENVINO, "openvino"),
        (Runtime.ONNXRUNTIME, r"'\.\[cpu\]'"),
        (Runtime.ONNXRUNTIME_CUDA, r"'\.\[gpu\]'"),
        (Runtime.TORCH, r"'\.\[export\]'"),
    ],
)
def test_runtime_that_is_not_installed_names_the_command(
    machine: Callable[..., Built], tiny: Artifact, runtime: Runtime, package: str
) -> None:
    """The error has the pip command that installs the runtime."""
    machine()

    with pytest.raises(EngineUnavailableError, match=f"{runtime} is not installed; run: pip install {package}"):
        open_engine(tiny, EngineOptions(runtime=runtime))


def test_cuda_asked_for_without_it_names_the_command(machine: Callable[..., Built], tiny: Artifact) -> None:
    """ONNX Runtime of the CPU does not stand in for the one with CUDA."""
    built = machine(*MODULES)

    with pytest.raises(EngineUnavailableError, match=r"onnxruntime-cuda is not installed.*\.\[gpu\]"):
        open_engine(tiny, EngineOptions(runtime=Runtime.ONNXRUNTIME_CUDA))

    assert built == []


def test_installed_answers_for_this_environment() -> None:
    """What the tests themselves import is installed."""
    assert installed(Runtime.OPENVINO)
    assert installed(Runtime.ONNXRUNTIME)
    assert installed(Runtime.TORCH)


def test_auto_precision_is_bf16_where_parity_passed(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact]
) -> None:
    """A passed report of this artifact on this runtime, and a CPU with bf16, give bf16."""
    machine(*MODULES)

    artifact = with_parity(report(passed=True))

    assert choose_precision(artifact, Runtime.OPENVINO, Precision.AUTO) is Precision.BF16


@pytest.mark.parametrize("reports", [(), (report(passed=False),), (report(passed=True, runtime=Runtime.TORCH),)])
def test_auto_precision_is_f32_without_a_passed_report(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact], reports: tuple[ParityReport, ...]
) -> None:
    """No report, a failed one, or one of another runtime: f32, on a CPU that could compute in bf16."""
    machine(*MODULES)

    assert choose_precision(with_parity(*reports), Runtime.OPENVINO, Precision.AUTO) is Precision.F32


def test_auto_precision_is_f32_on_a_cpu_without_bf16(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact]
) -> None:
    """An artifact whose bf16 passed elsewhere runs in f32 where the CPU has no bf16; bf16 asked for stays bf16."""
    machine(*MODULES, bf16=False)
    artifact = with_parity(report(passed=True))

    assert choose_precision(artifact, Runtime.OPENVINO, Precision.AUTO) is Precision.F32
    assert choose_precision(artifact, Runtime.OPENVINO, Precision.BF16) is Precision.BF16  # the engine then refuses


def test_f32_asked_for_is_f32(machine: Callable[..., Built], with_parity: Callable[..., Artifact]) -> None:
    """f32 needs no report and is never lowered."""
    machine(*MODULES)

    for runtime in (Runtime.OPENVINO, Runtime.ONNXRUNTIME, Runtime.ONNXRUNTIME_CUDA, Runtime.TORCH):
        assert choose_precision(with_parity(report(passed=True)), runtime, Precision.F32) is Precision.F32


def test_bf16_asked_for_without_a_report_says_so(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact]
) -> None:
    """bf16 that nobody measured for this artifact is refused, with the command that measures it."""
    built = machine(*MODULES)

    with pytest.raises(EngineUnavailableError, match=r"not measured in bf16; export it .* topfive export tiny"):
        open_engine(with_parity(), EngineOptions(runtime=Runtime.OPENVINO, precision=Precision.BF16))

    assert built == []


def test_bf16_asked_for_that_failed_says_by_how_much(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact]
) -> None:
    """bf16 that failed the gate is refused with the figure, by name and by `auto`."""
    built = machine(*MODULES)
    artifact = with_parity(report(passed=False))

    for runtime in (Runtime.OPENVINO, Runtime.AUTO):
        with pytest.raises(EngineUnavailableError, match=r"tiny may not run in bf16 .* \|dp\| 0\.25"):
            open_engine(artifact, EngineOptions(runtime=runtime, precision=Precision.BF16))

    assert built == []


@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, Runtime.ONNXRUNTIME_CUDA, Runtime.TORCH])
def test_bf16_is_refused_by_runtimes_without_it(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact], runtime: Runtime
) -> None:
    """A runtime that computes in f32 only refuses bf16 and names what can."""
    built = machine(*MODULES, cuda=True)

    with pytest.raises(EngineUnavailableError, match=f"{runtime} computes in f32 .* --runtime openvino"):
        open_engine(with_parity(report(passed=True)), EngineOptions(runtime=runtime, precision=Precision.BF16))

    assert built == []


def test_auto_runtime_with_bf16_takes_the_one_that_has_it(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact]
) -> None:
    """bf16 with any runtime means OpenVINO, though CUDA comes first otherwise."""
    built = machine(*MODULES, cuda=True)

    open_engine(with_parity(report(passed=True)), EngineOptions(precision=Precision.BF16))

    assert built == [(Runtime.OPENVINO, Precision.BF16)]


def test_auto_runtime_with_bf16_and_without_openvino_says_what_is_missing(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact]
) -> None:
    """Installed runtimes that have no bf16 are not taken, and the message does not say that there are none."""
    machine("onnxruntime", "torch")

    with pytest.raises(EngineUnavailableError, match=r"no runtime for --precision bf16 is installed; .* openvino"):
        open_engine(with_parity(report(passed=True)), EngineOptions(precision=Precision.BF16))


class _Recording(FakeEngine):
    """Keeps the batches it ran."""

    def __init__(self, max_batch: int) -> None:
        super().__init__(max_batch=max_batch)
        self.ran: list[Batch] = []

    def run(self, rows: Rows) -> Probabilities:
        self.ran.append(as_batch(rows))
        return super().run(rows)


def test_warm_up_runs_one_and_the_largest_batch() -> None:
    """Blank images of the graph contract, a batch of one and one of `max_batch`."""
    engine = _Recording(max_batch=6)

    engine.warm_up()

    assert [batch.shape for batch in engine.ran] == [(1, 32, 32, 3), (6, 32, 32, 3)]
    assert all(batch.dtype == np.uint8 for batch in engine.ran)


def test_opened_engine_is_warm(machine: Callable[..., Built], tiny: Artifact) -> None:
    """An engine has run a batch of one and one of the largest size before anybody gets it."""
    machine(*MODULES)

    engine = open_engine(tiny, EngineOptions(max_batch=4)).engine

    assert isinstance(engine, FakeEngine)
    assert engine.batches == [1, 4]


def test_engine_that_fails_to_warm_up_is_closed(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that opens and cannot run is as good as none: its memory goes back, and `auto` takes the next."""
    broken, sound = FakeEngine(), FakeEngine()
    broken.script = [RuntimeError("cuDNN is missing")]
    queue = [broken, sound]
    monkeypatch.setattr(select, "installed", lambda _runtime: True)
    monkeypatch.setattr(opening, "build_engine", lambda *_arguments: queue.pop(0))

    assert open_engine(tiny, EngineOptions(precision=Precision.F32)).engine is sound

    assert broken.closed
    assert not sound.closed


def test_asked_for_engine_that_fails_to_warm_up_is_an_error(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same runtime asked for by name is an error with the engine's words."""
    broken = FakeEngine()
    broken.script = [MemoryError("no 2 GB left")]
    monkeypatch.setattr(opening, "build_engine", lambda *_arguments: broken)

    with pytest.raises(EngineUnavailableError, match="openvino fails on its first batches: no 2 GB left"):
        open_engine(tiny, EngineOptions(runtime=Runtime.OPENVINO, precision=Precision.F32))

    assert broken.closed


@pytest.mark.parametrize("runtime", [Runtime.AUTO, Runtime.OPENVINO, Runtime.ONNXRUNTIME, Runtime.TORCH])
def test_real_engine_says_what_was_asked_for(tiny: Artifact, runtime: Runtime) -> None:
    """Opened for real, what runs is what was asked for, with the batch and the slots of the options."""
    engine = open_engine(tiny, EngineOptions(runtime=runtime, precision=Precision.F32, cpus=2, max_batch=3)).engine

    assert engine.describe().precision == "f32"
    assert engine.max_batch == 3
    if runtime is not Runtime.AUTO:
        assert engine.describe().runtime == runtime
    engine.close()


@pytest.mark.parametrize("runtime", [Runtime.AUTO, Runtime.OPENVINO])
def test_real_artifact_opens_in_bf16_where_its_own_report_allows(tiny: Artifact, runtime: Runtime) -> None:
    """On a CPU with bf16 the export has measured it, and bf16 asked for runs in bf16."""
    measured = tiny.parity(Runtime.OPENVINO, Precision.BF16)
    if measured is None:
        pytest.skip("needs a CPU with bf16 (AMX or AVX-512-BF16)")
    assert measured.passed

    engine = open_engine(tiny, EngineOptions(runtime=runtime, precision=Precision.BF16)).engine

    assert (engine.describe().runtime, engine.describe().precision) == ("openvino", "bf16")
    engine.close()


def f32(runtime: Runtime, *, passed: bool) -> ParityReport:
    """A report of f32."""
    return report(passed=passed, runtime=runtime).model_copy(update={"precision": Precision.F32})


def imported(artifact: Artifact) -> Artifact:
    """The same, as if it came from somebody's file."""
    return replace(artifact, manifest=artifact.manifest.model_copy(update={"family": IMPORTED}))


def test_largest_batch_of_the_manifest_is_kept(machine: Callable[..., Built], tiny: Artifact) -> None:
    """A graph that takes one row at a time is opened and warmed up with one, whatever the options say."""
    machine(*MODULES)
    artifact = replace(tiny, manifest=tiny.manifest.model_copy(update={"max_batch": 1}))

    engine = open_engine(artifact, EngineOptions(max_batch=8)).engine

    assert isinstance(engine, FakeEngine)
    assert engine.max_batch == 1
    assert engine.batches == [1, 1]


def test_smaller_batch_of_the_options_is_kept(machine: Callable[..., Built], tiny: Artifact) -> None:
    """What the user asked for stays where it is below the manifest's."""
    machine(*MODULES)
    artifact = replace(tiny, manifest=tiny.manifest.model_copy(update={"max_batch": 4}))

    assert open_engine(artifact, EngineOptions(max_batch=2)).engine.max_batch == 2


def test_auto_passes_over_a_runtime_that_failed_in_f32(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact], caplog: pytest.LogCaptureFixture
) -> None:
    """A runtime whose answers differed is never used: `auto` takes the next and the log says why."""
    built = machine(*MODULES)
    artifact = with_parity(f32(Runtime.OPENVINO, passed=False), f32(Runtime.ONNXRUNTIME, passed=True))

    open_engine(artifact, EngineOptions())

    assert built == [(Runtime.ONNXRUNTIME, Precision.F32)]
    assert "openvino does not run tiny: tiny may not run on openvino: its answers differ" in caplog.text


def test_asked_for_runtime_that_failed_in_f32_is_refused(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact]
) -> None:
    """Asked for by name, it is an error with the figure."""
    built = machine(*MODULES)

    with pytest.raises(EngineUnavailableError, match=r"tiny may not run on openvino: .* \|dp\| 0\.25"):
        open_engine(with_parity(f32(Runtime.OPENVINO, passed=False)), EngineOptions(runtime=Runtime.OPENVINO))

    assert built == []


def test_import_runs_only_where_it_was_checked(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact]
) -> None:
    """An imported model takes no runtime without a report, though the same artifact of the catalog would."""
    built = machine(*MODULES)
    artifact = with_parity(f32(Runtime.ONNXRUNTIME, passed=True))

    open_engine(imported(artifact), EngineOptions())
    with pytest.raises(EngineUnavailableError, match=r"not checked or did not run there; use another --runtime"):
        open_engine(imported(artifact), EngineOptions(runtime=Runtime.OPENVINO))
    open_engine(artifact, EngineOptions())

    assert built == [(Runtime.ONNXRUNTIME, Precision.F32), (Runtime.OPENVINO, Precision.F32)]


def test_import_without_bf16_report_names_its_file(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact]
) -> None:
    """The advice for bf16 of an imported model is to import it again, not to export it."""
    machine(*MODULES)
    artifact = imported(with_parity(f32(Runtime.OPENVINO, passed=True)))

    with pytest.raises(EngineUnavailableError, match=r"its original file was not measured in bf16; import it again"):
        choose_precision(artifact, Runtime.OPENVINO, Precision.BF16)


def test_import_has_no_network_for_torch(with_parity: Callable[..., Artifact], tmp_path: Path) -> None:
    """The torch engine says that it has no network for a file of other origin."""
    artifact = imported(with_parity(f32(Runtime.ONNXRUNTIME, passed=True)))
    artifact = replace(artifact, folder=tmp_path, manifest=artifact.manifest.model_copy(update={"name": "own"}))

    with pytest.raises(EngineUnavailableError, match=r"own has no weights\.safetensors .* use another --runtime"):
        open_engine(artifact, EngineOptions(runtime=Runtime.TORCH))


def test_bf16_does_not_save_a_runtime_that_failed_in_f32(
    machine: Callable[..., Built], with_parity: Callable[..., Artifact]
) -> None:
    """A runtime whose f32 answers differed is not used in bf16 either, however well that compared."""
    built = machine(*MODULES)
    artifact = with_parity(
        f32(Runtime.OPENVINO, passed=False), report(passed=True), f32(Runtime.ONNXRUNTIME, passed=True)
    )

    open_engine(artifact, EngineOptions())

    assert built == [(Runtime.ONNXRUNTIME, Precision.F32)]
