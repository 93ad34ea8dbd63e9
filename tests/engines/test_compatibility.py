"""Which engines built for NVIDIA cards fit a machine: a table of both, with what differs and what helps."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.artifact.artifact import GRAPH, load
from models.artifact.engine_plan import BatchProfile, ComputeCapability, EnginePlan, Flavour, write_plan
from service.common.gpus import Card, Cards
from service.common.types import Precision
from service.engines.selection.compatibility import Machine, Source, judge, misfits, survey, this_machine
from tests.models.test_plan import CONTENT, record

TURING = Card(0, "NVIDIA GeForce RTX 2080 Ti", ComputeCapability(7, 5), 11 << 30, 10 << 30)
ADA = Card(1, "NVIDIA GeForce RTX 4090", ComputeCapability(8, 9), 24 << 30, 20 << 30)
BOTH = {Flavour.TENSORRT: "11.4.0.106", Flavour.TENSORRT_RTX: "1.7.1.116"}
NO_CARD = Machine(Cards((), "no CUDA-capable device is detected"), None, BOTH)
SOURCE = Source("tiny", Path("artifacts"), "g")
ON_THE_CARD: dict[str, Any] = {
    "flavour": Flavour.TENSORRT,
    "version": "11.4.0.106",
    "targets": ("sm89",),
    "card": ADA.name,
}
BUILD_RTX = "topfive export tiny --engine tensorrt-rtx --precision fp16 --target this --artifacts artifacts"
BUILD = "topfive export tiny --engine tensorrt --precision fp16 --target this --artifacts artifacts"


def machine(*found: Card) -> Machine:
    """A machine with these cards and both flavours."""
    return Machine(Cards(found), "580.82.07", BOTH)


def plan(**changes: object) -> EnginePlan:
    """A plan with that record, as it would lie in an artifact."""
    return EnginePlan(Path("some.plan"), record(**changes))


@pytest.mark.parametrize(
    ("changes", "found", "asked", "on"),
    [
        ({}, (ADA,), Precision.AUTO, (ADA,)),
        ({}, (TURING, ADA), Precision.FP16, (ADA,)),
        ({"targets": ("sm75",)}, (TURING, ADA), Precision.AUTO, (TURING,)),
        ({"precision": "f32"}, (ADA,), Precision.AUTO, (ADA,)),
        ({"precision": "f32"}, (ADA,), Precision.F32, (ADA,)),
        ({"precision": "int8"}, (ADA,), Precision.INT8, (ADA,)),
        (ON_THE_CARD, (ADA,), Precision.AUTO, (ADA,)),
        (ON_THE_CARD, (replace(ADA, index=0, name="NVIDIA L40S"), ADA), Precision.AUTO, (ADA,)),
        ({"card": "a card of the builder"}, (ADA,), Precision.AUTO, (ADA,)),
        ({"profile": BatchProfile(smallest=1, best=1, largest=1)}, (ADA,), Precision.AUTO, (ADA,)),
    ],
)
def test_fits(changes: dict[str, object], found: tuple[Card, ...], asked: Precision, on: tuple[Card, ...]) -> None:
    """A plan fits the cards of its targets, TensorRT's own only the model it was built on; nothing differs then."""
    fit = judge(plan(**changes), SOURCE, machine(*found), asked)

    assert (fit.fits, fit.cards) == (True, on)
    assert (fit.reason, fit.remedy) == ("", "")


def differing(
    reason: str,
    remedy: str = BUILD_RTX,
    *,
    where: Machine | None = None,
    asked: Precision = Precision.AUTO,
    **changes: object,
) -> tuple[dict[str, object], Machine, Precision, str, str]:
    """One case: the changes of the record, the machine, the precision, and what is said."""
    return changes, where or machine(ADA), asked, reason, remedy


@pytest.mark.parametrize(
    ("changes", "where", "asked", "reason", "remedy"),
    [
        differing("built for sm86, sm89; here is NVIDIA GeForce RTX 2080 Ti (sm75)", where=machine(TURING)),
        differing(
            "built on NVIDIA GeForce RTX 4090; here is NVIDIA L40S (sm89)",
            BUILD,
            where=machine(replace(ADA, name="NVIDIA L40S")),
            **ON_THE_CARD,
        ),
        differing("built with tensorrt-rtx 1.6.1; 1.7.1.116 is installed", version="1.6.1"),
        differing("built from another model.onnx", graph_sha256="old"),
        differing(
            "tensorrt-rtx is not installed", "pip install '.[tensorrt-rtx]'", where=replace(machine(ADA), versions={})
        ),
        differing("no NVIDIA GPU can be used here: no CUDA-capable device is detected", "", where=NO_CARD),
        differing(
            "no NVIDIA GPU can be used here: no CUDA-capable device is detected",
            "",
            where=replace(NO_CARD, versions={}),
            version="1.6.1",
        ),
        differing("auto does not take int8: it must be asked for", "topfive serve --precision int8", precision="int8"),
        differing("it computes in fp16, and f32 is asked for", BUILD_RTX.replace("fp16", "f32"), asked=Precision.F32),
        differing(
            "it computes in fp16, and int8 is asked for",
            BUILD_RTX.replace("fp16", "int8 --calibration PHOTOS"),
            asked=Precision.INT8,
        ),
        differing(
            "it takes batches of 4 to 8, and one must be among them",
            f"{BUILD_RTX} --batch 1,8,32",
            profile=BatchProfile(smallest=4, best=8, largest=8),
        ),
    ],
)
def test_differs(changes: dict[str, object], where: Machine, asked: Precision, reason: str, remedy: str) -> None:
    """Each thing that differs is named with both sides, and with the command that mends it."""
    fit = judge(plan(**changes), SOURCE, where, asked)

    assert not fit.fits
    assert (fit.reason, fit.remedy) == (reason, remedy)
    [sentence] = misfits([fit])
    assert reason in sentence
    assert remedy in sentence


def test_several_differences() -> None:
    """All that differs is said at once, and a command that mends several things only once."""
    fit = judge(plan(version="1.6.1", graph_sha256="old"), SOURCE, machine(TURING), Precision.AUTO, damage="half of it")

    assert len(fit.differences) == 4
    assert fit.remedy == BUILD_RTX
    fit = judge(plan(graph_sha256="old"), SOURCE, replace(machine(ADA), versions={}), Precision.AUTO)
    assert fit.remedy == f"pip install '.[tensorrt-rtx]' and then {BUILD_RTX}"


def test_misfits() -> None:
    """Plans with the same difference share a sentence, those that fit are in none."""
    here = machine(TURING)
    made = [plan(), plan(precision="f32"), plan(targets=("sm75",))]
    fits = [judge(one, SOURCE, here, Precision.AUTO) for one in made]

    assert [fit.fits for fit in fits] == [False, False, True]
    assert len(misfits(fits)) == 2  # each names its own command
    without = [judge(one, SOURCE, NO_CARD, Precision.AUTO) for one in made]
    [sentence] = misfits(without)
    assert " and ".join(one.record.stem for one in made) in sentence
    assert sentence.count("do not fit (no NVIDIA GPU can be used here") == 1


def test_survey(artifacts: Path) -> None:
    """The plans of an artifact come best first: fp16 before f32, made for one card before made for many, int8 last."""
    artifact = load(artifacts, "tiny")
    graph = artifact.manifest.files[GRAPH]
    order = [("fp16", ("sm89",)), ("fp16", ("sm86", "sm89")), ("f32", ("sm89",)), ("int8", ("sm89",))]
    for precision, targets in reversed(order):
        write_plan(artifact.folder, CONTENT, record(precision=precision, targets=targets, graph_sha256=graph))
    (artifact.folder / "engines" / "zzz.json").write_text("{")

    fits, damage = survey(artifact, machine(ADA), Precision.AUTO)

    assert [(fit.plan.record.precision, fit.plan.record.targets) for fit in fits] == order
    assert [fit.fits for fit in fits] == [True, True, True, False]
    assert len(damage) == 1
    assert "zzz" in damage[0]


def test_damaged_files(artifacts: Path) -> None:
    """A plan that is shorter than its record says, or gone, does not fit; nothing is hashed for that."""
    artifact = load(artifacts, "tiny")
    other = record(sha256=hashlib.sha256(b"other").hexdigest(), graph_sha256=artifact.manifest.files[GRAPH])
    written = write_plan(artifact.folder, CONTENT, other)

    def reason() -> str:
        [fit], _ = survey(artifact, machine(ADA), Precision.AUTO)
        return fit.reason

    assert reason() == ""
    written.path.write_bytes(CONTENT[:-1])
    assert "is damaged: 5 bytes" in reason()
    written.path.unlink()
    assert "cannot be read" in reason()


def test_this_machine() -> None:
    """The real one answers, whatever is installed and whatever cards there are."""
    real = this_machine()
    assert bool(real.cards.found) is not bool(real.cards.reason)
    assert all(version[0].isdigit() for version in real.versions.values())
