"""Engines built for cards: which is taken, what is passed over and said of it, and when answers are checked."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from models.artifact.artifact import GRAPH, Artifact, load
from models.artifact.engine_plan import BatchProfile, EnginePlan, Flavour, PlanError, write_plan
from service.common.gpus import Card, Cards
from service.common.types import EngineInfo, Precision, Runtime
from service.engines.base import Engine, EngineUnavailableError, out_of_memory
from service.engines.selection import opening, select
from service.engines.selection.compatibility import Machine
from service.engines.selection.opening import Opened, open_engine
from service.engines.selection.parity import reference_of
from service.engines.selection.select import EngineOptions
from tests.engines.test_gate import Faithful
from tests.engines.test_plans import ADA, BOTH, NO_CARD, TURING, machine
from tests.models.test_plan import CONTENT, record

CPU_RUNTIMES = (Runtime.OPENVINO, Runtime.ONNXRUNTIME, Runtime.TORCH)


@dataclass
class Shop:
    """Opens engines of plans on a machine of the test's choice; `errors` says by how much those of a precision err."""

    artifact: Artifact
    cache: Path
    machine: Machine = field(default_factory=lambda: machine(ADA))
    errors: dict[str, float] = field(default_factory=dict)
    fails: dict[str, Exception] = field(default_factory=dict)
    built: list[tuple[str, Card]] = field(default_factory=list)
    engines: list[Faithful] = field(default_factory=list)

    def plan(self, **changes: object) -> EnginePlan:
        """Put a plan with that record into the artifact."""
        made = record(**{"graph_sha256": self.artifact.manifest.files[GRAPH], **changes})
        return write_plan(self.artifact.folder, CONTENT, made)

    def open(self, runtime: Runtime = Runtime.AUTO, precision: Precision = Precision.AUTO, **options: object) -> Opened:
        """Open the artifact with these options."""
        asked = replace(EngineOptions(runtime, precision, cache=self.cache), **options)  # type: ignore[arg-type]
        return open_engine(self.artifact, asked, look=lambda: self.machine, build_plan=self._build)

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
def shop(artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop with `tiny`, both flavours of TensorRT installed and an RTX 4090."""
    monkeypatch.setattr(select, "is_installed", lambda _flavour: True)
    return Shop(load(artifacts, "tiny"), tmp_path / "cache")


def test_auto_takes_the_engine_of_the_card(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """An engine that fits and answers rightly serves, before every runtime that reads the graph; nothing is noted."""
    plan = shop.plan()
    with caplog.at_level(logging.WARNING):
        opened = shop.open()

    assert opened.engine is shop.engines[0]
    assert shop.built == [(plan.record.stem, ADA)]
    assert opened.choice.passed_over == ()
    assert [fit.fits for fit in opened.choice.fits] == [True]
    assert [(report.precision, report.passed) for report in opened.choice.parity] == [("fp16", True)]
    assert caplog.text == ""


def test_order_of_flavours(shop: Shop) -> None:
    """TensorRT itself comes before TensorRT for RTX, and fp16 before f32."""
    shop.plan()
    shop.plan(flavour=Flavour.TENSORRT, version=BOTH[Flavour.TENSORRT], card=ADA.name, precision="f32")
    best = shop.plan(flavour=Flavour.TENSORRT, version=BOTH[Flavour.TENSORRT], card=ADA.name)
    shop.open()
    shop.open(Runtime.TENSORRT_RTX)

    assert [stem for stem, _ in shop.built] == [best.record.stem, record().stem]


def test_misfit_is_said_and_never_loaded(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Another card: the log and the choice name plan, difference, command and what serves; nothing is built."""
    plan = shop.plan()
    shop.machine = machine(TURING)
    with caplog.at_level(logging.WARNING):
        opened = shop.open(precision=Precision.F32)
    with pytest.raises(EngineUnavailableError) as strict:
        shop.open(Runtime.TENSORRT_RTX)
    opened.engine.close()

    assert shop.built == []
    assert opened.engine.describe().runtime == "openvino"
    [note] = opened.choice.passed_over
    assert note in caplog.text
    assert "it computes in fp16, and f32 is asked for" in note
    assert note.endswith("; openvino in f32 serves instead")
    for text in (note, str(strict.value)):
        assert plan.record.stem in text
        assert "built for sm86, sm89; here is NVIDIA GeForce RTX 2080 Ti (sm75)" in text
        assert "run: topfive export tiny --engine tensorrt-rtx" in text


def test_damage_is_passed_over(shop: Shop) -> None:
    """A plan whose bytes are not those of its record, and a record that cannot be read, are named."""
    shop.plan()
    shop.fails["fp16"] = PlanError("some.plan differs from its record (sha256); build it again")
    (shop.artifact.folder / "engines" / "zzz.json").write_text("{")
    opened = shop.open(precision=Precision.AUTO)
    opened.engine.close()

    assert opened.engine.describe().runtime == "openvino"
    damaged, differs = opened.choice.passed_over
    assert "zzz.json cannot be read" in damaged
    assert "differs from its record (sha256); build it again" in differs


def test_nothing_is_said_without_card_and_plans(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """On a machine that nobody expects a card of, `auto` does not speak of cards, whatever is installed."""
    shop.machine = NO_CARD
    with caplog.at_level(logging.INFO):
        opened = shop.open(precision=Precision.F32)
    opened.engine.close()

    assert (opened.choice.passed_over, opened.choice.fits, opened.choice.parity) == ((), (), ())
    assert caplog.text == ""


def test_plans_without_a_card(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Where plans lie and no card is there, that is noted, but as nothing to worry about."""
    shop.machine = NO_CARD
    shop.plan()
    with caplog.at_level(logging.INFO):
        opened = shop.open()
    opened.engine.close()

    [note] = opened.choice.passed_over
    assert "no NVIDIA card can be used here" in note
    assert [entry.levelname for entry in caplog.records if entry.getMessage() == note] == ["INFO"]


@pytest.mark.parametrize("built", [True, False])
def test_a_driver_whose_card_cannot_be_used(shop: Shop, caplog: pytest.LogCaptureFixture, built: bool) -> None:
    """Driver and TensorRT are there and CUDA gives no card: a warning with CUDA's words, and who asks is told."""
    shop.machine = replace(NO_CARD, driver="470.57.02")
    if built:
        shop.plan()
    with caplog.at_level(logging.INFO):
        opened = shop.open()
        shop.machine = replace(shop.machine, versions={})  # an image for the CPU on a machine with a card
        elsewhere = shop.open()
    for one in (opened, elsewhere):
        one.engine.close()

    [note] = opened.choice.passed_over
    assert "no NVIDIA card can be used here: no CUDA-capable device is detected" in note
    assert note.endswith(" serves instead")
    assert [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"] == [note]
    assert len(elsewhere.choice.passed_over) == built


def test_card_without_plans(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """A card that nothing is built for: once per load the log says what to run."""
    with caplog.at_level(logging.WARNING):
        opened = shop.open()
    opened.engine.close()

    root = shop.artifact.folder.parent.parent
    command = f"topfive export tiny --engine tensorrt --precision fp16 --target this --artifacts {root}"
    [note] = opened.choice.passed_over
    assert f"no tensorrt engine is built for tiny; run: {command}; openvino in " in note
    assert caplog.text.count(command) == 1


def test_advice_where_nothing_is_installed(shop: Shop) -> None:
    """The packages come first; where only TensorRT for RTX is installed, it is that which is advised."""
    shop.machine = replace(machine(ADA), versions={})
    opened = shop.open()
    opened.engine.close()
    assert (
        "run: pip install '.[tensorrt]' and then topfive export tiny --engine tensorrt " in opened.choice.passed_over[0]
    )

    shop.machine = replace(machine(ADA), versions={Flavour.TENSORRT_RTX: "1.7.1.116"})
    opened = shop.open()
    opened.engine.close()
    assert "run: topfive export tiny --engine tensorrt-rtx " in opened.choice.passed_over[0]


@pytest.mark.parametrize("runtime", [Runtime.TENSORRT, Runtime.TENSORRT_RTX])
def test_strict_without_plans(shop: Shop, runtime: Runtime) -> None:
    """A runtime of plans that was asked for refuses where there is none, with the command that builds one."""
    with pytest.raises(EngineUnavailableError, match=f"no {runtime} engine is built .* --engine {runtime} "):
        shop.open(runtime)


def test_strict_and_not_installed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packages are missing the error has the pip command."""
    monkeypatch.setattr(select, "is_installed", lambda _flavour: False)
    with pytest.raises(EngineUnavailableError, match=r"tensorrt is not installed; run: pip install '\.\[tensorrt\]'"):
        shop.open(Runtime.TENSORRT)


def test_checked_once(shop: Shop) -> None:
    """The first load runs the reference images, the next only warms up, and has the same report."""
    shop.plan()
    first, second = shop.open(), shop.open()

    warm = [1, 8]
    assert shop.engines[0].batches[:2] == warm
    assert sum(shop.engines[0].batches) == sum(warm) + 3 * len(reference_of(shop.artifact).images)
    assert shop.engines[1].batches == warm
    assert first.choice.parity == second.choice.parity


def test_checked_again_for_another_driver(shop: Shop) -> None:
    """What another driver computes is not known yet."""
    shop.plan()
    shop.open()
    shop.machine = replace(shop.machine, driver="590.1")
    shop.open()

    assert shop.engines[0].batches == shop.engines[1].batches


def test_checked_at_its_own_batch_sizes(shop: Shop) -> None:
    """A plan of at most two rows is checked with one and with two, and never runs more."""
    shop.plan(profile=BatchProfile(smallest=1, best=2, largest=2))
    opened = shop.open()

    assert opened.engine.max_batch == 2
    assert opened.choice.parity[0].batch_sizes == (1, 2)
    assert max(shop.engines[0].batches) == 2


def test_failed_check_is_passed_over(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """An engine that answers wrongly is closed and passed over, with its figures, and is not built again."""
    shop.plan()
    shop.errors["fp16"] = 0.2
    with caplog.at_level(logging.WARNING):
        opened = shop.open()
    again = shop.open()
    with pytest.raises(EngineUnavailableError, match=r"differ from .*max \|dp\| 0\.2 \(at most 0\.01\)"):
        shop.open(Runtime.TENSORRT_RTX)
    for one in (opened, again):
        one.engine.close()

    assert len(shop.built) == 1
    assert shop.engines[0].closed
    assert opened.engine.describe().runtime == "openvino"
    assert "max |dp| 0.2" in opened.choice.passed_over[0]
    assert opened.choice.passed_over[0] in caplog.text
    assert again.choice.passed_over == opened.choice.passed_over


def test_f32_where_fp16_fails(shop: Shop) -> None:
    """Among the engines of one flavour the next best serves, and what failed is noted."""
    shop.plan()
    shop.plan(precision="f32")
    shop.errors["fp16"] = 0.2
    opened = shop.open(Runtime.TENSORRT_RTX)

    assert [report.precision for report in opened.choice.parity] == ["f32"]
    assert [engine.closed for engine in shop.engines] == [True, False]
    assert len(opened.choice.passed_over) == 1
    assert opened.choice.passed_over[0].startswith("tiny on tensorrt-rtx: ")
    assert "-fp16: its answers on this card differ" in opened.choice.passed_over[0]


def test_int8_only_when_asked_for(shop: Shop) -> None:
    """`auto` leaves int8 lying and says so; asked for it is taken, and fp16 is not taken in its place."""
    shop.plan(precision="int8")
    opened = shop.open()
    opened.engine.close()
    assert "auto does not take int8" in opened.choice.passed_over[0]
    shop.open(precision=Precision.INT8)
    assert [stem.rpartition("-")[2] for stem, _ in shop.built] == ["int8"]
    with pytest.raises(EngineUnavailableError, match="it computes in int8, and fp16 is asked for"):
        shop.open(precision=Precision.FP16)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("runtime", [*CPU_RUNTIMES, Runtime.ONNXRUNTIME_CUDA])
def test_precisions_of_cards_are_refused_elsewhere(
    shop: Shop, runtime: Runtime, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that has neither fp16 nor int8 refuses them, rather than compute in f32."""
    monkeypatch.setattr(select, "installed", lambda _runtime: True)
    with pytest.raises(EngineUnavailableError, match=rf"{runtime} computes in f32.* --runtime tensorrt"):
        shop.open(runtime, precision)


@pytest.mark.parametrize("where", [NO_CARD, machine(ADA)])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_auto_with_a_precision_of_cards(shop: Shop, where: Machine, precision: Precision) -> None:
    """With nothing built for it, `auto` refuses too, and says what to build."""
    shop.machine = where
    with pytest.raises(EngineUnavailableError, match=f"topfive export tiny --engine tensorrt --precision {precision}"):
        shop.open(precision=precision)


def test_bf16_is_not_for_plans(shop: Shop) -> None:
    """No plan computes in bf16: asked for, TensorRT refuses."""
    shop.plan()
    with pytest.raises(EngineUnavailableError, match=r"tensorrt-rtx computes in fp16 .* --runtime openvino"):
        shop.open(Runtime.TENSORRT_RTX, Precision.BF16)


def test_engine_that_fails_first(shop: Shop) -> None:
    """An engine that cannot run its first batch is closed, and the next runtime serves."""
    shop.plan()
    shop.fails["fp16"] = RuntimeError("an illegal instruction")
    opened = shop.open()
    opened.engine.close()

    assert shop.engines[0].closed
    assert "fails on its first batches: an illegal instruction" in opened.choice.passed_over[0]


def test_artifact_without_reference(shop: Shop) -> None:
    """An artifact of an older version has nothing to check with: its engine is not even built."""
    files = {name: digest for name, digest in shop.artifact.manifest.files.items() if name != "reference.npz"}
    shop.plan()
    shop.artifact = replace(shop.artifact, manifest=shop.artifact.manifest.model_copy(update={"files": files}))
    opened = shop.open()
    opened.engine.close()

    assert shop.built == []
    assert "nothing to check its answers against" in opened.choice.passed_over[0]
    assert "run: topfive export tiny" in opened.choice.passed_over[0]


def test_a_full_card_is_left_to_who_chose_it(shop: Shop) -> None:
    """Where a card was named, `auto` does not pass over it for lack of memory: others may leave it. Else it does."""
    shop.plan()
    shop.fails = {"fp16": MemoryError("2 GiB do not fit")}
    with pytest.raises(EngineUnavailableError, match="2 GiB do not fit") as full:
        shop.open(card=ADA)
    assert out_of_memory(full.value)
    opened = shop.open()
    opened.engine.close()
    assert opened.engine.describe().runtime == "openvino"


def test_among(shop: Shop) -> None:
    """`auto` tries those it is told, so that a model for which the card has no room does not go there after all."""
    shop.plan()
    opened = shop.open(among=(Runtime.ONNXRUNTIME, Runtime.OPENVINO))
    opened.engine.close()
    assert shop.built == []
    assert opened.engine.describe().runtime == "onnxruntime"


def test_which_card(shop: Shop) -> None:
    """Of the cards that fit, the one with the most free memory; a card that is named is the only one."""
    other = replace(ADA, index=2, free_bytes=ADA.free_bytes - 1)
    shop.machine = machine(TURING, other, ADA)
    shop.plan()
    shop.open()
    shop.open(card=other)
    with pytest.raises(EngineUnavailableError, match="here is NVIDIA GeForce RTX 2080 Ti"):
        shop.open(Runtime.TENSORRT_RTX, card=TURING)

    assert [card.index for _, card in shop.built] == [ADA.index, other.index]


@pytest.fixture
def on_cuda(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Faithful]:
    """What ONNX Runtime's CUDA provider would give, with answers that err so much."""

    def prepare(error: float) -> Faithful:
        engine = Faithful(reference_of(shop.artifact), error)
        real = opening.build_engine

        def build(artifact: Artifact, runtime: Runtime, precision: Precision, options: EngineOptions) -> Engine:
            if runtime is Runtime.ONNXRUNTIME_CUDA:
                return engine
            return real(artifact, runtime, precision, options)

        monkeypatch.setattr(opening, "build_engine", build)
        monkeypatch.setattr("service.engines.onnxruntime.has_cuda", lambda: True)
        return engine

    return prepare


def test_cuda_provider_is_checked_where_the_export_could_not(shop: Shop, on_cuda: Callable[[float], Faithful]) -> None:
    """Exported on a machine without a card, ONNX Runtime's CUDA is checked at its first load here, and once."""
    engine = on_cuda(0.0)
    first = shop.open()
    checked = list(engine.batches)
    second = shop.open()

    assert first.engine is second.engine is engine
    assert [report.passed for report in first.choice.parity] == [True]
    assert sum(checked) == 9 + 3 * len(reference_of(shop.artifact).images)
    assert engine.batches == [*checked, 1, 8]


def test_cuda_provider_that_differs(shop: Shop, on_cuda: Callable[[float], Faithful]) -> None:
    """Where it answers wrongly it is passed over, or refused, as with a report of the export."""
    engine = on_cuda(0.01)
    opened = shop.open()
    opened.engine.close()
    with pytest.raises(EngineUnavailableError, match="its answers on this card differ"):
        shop.open(Runtime.ONNXRUNTIME_CUDA)

    assert engine.closed
    assert opened.engine.describe().runtime == "openvino"
    assert any("onnxruntime-cuda does not run tiny" in note for note in opened.choice.passed_over)


def test_nothing_is_kept_for_an_unknown_card(shop: Shop, on_cuda: Callable[[float], Faithful]) -> None:
    """Without cuda-bindings nobody knows which card it is: the check is made at each load."""
    engine = on_cuda(0.0)
    shop.machine = Machine(Cards((), "cuda-bindings is not installed"), None, {})
    shop.open()
    runs = len(engine.batches)
    shop.open()

    assert len(engine.batches) == 2 * runs
    assert not shop.cache.exists()
