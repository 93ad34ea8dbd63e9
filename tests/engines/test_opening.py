"""Which engine runs: the order of `auto`, when bf16 may be used, and errors that say why something may not."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.artifact.artifact import IMPORTED, Artifact, ParityReport, Thresholds
from service.common.types import Batch, Precision, Probabilities, Rows, Runtime
from service.engines.base import Engine, EngineUnavailableError
from service.engines.selection import opening, select
from service.engines.selection.opening import open_engine
from service.engines.selection.precision import choose_precision
from service.engines.selection.select import EngineOptions
from tests.fakes import FakeEngine

Built = list[tuple[Runtime, Precision]]
Describe = Callable[..., Built]
WithParity = Callable[..., Artifact]
MODULES = {"openvino", "onnxruntime", "torch"}


def bf16(*, passed: bool, runtime: Runtime = Runtime.OPENVINO) -> ParityReport:
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


def f32(runtime: Runtime, *, passed: bool) -> ParityReport:
    """A report of f32."""
    return bf16(passed=passed, runtime=runtime).model_copy(update={"precision": Precision.F32})


def changed(artifact: Artifact, **changes: object) -> Artifact:
    """The same with changes in its manifest."""
    return replace(artifact, manifest=artifact.manifest.model_copy(update=changes))


@pytest.fixture
def with_parity(tiny: Artifact) -> WithParity:
    """`tiny` with these parity reports and no others."""
    return lambda *reports: changed(tiny, parity=reports)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Describe:
    """Describes a machine; gives the list of what is built on it, each a fake engine."""

    def describe(*modules: str, cuda: bool = False, has_bf16: bool = True, broken: tuple[Runtime, ...] = ()) -> Built:
        built: Built = []

        def build(_artifact: Artifact, runtime: Runtime, precision: Precision, options: EngineOptions) -> Engine:
            if runtime in broken:
                raise EngineUnavailableError(f"{runtime} has no driver")
            built.append((runtime, precision))
            return FakeEngine(max_batch=options.max_batch)

        monkeypatch.setattr(select, "find_spec", lambda name: object() if name in modules else None)
        monkeypatch.setattr(opening, "build_engine", build)
        monkeypatch.setattr("service.engines.onnxruntime.has_cuda", lambda: cuda)
        monkeypatch.setattr("service.engines.openvino.has_bf16", lambda: has_bf16)
        return built

    return describe


@pytest.mark.parametrize(
    ("modules", "cuda", "taken"),
    [
        (MODULES, True, Runtime.ONNXRUNTIME_CUDA),
        (MODULES, False, Runtime.OPENVINO),
        ({"onnxruntime", "torch"}, False, Runtime.ONNXRUNTIME),
    ],
)
def test_order_of_auto(
    machine: Describe, with_parity: WithParity, modules: set[str], cuda: bool, taken: Runtime
) -> None:
    """Where ONNX Runtime has CUDA the card comes first; on a CPU OpenVINO, then ONNX Runtime."""
    built = machine(*modules, cuda=cuda)

    open_engine(with_parity(f32(Runtime.ONNXRUNTIME_CUDA, passed=True)), EngineOptions())

    assert built == [(taken, Precision.F32)]


def test_auto_never_takes_the_reference(machine: Describe, tiny: Artifact) -> None:
    """torch serves only where it is asked for; with nothing else `auto` says what to install."""
    built = machine("torch")

    with pytest.raises(EngineUnavailableError, match="pip install openvino"):
        open_engine(tiny, EngineOptions())
    assert built == []

    open_engine(tiny, EngineOptions(runtime=Runtime.TORCH))
    assert built == [(Runtime.TORCH, Precision.F32)]


def test_auto_goes_on_where_a_runtime_cannot_run_and_says_so(
    machine: Describe, tiny: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine with ONNX Runtime for CUDA and no driver computes on the CPU, and the log has a warning why."""
    built = machine(*MODULES, cuda=True, has_bf16=False, broken=(Runtime.ONNXRUNTIME_CUDA,))

    with caplog.at_level(logging.WARNING):
        open_engine(tiny, EngineOptions())

    assert built == [(Runtime.OPENVINO, Precision.F32)]
    assert "onnxruntime-cuda does not run tiny: onnxruntime-cuda has no driver" in caplog.text


def test_auto_gives_every_reason_where_nothing_runs(machine: Describe, tiny: Artifact) -> None:
    """Where each installed runtime fails, the error has the reason of each."""
    machine(*MODULES, broken=(Runtime.OPENVINO, Runtime.ONNXRUNTIME))

    with pytest.raises(EngineUnavailableError, match="openvino has no driver; onnxruntime has no driver"):
        open_engine(tiny, EngineOptions())


def test_what_was_asked_for_is_not_replaced(machine: Describe, tiny: Artifact) -> None:
    """A runtime asked for by name that fails is an error, though others would run."""
    built = machine(*MODULES, broken=(Runtime.ONNXRUNTIME,))

    with pytest.raises(EngineUnavailableError, match="onnxruntime has no driver"):
        open_engine(tiny, EngineOptions(runtime=Runtime.ONNXRUNTIME))

    assert built == []


@pytest.mark.parametrize(
    ("runtime", "package", "modules"),
    [
        (Runtime.OPENVINO, "openvino", ()),
        (Runtime.ONNXRUNTIME, r"'\.\[cpu\]'", ()),
        (Runtime.ONNXRUNTIME_CUDA, r"'\.\[gpu\]'", ()),
        (Runtime.ONNXRUNTIME_CUDA, r"'\.\[gpu\]'", MODULES),  # that of the CPU does not stand in for it
        (Runtime.TORCH, r"'\.\[export\]'", ()),
    ],
)
def test_runtime_that_is_not_installed_names_the_command(
    machine: Describe, tiny: Artifact, runtime: Runtime, package: str, modules: tuple[str, ...]
) -> None:
    """The error has the pip command that installs the runtime."""
    built = machine(*modules)

    with pytest.raises(EngineUnavailableError, match=f"{runtime} is not installed; run: pip install {package}"):
        open_engine(tiny, EngineOptions(runtime=runtime))

    assert built == []


@pytest.mark.parametrize(
    ("reports", "has_bf16", "asked", "given"),
    [
        ((bf16(passed=True),), True, Precision.AUTO, Precision.BF16),
        ((bf16(passed=True),), True, Precision.F32, Precision.F32),
        ((), True, Precision.AUTO, Precision.F32),
        ((bf16(passed=False),), True, Precision.AUTO, Precision.F32),
        ((bf16(passed=True, runtime=Runtime.TORCH),), True, Precision.AUTO, Precision.F32),
        ((bf16(passed=True),), False, Precision.AUTO, Precision.F32),
        ((bf16(passed=True),), False, Precision.BF16, Precision.BF16),  # the engine then refuses
    ],
)
def test_precision(
    machine: Describe,
    with_parity: WithParity,
    reports: tuple[ParityReport, ...],
    has_bf16: bool,
    asked: Precision,
    given: Precision,
) -> None:
    """`auto` is bf16 where a report of this artifact on this runtime passed and the CPU has it; else it is f32."""
    machine(*MODULES, has_bf16=has_bf16)

    assert choose_precision(with_parity(*reports), Runtime.OPENVINO, asked) is given


@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, Runtime.ONNXRUNTIME_CUDA, Runtime.TORCH])
def test_runtimes_without_bf16(machine: Describe, with_parity: WithParity, runtime: Runtime) -> None:
    """A runtime that computes in f32 only gives f32 without a report, refuses bf16 and names what has it."""
    built = machine(*MODULES, cuda=True)
    artifact = with_parity(bf16(passed=True))

    assert choose_precision(artifact, runtime, Precision.F32) is Precision.F32
    with pytest.raises(EngineUnavailableError, match=f"{runtime} computes in f32 .* --runtime openvino"):
        open_engine(artifact, EngineOptions(runtime=runtime, precision=Precision.BF16))
    assert built == []


@pytest.mark.parametrize("runtime", [Runtime.OPENVINO, Runtime.AUTO])
@pytest.mark.parametrize(
    ("reports", "said"),
    [
        ((), r"not measured in bf16; export it .* topfive export tiny"),
        ((bf16(passed=False),), r"tiny may not run in bf16 .* \|dp\| 0\.25"),
    ],
)
def test_bf16_that_may_not_be_used(
    machine: Describe,
    with_parity: WithParity,
    reports: tuple[ParityReport, ...],
    said: str,
    runtime: Runtime,
) -> None:
    """Asked for without a report it is refused with the command that measures it, and with a failed one its figure."""
    built = machine(*MODULES)

    with pytest.raises(EngineUnavailableError, match=said):
        open_engine(with_parity(*reports), EngineOptions(runtime=runtime, precision=Precision.BF16))

    assert built == []


def test_auto_runtime_with_bf16(machine: Describe, with_parity: WithParity) -> None:
    """bf16 with any runtime means OpenVINO, though CUDA comes first otherwise; without it, it is not installed."""
    artifact, options = with_parity(bf16(passed=True)), EngineOptions(precision=Precision.BF16)
    built = machine(*MODULES, cuda=True)
    open_engine(artifact, options)
    assert built == [(Runtime.OPENVINO, Precision.BF16)]

    machine("onnxruntime", "torch")
    with pytest.raises(EngineUnavailableError, match=r"no runtime for --precision bf16 is installed; .* openvino"):
        open_engine(artifact, options)


class _Recording(FakeEngine):
    """Keeps the batches it ran."""

    def __init__(self, max_batch: int) -> None:
        super().__init__(max_batch=max_batch)
        self.ran: list[Batch] = []

    def run(self, rows: Rows) -> Probabilities:
        self.ran.append(np.asarray(rows))
        return super().run(rows)


def test_warm_up_runs_one_and_the_largest_batch() -> None:
    """Blank images of the graph contract, a batch of one and one of `max_batch`."""
    engine = _Recording(max_batch=6)

    engine.warm_up()

    assert [batch.shape for batch in engine.ran] == [(1, 32, 32, 3), (6, 32, 32, 3)]
    assert all(batch.dtype == np.uint8 for batch in engine.ran)


@pytest.mark.parametrize(("manifest", "asked", "largest"), [(None, 4, 4), (1, 8, 1), (4, 2, 2)])
def test_largest_batch(machine: Describe, tiny: Artifact, manifest: int | None, asked: int, largest: int) -> None:
    """It is what was asked for, but no more than the graph takes, and the engine that is given is warm with it."""
    machine(*MODULES)

    engine = open_engine(changed(tiny, max_batch=manifest), EngineOptions(max_batch=asked)).engine

    assert isinstance(engine, FakeEngine)
    assert engine.max_batch == largest
    assert engine.batches == [1, largest]


@pytest.mark.parametrize("runtime", [Runtime.AUTO, Runtime.OPENVINO])
def test_engine_that_fails_to_warm_up(tiny: Artifact, monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> None:
    """It is closed. `auto` takes the next runtime; the same runtime asked for by name is an error with its words."""
    broken, sound = FakeEngine(), FakeEngine()
    broken.script = [MemoryError("no 2 GB left")]
    queue = [broken, sound]
    monkeypatch.setattr(select, "installed", lambda _runtime: True)
    monkeypatch.setattr(opening, "build_engine", lambda *_arguments: queue.pop(0))
    options = EngineOptions(runtime, Precision.F32)

    if runtime is Runtime.AUTO:
        assert open_engine(tiny, options).engine is sound
    else:
        with pytest.raises(EngineUnavailableError, match="openvino fails on its first batches: no 2 GB left"):
            open_engine(tiny, options)

    assert broken.closed
    assert not sound.closed


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


@pytest.mark.parametrize("reports", [(), (bf16(passed=True),)])
def test_runtime_that_failed_in_f32(
    machine: Describe,
    with_parity: WithParity,
    caplog: pytest.LogCaptureFixture,
    reports: tuple[ParityReport, ...],
) -> None:
    """`auto` takes the next and the log says why, also where bf16 passed; asked for, it is an error with the figure."""
    built = machine(*MODULES)
    artifact = with_parity(f32(Runtime.OPENVINO, passed=False), f32(Runtime.ONNXRUNTIME, passed=True), *reports)

    open_engine(artifact, EngineOptions())
    with pytest.raises(EngineUnavailableError, match=r"tiny may not run on openvino: .* \|dp\| 0\.25"):
        open_engine(artifact, EngineOptions(runtime=Runtime.OPENVINO))

    assert built == [(Runtime.ONNXRUNTIME, Precision.F32)]
    assert "openvino does not run tiny: tiny may not run on openvino: its answers differ" in caplog.text


def test_import_runs_only_where_it_was_checked(machine: Describe, with_parity: WithParity) -> None:
    """An imported model takes no runtime without a report, though the same artifact of the catalog would."""
    built = machine(*MODULES)
    artifact = with_parity(f32(Runtime.ONNXRUNTIME, passed=True))
    imported = changed(artifact, family=IMPORTED)

    open_engine(imported, EngineOptions())
    with pytest.raises(EngineUnavailableError, match=r"not checked or did not run there; use another --runtime"):
        open_engine(imported, EngineOptions(runtime=Runtime.OPENVINO))
    open_engine(artifact, EngineOptions())

    assert built == [(Runtime.ONNXRUNTIME, Precision.F32), (Runtime.OPENVINO, Precision.F32)]


def test_import_without_bf16_report_names_its_file(machine: Describe, with_parity: WithParity) -> None:
    """The advice for bf16 of an imported model is to import it again, not to export it."""
    machine(*MODULES)
    artifact = changed(with_parity(f32(Runtime.OPENVINO, passed=True)), family=IMPORTED)

    with pytest.raises(EngineUnavailableError, match=r"its original file was not measured in bf16; import it again"):
        choose_precision(artifact, Runtime.OPENVINO, Precision.BF16)


def test_import_has_no_network_for_torch(with_parity: WithParity, tmp_path: Path) -> None:
    """The torch engine says that it has no network for a file of other origin."""
    artifact = changed(with_parity(f32(Runtime.ONNXRUNTIME, passed=True)), family=IMPORTED, name="own")

    with pytest.raises(EngineUnavailableError, match=r"own has no weights\.safetensors .* use another --runtime"):
        open_engine(replace(artifact, folder=tmp_path), EngineOptions(runtime=Runtime.TORCH))
