"""When the int8 graph serves: if asked for, and by `auto` only where accuracy and speed were measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.artifact.artifact import Artifact, load
from models.artifact.measured import MeasuredAccuracy
from models.artifact.quantized import PrecisionSpeed, QuantizationRecord, write_quantized
from models.artifact.tuning import Trial, TuningRecord
from service.common.cpus import Host
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection import int8
from service.engines.selection.compatibility import NO_MACHINE
from service.engines.selection.cpu_layout import NOT_TUNED, Tuned, conditions_here
from service.engines.selection.int8 import reason_against_int8
from service.engines.selection.opening import open_engine
from service.engines.selection.precision import choose_precision
from service.engines.selection.select import EngineOptions, Selection
from tests.models.test_quantized import record

CPUS = 2


@pytest.fixture(autouse=True)
def _vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU of these tests has VNNI."""
    monkeypatch.setattr(int8, "host", lambda: Host(CPUS, CPUS, ("AVX2", "AVX512_VNNI"), None, None))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.fixture
def tiny(artifacts: Path) -> Artifact:
    """The artifact of `tiny`, which the test may change."""
    return load(artifacts, "tiny")


def accuracy(
    precision: str, acc1: float, images: int = 500, dataset: str = "a" * 64, crops: int = 1
) -> MeasuredAccuracy:
    """A measurement in OpenVINO."""
    return MeasuredAccuracy(
        dataset="photos",
        dataset_sha256=dataset,
        images=images,
        acc1=acc1,
        acc1_low=acc1 - 2,
        acc1_high=acc1 + 2,
        acc5=None,
        acc5_low=None,
        acc5_high=None,
        crops=crops,
        runtime=Runtime.OPENVINO,
        precision=precision,
        date="2026-11-29",
    )


def measured(artifact: Artifact, *found: MeasuredAccuracy) -> Artifact:
    """The artifact with these measurements."""
    return replace(artifact, manifest=artifact.manifest.model_copy(update={"measured": found}))


def made(artifact: Artifact, f32: float = 100, bf16: float = 200, quantized: float = 300) -> QuantizationRecord:
    """The record of an int8 graph with these speeds on this machine."""
    speeds = {Precision.F32: f32, Precision.BF16: bf16, Precision.INT8: quantized}
    return record(artifact).model_copy(
        update={
            "conditions": conditions_here(CPUS),
            "speeds": tuple(PrecisionSpeed(precision=one, images_per_s=rate) for one, rate in speeds.items()),
        }
    )


def tuned(**speeds: float) -> Tuned:
    """A tuning of this machine with these speeds by precision, best first."""
    trials = tuple(
        Trial(
            runtime=Runtime.OPENVINO,
            runtime_version="1",
            precision=precision,
            slots=2,
            threads=1,
            max_batch=1,
            images_per_s=rate,
            run_ms=1,
        )
        for precision, rate in speeds.items()
    )
    return Tuned(TuningRecord(conditions=conditions_here(CPUS), date="2026-11-29", trials=trials))


GOOD = (accuracy("int8", 70.0), accuracy("f32", 71.0))


def test_auto_takes_what_is_as_right_and_faster(tiny: Artifact) -> None:
    """Top-1 within a point of f32 on 500 photos, and 1.2 times the next best speed: nothing is against it."""
    assert reason_against_int8(measured(tiny, *GOOD), made(tiny), NOT_TUNED, CPUS) == ""
    assert reason_against_int8(measured(tiny, *GOOD), made(tiny, bf16=250), NOT_TUNED, CPUS) == ""


@pytest.mark.parametrize(
    "found",
    [
        (),
        GOOD[:1],
        GOOD[1:],
        (accuracy("int8", 70, images=499), accuracy("f32", 70, images=499)),
        (accuracy("int8", 70), accuracy("bf16", 70)),
        (accuracy("int8", 70), accuracy("f32", 70, dataset="b" * 64)),
        (accuracy("int8", 70), accuracy("f32", 70, crops=10)),
    ],
)
def test_auto_wants_accuracy_on_the_same_photos(tiny: Artifact, found: tuple[MeasuredAccuracy, ...]) -> None:
    """Both precisions on the same 500 photos or more, by the same protocol; else it says which commands to run."""
    reason = reason_against_int8(measured(tiny, *found), made(tiny), NOT_TUNED, CPUS)

    assert "topfive evaluate DIR --model tiny --precision int8" in reason


def test_auto_leaves_what_is_less_right(tiny: Artifact) -> None:
    """More than a point below f32 is said with the interval; a measurement in ONNX Runtime's f32 counts as well."""
    other = accuracy("f32", 71.01).model_copy(update={"runtime": Runtime.ONNXRUNTIME})
    reason = reason_against_int8(measured(tiny, GOOD[0], other), made(tiny), NOT_TUNED, CPUS)

    assert "its top-1 is 70.00 % [68.00, 72.00] in int8 and 71.01 % in f32 on 500 photos of photos" in reason


@pytest.mark.parametrize(
    ("tuning", "quantized", "reason"),
    [
        (NOT_TUNED, 239.0, "1.20 times as fast here, 1.2 needed"),
        (tuned(int8=220, bf16=200, f32=100), 900.0, "1.10 times as fast here"),
        (tuned(int8=240, bf16=200, f32=100), 1.0, ""),
        (tuned(bf16=200, f32=100), 300.0, ""),
    ],
)
def test_auto_leaves_what_is_hardly_faster(tiny: Artifact, tuning: Tuned, quantized: float, reason: str) -> None:
    """The tuning of this machine decides if it measured int8, else the measurement of the export."""
    found = reason_against_int8(measured(tiny, *GOOD), made(tiny, quantized=quantized), tuning, CPUS)

    assert (reason in found) if reason else not found


def test_speed_of_another_machine_does_not_count(tiny: Artifact) -> None:
    """A graph that was made on another CPU is not taken before `topfive tune` has measured it here."""
    assert "run: topfive tune tiny" in reason_against_int8(measured(tiny, *GOOD), record(tiny), NOT_TUNED, CPUS)


@pytest.mark.parametrize(
    ("machine", "instruction_sets", "slow"),
    [
        ("x86_64", ("AVX2", "AVX-512"), True),
        ("x86_64", ("AVX2", "AVX_VNNI"), False),
        ("x86_64", ("AVX512_VNNI",), False),
        ("aarch64", (), False),
    ],
)
def test_cpu_without_vnni(
    tiny: Artifact,
    machine: str,
    instruction_sets: tuple[str, ...],
    slow: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is told that int8 gains nothing: `auto` does not take it, and who asks for it gets it with a warning."""
    monkeypatch.setattr(int8, "host", lambda: Host(CPUS, CPUS, instruction_sets, None, None))
    monkeypatch.setattr("platform.machine", lambda: machine)
    write_quantized(tiny.folder, b"<net/>", b"weights", made(tiny))

    reason = reason_against_int8(measured(tiny, *GOOD), made(tiny), NOT_TUNED, CPUS)
    assert ("no VNNI" in reason) == slow
    assert choose_precision(tiny, Runtime.OPENVINO, Precision.INT8) is Precision.INT8
    assert ("int8 gains nothing here" in caplog.text) == slow


def test_int8_is_asked_for_in_vain(tiny: Artifact) -> None:
    """Without a graph, or with a damaged record, the error names the command that makes one."""
    command = "topfive export tiny --engine openvino --precision int8 --calibration DIR --artifacts"
    with pytest.raises(EngineUnavailableError, match=f"tiny has no int8 graph for the CPU; run: {command}"):
        choose_precision(tiny, Runtime.OPENVINO, Precision.INT8)

    write_quantized(tiny.folder, b"<net/>", b"weights", made(tiny))
    (tiny.folder / "int8" / "record.json").write_text("{")
    with pytest.raises(EngineUnavailableError, match=f"cannot be read .*; run: {command}"):
        choose_precision(tiny, Runtime.OPENVINO, Precision.INT8)


@pytest.mark.parametrize("damage", ["record.json", "*.bin"])
def test_damaged_graph_does_not_keep_auto_from_serving(tiny: Artifact, damage: str) -> None:
    """`auto` serves another precision and says once what is damaged; who asks for int8 is told how to make it."""
    allowed = measured(tiny, *GOOD)
    write_quantized(tiny.folder, b"<net/>", b"weights", made(tiny))
    for file in (tiny.folder / "int8").glob(damage):
        file.write_text("{")

    opened = open_engine(allowed, EngineOptions(cpus=CPUS), look=lambda: NO_MACHINE)
    opened.engine.close()
    assert opened.engine.describe().precision != Precision.INT8
    assert sum("/int8/" in one for one in opened.choice.passed_over) == 1

    with pytest.raises(EngineUnavailableError, match="run: topfive export tiny --engine openvino") as error:
        open_engine(allowed, EngineOptions(precision=Precision.INT8, cpus=CPUS), look=lambda: NO_MACHINE)
    assert str(error.value).count("/int8/") == 1


def test_attempts(tiny: Artifact) -> None:
    """`auto` tries int8 first, or gives the reason against it; without a graph it says nothing."""
    options = EngineOptions(runtime=Runtime.OPENVINO, cpus=CPUS)

    def attempts(artifact: Artifact) -> list[tuple[Precision, bool]]:
        made = Selection.of(artifact, options, NO_MACHINE).attempts()
        return [(one.precision, not one.reason) for one in made if one.precision is Precision.INT8]

    assert attempts(tiny) == []
    write_quantized(tiny.folder, b"<net/>", b"weights", made(tiny))
    assert attempts(tiny) == [(Precision.INT8, False)]
    assert attempts(measured(tiny, *GOOD)) == [(Precision.INT8, True)]
