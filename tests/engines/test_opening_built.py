"""Engines built for cards: which is taken, what is passed over and said of it, and when answers are checked."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import pytest

from models.artifact.artifact import GRAPH, Artifact, load
from models.artifact.engine_plan import BatchProfile, EnginePlan, Flavour, PlanError, write_plan
from service.common.gpus import Card, Cards
from service.common.types import EngineInfo, Precision, Runtime
from service.engines.base import Engine, EngineUnavailableError, out_of_memory
from service.engines.selection import opening, select
from service.engines.selection.compatibility import Machine
from service.engines.selection.opening import OpenedEngine, open_engine
from service.engines.selection.parity import reference_of
from service.engines.selection.select import EngineOptions
from tests.engines.test_compatibility import ADA, BOTH, NO_CARD, TURING, machine
from tests.engines.test_parity_check import Faithful
from tests.models.test_plan import CONTENT, record

OnCuda = Callable[[float], Faithful]
ELSEWHERE = "f32 .* --runtime tensorrt"
CPU_RUNTIMES = (Runtime.OPENVINO, Runtime.ONNXRUNTIME, Runtime.TORCH)


@dataclass
class CardMachine:
    """Opens engines of plans on a machine of the test's choice; `errors` says by how much those of a precision err."""

    artifact: Artifact
    cache: Path
    machine: Machine = field(default_factory=lambda: machine(ADA))
    errors: dict[str, float] = field(default_factory=dict)
    fails: dict[str, Exception] = field(default_factory=dict)
    built: list[tuple[str, Card]] = field(default_factory=list)
    engines: list[Faithful] = field(default_factory=list)
    opened: list[Engine] = field(default_factory=list)

    def plan(self, **changes: object) -> EnginePlan:
        """Put a plan with that record into the artifact."""
        made = record(**{"graph_sha256": self.artifact.manifest.files[GRAPH], **changes})
        return write_plan(self.artifact.folder, CONTENT, made)

    def open(
        self, runtime: Runtime = Runtime.AUTO, precision: Precision = Precision.AUTO, **options: object
    ) -> OpenedEngine:
        """Open the artifact with these options."""
        asked = replace(EngineOptions(runtime, precision, cache=self.cache), **options)  # type: ignore[arg-type]
        opened = open_engine(self.artifact, asked, look=lambda: self.machine, build_plan=self._build)
        self.opened.append(opened.engine)
        return opened

    def _build(self, plan: EnginePlan, card: Card, artifact: Artifact, options: EngineOptions) -> Engine:
        stem = plan.record.stem
        self.built.append((stem, card))
        engine = Faithful(
            reference_of(artifact),
            self.errors.get(plan.record.precision, 0.0),
            max_batch=min(options.max_batch, plan.record.profile.largest),
        )
        engine.info = EngineInfo(plan.record.flavour, plan.record.version, f"cuda:{card.index}", plan.record.precision)
        match self.fails.get(plan.record.precision):
            case PlanError() as error:
                raise error
            case Exception() as error:
                engine.script = [error]
        self.engines.append(engine)
        return engine


@pytest.fixture
def here(artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CardMachine]:
    """A machine with `tiny`, both flavours of TensorRT installed and an RTX 4090."""
    monkeypatch.setattr(select, "is_installed", lambda _flavour: True)
    machine = CardMachine(load(artifacts, "tiny"), tmp_path / "cache")
    yield machine
    for engine in machine.opened:
        engine.close()


def test_auto_takes_the_engine_of_the_card(here: CardMachine, caplog: pytest.LogCaptureFixture) -> None:
    """An engine that fits and answers rightly serves, before every runtime that reads the graph; nothing is noted."""
    plan = here.plan()
    with caplog.at_level(logging.WARNING):
        opened = here.open()

    assert opened.engine is here.engines[0]
    assert here.built == [(plan.record.stem, ADA)]
    assert opened.choice.passed_over == ()
    assert [fit.fits for fit in opened.choice.fits] == [True]
    assert [(report.precision, report.passed) for report in opened.choice.parity] == [("fp16", True)]
    assert caplog.text == ""


def test_order_of_flavours(here: CardMachine) -> None:
    """TensorRT itself comes before TensorRT for RTX, and fp16 before f32."""
    here.plan()
    here.plan(flavour=Flavour.TENSORRT, version=BOTH[Flavour.TENSORRT], card=ADA.name, precision="f32")
    best = here.plan(flavour=Flavour.TENSORRT, version=BOTH[Flavour.TENSORRT], card=ADA.name)
    here.open()
    here.open(Runtime.TENSORRT_RTX)

    assert [stem for stem, _ in here.built] == [best.record.stem, record().stem]


def test_misfit_is_said_and_never_loaded(here: CardMachine, caplog: pytest.LogCaptureFixture) -> None:
    """Another card: the log and the choice name plan, difference, command and what serves; nothing is built."""
    plan = here.plan()
    here.machine = machine(TURING)
    with caplog.at_level(logging.WARNING):
        opened = here.open(precision=Precision.F32)
    with pytest.raises(EngineUnavailableError) as strict:
        here.open(Runtime.TENSORRT_RTX)

    assert here.built == []
    assert opened.engine.describe().runtime == "openvino"
    [note] = opened.choice.passed_over
    assert note in caplog.text
    assert "it computes in fp16, and f32 is asked for" in note
    assert note.endswith("; openvino in f32 serves instead")
    for text in (note, str(strict.value)):
        assert plan.record.stem in text
        assert "built for sm86, sm89; here is NVIDIA GeForce RTX 2080 Ti (sm75)" in text
        assert "run: topfive export tiny --engine tensorrt-rtx" in text


def test_damage_is_passed_over(here: CardMachine) -> None:
    """A plan whose bytes are not those of its record, and a record that cannot be read, are named."""
    here.plan()
    here.fails["fp16"] = PlanError("some.plan differs from its record (sha256); build it again")
    (here.artifact.folder / "engines" / "zzz.json").write_text("{")
    opened = here.open(precision=Precision.AUTO)

    assert opened.engine.describe().runtime == "openvino"
    damaged, differs = opened.choice.passed_over
    assert "zzz.json cannot be read" in damaged
    assert "differs from its record (sha256); build it again" in differs


@pytest.mark.parametrize("built", [False, True])
def test_no_card(here: CardMachine, caplog: pytest.LogCaptureFixture, built: bool) -> None:
    """Where nobody expects a card, `auto` speaks of cards only if plans lie there, and then not as a warning."""
    here.machine = NO_CARD
    if built:
        here.plan()
    with caplog.at_level(logging.INFO):
        choice = here.open(precision=Precision.AUTO if built else Precision.F32).choice

    assert len(choice.passed_over) == len(choice.fits) == built
    assert choice.parity == ()
    assert all("no NVIDIA GPU can be used here" in note for note in choice.passed_over)
    logged = [one for one in caplog.records if not one.name.endswith("precision")]  # bf16 depends on this machine
    assert [(one.levelname, one.getMessage()) for one in logged] == [("INFO", note) for note in choice.passed_over]


@pytest.mark.parametrize("built", [True, False])
def test_a_driver_whose_card_cannot_be_used(here: CardMachine, caplog: pytest.LogCaptureFixture, built: bool) -> None:
    """Driver and TensorRT are there and CUDA gives no card: a warning with CUDA's words, and who asks is told."""
    here.machine = replace(NO_CARD, driver="470.57.02")
    if built:
        here.plan()
    with caplog.at_level(logging.INFO):
        opened = here.open()
        here.machine = replace(here.machine, versions={})  # an image for the CPU on a machine with a card
        elsewhere = here.open()

    [note] = opened.choice.passed_over
    assert "no NVIDIA GPU can be used here: no CUDA-capable device is detected" in note
    assert note.endswith(" serves instead")
    assert [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"] == [note]
    assert len(elsewhere.choice.passed_over) == built


@pytest.mark.parametrize(
    ("versions", "command"),
    [
        (BOTH, "topfive export tiny --engine tensorrt --precision fp16 --target this --artifacts "),
        ({}, "pip install '.[tensorrt]' and then topfive export tiny --engine tensorrt "),
        ({Flavour.TENSORRT_RTX: "1.7.1.116"}, "topfive export tiny --engine tensorrt-rtx "),
    ],
    ids=["both", "none", "rtx"],
)
def test_card_without_plans(
    here: CardMachine, caplog: pytest.LogCaptureFixture, versions: dict[Flavour, str], command: str
) -> None:
    """A card that nothing is built for: once per load the log says what to run, to install what is missing first."""
    here.machine = replace(machine(ADA), versions=versions)
    with caplog.at_level(logging.WARNING):
        [note] = here.open().choice.passed_over

    flavour = "tensorrt-rtx" if "tensorrt-rtx" in command else "tensorrt"
    assert note.startswith(f"no {flavour} engine is built for tiny; run: {command}")
    assert "; openvino in " in note
    assert caplog.text.count(command) == 1


@pytest.mark.parametrize("runtime", [Runtime.TENSORRT, Runtime.TENSORRT_RTX])
def test_strict_without_plans(here: CardMachine, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime of plans that was asked for refuses where there is none, or it is not installed, with the command."""
    with pytest.raises(EngineUnavailableError, match=f"no {runtime} engine is built .* --engine {runtime} "):
        here.open(runtime)
    monkeypatch.setattr(select, "is_installed", lambda _flavour: False)
    with pytest.raises(EngineUnavailableError, match=rf"{runtime} is not installed; run: .* '\.\[{runtime}\]'"):
        here.open(runtime)


def test_checked_once(here: CardMachine) -> None:
    """The first load runs the reference images, the next only warms up; with another driver nothing is known yet."""
    here.plan()
    first, second = here.open(), here.open()
    here.machine = replace(here.machine, driver="590.1")
    here.open()

    warm = [1, 8]
    checked, known, again = (engine.batches for engine in here.engines)
    assert checked[:2] == known == warm
    assert sum(checked) == sum(warm) + 3 * len(reference_of(here.artifact).images)
    assert again == checked
    assert first.choice.parity == second.choice.parity


def test_checked_at_its_own_batch_sizes(here: CardMachine) -> None:
    """A plan of at most two rows is checked with one and with two, and never runs more."""
    here.plan(profile=BatchProfile(smallest=1, best=2, largest=2))
    opened = here.open()

    assert opened.engine.max_batch == 2
    assert opened.choice.parity[0].batch_sizes == (1, 2)
    assert max(here.engines[0].batches) == 2


def test_failed_check_is_passed_over(here: CardMachine, caplog: pytest.LogCaptureFixture) -> None:
    """An engine that answers wrongly is closed and passed over, with its figures, and is not built again."""
    here.plan()
    here.errors["fp16"] = 0.2
    with caplog.at_level(logging.WARNING):
        opened = here.open()
    again = here.open()
    with pytest.raises(EngineUnavailableError, match=r"differ from .*max \|dp\| 0\.2, 0\.01 allowed"):
        here.open(Runtime.TENSORRT_RTX)

    assert len(here.built) == 1
    assert here.engines[0].closed
    assert opened.engine.describe().runtime == "openvino"
    assert "max |dp| 0.2" in opened.choice.passed_over[0]
    assert opened.choice.passed_over[0] in caplog.text
    assert again.choice.passed_over == opened.choice.passed_over


def test_f32_where_fp16_fails(here: CardMachine) -> None:
    """Among the engines of one flavour the next best serves, and what failed is noted."""
    here.plan()
    here.plan(precision="f32")
    here.errors["fp16"] = 0.2
    opened = here.open(Runtime.TENSORRT_RTX)

    assert [report.precision for report in opened.choice.parity] == ["f32"]
    assert [engine.closed for engine in here.engines] == [True, False]
    assert len(opened.choice.passed_over) == 1
    assert opened.choice.passed_over[0].startswith("tiny on tensorrt-rtx: ")
    assert "-fp16: its answers on this GPU differ" in opened.choice.passed_over[0]


def test_int8_only_when_asked_for(here: CardMachine) -> None:
    """`auto` leaves int8 lying and says so; asked for it is taken, and fp16 is not taken in its place."""
    here.plan(precision="int8")
    opened = here.open()
    assert "auto does not take int8" in opened.choice.passed_over[0]
    here.open(precision=Precision.INT8)
    assert [stem.rpartition("-")[2] for stem, _ in here.built] == ["int8"]
    with pytest.raises(EngineUnavailableError, match="it computes in int8, and fp16 is asked for"):
        here.open(precision=Precision.FP16)


@pytest.mark.parametrize(
    ("runtime", "precision", "said"),
    [
        *product((*CPU_RUNTIMES, Runtime.ONNXRUNTIME_CUDA), (Precision.FP16,), (ELSEWHERE,)),
        *product(
            (Runtime.ONNXRUNTIME, Runtime.TORCH, Runtime.ONNXRUNTIME_CUDA), (Precision.INT8,), ("f32 .* openvino",)
        ),
        (Runtime.TENSORRT_RTX, Precision.BF16, "fp16 .* --runtime openvino"),
    ],
)
def test_precisions_are_refused_where_there_are_none(
    here: CardMachine, runtime: Runtime, precision: Precision, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime refuses a precision that it does not have, rather than compute in another, and names one that has."""
    monkeypatch.setattr(select, "installed", lambda _runtime: True)
    here.plan()
    with pytest.raises(EngineUnavailableError, match=f"{runtime} computes in {said}"):
        here.open(runtime, precision)


@pytest.mark.parametrize(
    ("where", "precision", "engine"),
    [
        (NO_CARD, Precision.FP16, "tensorrt"),
        (machine(ADA), Precision.FP16, "tensorrt"),
        (NO_CARD, Precision.INT8, "openvino"),
        (machine(ADA), Precision.INT8, "openvino"),
        (machine(ADA), Precision.INT8, "tensorrt"),
    ],
)
def test_auto_with_a_precision_that_needs_an_export(
    here: CardMachine, where: Machine, precision: Precision, engine: str
) -> None:
    """With nothing built for it, `auto` refuses too, and says what to build: for int8 on the CPU or on the card."""
    here.machine = where
    with pytest.raises(EngineUnavailableError, match=f"topfive export tiny --engine {engine} --precision {precision}"):
        here.open(precision=precision)


def test_artifact_without_reference(here: CardMachine) -> None:
    """An artifact of an older version has nothing to check with: its engine is not even built."""
    files = {name: digest for name, digest in here.artifact.manifest.files.items() if name != "reference.npz"}
    here.plan()
    here.artifact = replace(here.artifact, manifest=here.artifact.manifest.model_copy(update={"files": files}))
    opened = here.open()

    assert here.built == []
    assert "nothing to check its answers against" in opened.choice.passed_over[0]
    assert "run: topfive export tiny" in opened.choice.passed_over[0]


def test_a_full_card_is_left_to_who_chose_it(here: CardMachine) -> None:
    """Where a card was named, `auto` does not pass over it for lack of memory: others may leave it. Else it does."""
    here.plan()
    here.fails = {"fp16": MemoryError("2 GiB do not fit")}
    with pytest.raises(EngineUnavailableError, match="2 GiB do not fit") as full:
        here.open(card=ADA)
    assert out_of_memory(full.value)
    opened = here.open()
    assert here.engines[-1].closed
    assert opened.engine.describe().runtime == "openvino"
    assert "fails on its first batches: 2 GiB do not fit" in opened.choice.passed_over[0]


def test_among(here: CardMachine) -> None:
    """`auto` tries those it is told, so that a model for which the card has no room does not go there after all."""
    here.plan()
    opened = here.open(among=(Runtime.ONNXRUNTIME, Runtime.OPENVINO))
    assert here.built == []
    assert opened.engine.describe().runtime == "onnxruntime"


def test_which_card(here: CardMachine) -> None:
    """Of the cards that fit, the one with the most free memory; a card that is named is the only one."""
    other = replace(ADA, index=2, free_bytes=ADA.free_bytes - 1)
    here.machine = machine(TURING, other, ADA)
    here.plan()
    here.open()
    here.open(card=other)
    with pytest.raises(EngineUnavailableError, match="here is NVIDIA GeForce RTX 2080 Ti"):
        here.open(Runtime.TENSORRT_RTX, card=TURING)

    assert [card.index for _, card in here.built] == [ADA.index, other.index]


@pytest.fixture
def on_cuda(here: CardMachine, monkeypatch: pytest.MonkeyPatch) -> OnCuda:
    """What ONNX Runtime's CUDA provider would give, with answers that err so much."""

    def prepare(error: float) -> Faithful:
        engine = Faithful(reference_of(here.artifact), error)
        real = opening.build_engine

        def build(artifact: Artifact, runtime: Runtime, precision: Precision, options: EngineOptions) -> Engine:
            if runtime is Runtime.ONNXRUNTIME_CUDA:
                return engine
            return real(artifact, runtime, precision, options)

        monkeypatch.setattr(opening, "build_engine", build)
        monkeypatch.setattr("service.engines.onnxruntime.has_cuda", lambda: True)
        return engine

    return prepare


def test_cuda_provider_that_the_export_could_not_check(here: CardMachine, on_cuda: OnCuda) -> None:
    """Exported on a machine without a card, ONNX Runtime's CUDA is checked at its first load here, and once."""
    engine = on_cuda(0.0)
    first = here.open()
    checked = list(engine.batches)
    second = here.open()

    assert first.engine is second.engine is engine
    assert [report.passed for report in first.choice.parity] == [True]
    assert sum(checked) == 9 + 3 * len(reference_of(here.artifact).images)
    assert engine.batches == [*checked, 1, 8]


def test_cuda_provider_that_differs(here: CardMachine, on_cuda: OnCuda) -> None:
    """Where it answers wrongly it is passed over, or refused, as with a report of the export."""
    engine = on_cuda(0.01)
    opened = here.open()
    with pytest.raises(EngineUnavailableError, match="its answers on this GPU differ"):
        here.open(Runtime.ONNXRUNTIME_CUDA)

    assert engine.closed
    assert opened.engine.describe().runtime == "openvino"
    assert any("onnxruntime-cuda does not run tiny" in note for note in opened.choice.passed_over)


def test_nothing_is_kept_for_an_unknown_card(here: CardMachine, on_cuda: OnCuda) -> None:
    """Without cuda-bindings nobody knows which card it is: the check is made at each load."""
    engine = on_cuda(0.0)
    here.machine = Machine(Cards((), "cuda-bindings is not installed"), None, {})
    here.open()
    runs = len(engine.batches)
    here.open()

    assert len(engine.batches) == 2 * runs
    assert not here.cache.exists()
