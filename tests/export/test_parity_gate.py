"""The gate: what counts as PyTorch's answer, what does not, and that nothing wrong becomes an artifact."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from export import parity_gate
from export.parity_gate import EngineKind, ParityError, check_parity
from export.pipeline import export
from export.weights_choice import WeightsChoice
from models.artifact.artifact import Artifact, ParityReport, Thresholds, load
from models.catalog import CATALOG
from service.common.types import Batch, EngineInfo, Precision, Probabilities, Rows, Runtime
from service.engines.base import Engine, EngineUnavailableError
from service.engines.selection import parity
from service.engines.selection.parity import BATCH_SIZES, THRESHOLDS, compare, figures, missed
from service.engines.selection.precision import choose_precision
from service.engines.selection.select import EngineOptions
from tests.conftest import NullReporter
from tests.export.distorted_engines import Change, distort
from tests.onnx_models import softmax as exact_softmax


class TableEngine(Engine):
    """Answers image number i, which is its first pixel, with row i of a table; `change` distorts what it gives."""

    def __init__(self, rows: Probabilities, change: Change = lambda rows: rows, precision: str = "f32") -> None:
        self.sizes: list[int] = []
        self.closed = False
        self._rows = rows
        self._change = change
        self._precision = precision

    def run(self, rows: Rows) -> Probabilities:
        batch = np.asarray(rows)
        self.sizes.append(len(batch))
        return self._change(self._rows[batch[:, 0, 0, 0]])

    def describe(self) -> EngineInfo:
        return EngineInfo("fake", "1", "cpu", self._precision)

    def close(self) -> None:
        self.closed = True


def numbered(count: int) -> Batch:
    """Images of 2 x 2 pixels that hold their own number."""
    return np.arange(count, dtype=np.uint8).repeat(12).reshape(count, 2, 2, 3)


def softmax(logits: Sequence[Sequence[float]]) -> Probabilities:
    """Probabilities of each row of logits."""
    return exact_softmax(np.array(logits)).astype(np.float32)


def rows(count: int = 16, classes: int = 1000, seed: int = 0) -> Probabilities:
    """Random answers, spread over many classes."""
    return softmax(np.random.default_rng(seed).normal(0, 2, (count, classes)).tolist())


def swap(first: int, second: int) -> Change:
    """Exchange two classes."""

    def change(given: Probabilities) -> Probabilities:
        order = np.arange(given.shape[1])
        order[[first, second]] = second, first
        return given[:, order]

    return change


def add(amount: float) -> Change:
    """Add to the probability of class 3."""

    def change(given: Probabilities) -> Probabilities:
        changed = given.copy()
        changed[:, 3] += amount
        return changed

    return change


def test_perfect_engine_passes_at_every_batch_size() -> None:
    """PyTorch's own answers pass with no difference, and all images went through in batches of 1, 3 and 8."""
    reference = rows()
    engine = TableEngine(reference)

    report = compare(engine, Precision.F32, numbered(16), reference)

    assert report.passed
    assert report.max_abs_diff == 0
    assert report.logit_cosine == pytest.approx(1, abs=1e-12)
    assert (report.top1_agreement, report.top5_agreement) == (1, 1)
    assert (report.images, report.batch_sizes) == (16, (1, 3, 8))
    assert engine.sizes == [1] * 16 + [3] * 5 + [1] + [8] * 2


def test_report_says_what_the_engine_says_it_is() -> None:
    """Runtime, version, device and precision in the report are the engine's own, not what was asked for."""
    reference = rows()

    report = compare(TableEngine(reference, precision="bf16"), Precision.BF16, numbered(16), reference)

    assert (report.runtime, report.runtime_version, report.device, report.precision) == ("fake", "1", "cpu", "bf16")
    assert report.thresholds == parity.THRESHOLDS[Precision.BF16]


def test_figures_equal_those_computed_by_hand() -> None:
    """p = (1/4, 1/2, 1/4) for q = (1/2, 1/4, 1/4): centred logits (-1, 2, -1)/3 and (2, -1, -1)/3, cosine -1/2."""
    reference = np.array([[0.5, 0.25, 0.25]], dtype=np.float32)
    given = np.array([[0.25, 0.5, 0.25]], dtype=np.float32)

    report = compare(TableEngine(given), Precision.F32, numbered(1), reference)

    assert report.max_abs_diff == 0.25
    assert report.logit_cosine == pytest.approx(-0.5)
    assert report.top1_agreement == 0
    assert report.top5_agreement == 1  # there are three classes, and all three are among the best five
    assert not report.passed


def test_worst_difference_and_cosine_and_mean_agreement_over_images() -> None:
    """Of two images, one right and one wrong: the worst of difference and cosine, half of top-1, 9 of 10 of top-5."""
    q = [[0.3, 0.25, 0.2, 0.15, 0.06, 0.04], [0.04, 0.06, 0.15, 0.2, 0.25, 0.3]]
    p = [q[0], [0.06, 0.04, 0.15, 0.2, 0.3, 0.25]]  # exchanges best and second, and fifth and sixth

    report = compare(
        TableEngine(np.array(p, dtype=np.float32)), Precision.F32, numbered(2), np.array(q, dtype=np.float32)
    )

    def centred(values: list[float]) -> list[float]:
        logs = [math.log(value) for value in values]
        return [value - sum(logs) / len(logs) for value in logs]

    a, b = centred(p[1]), centred(q[1])
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    assert report.max_abs_diff == pytest.approx(0.05)
    assert report.logit_cosine == pytest.approx(cosine)
    assert report.top1_agreement == 0.5
    assert report.top5_agreement == 0.9


def test_agreement_at_the_threshold_passes() -> None:
    """19 of 20 images at each of three batch sizes agree in 0.95 of them, which is not below 0.95."""
    reference = np.tile(np.array([0.6, 0.4], dtype=np.float32), (20, 1))
    given = reference.copy()
    given[7] = [0.4, 0.6]
    gate = Thresholds(max_abs_diff=1, logit_cosine=-2, top1_agreement=0.95, top5_agreement=0.95)

    report = compare(TableEngine(given), Precision.INT8, numbered(20), reference, thresholds=gate)

    assert report.top1_agreement == 0.95
    assert report.passed


def test_difference_just_over_the_threshold_fails() -> None:
    """1e-4 is the most an f32 engine may differ by on any class of any image, and one image is enough."""
    reference = rows()
    within, over = reference.copy(), reference.copy()
    within[7, 3] += 0.9e-4
    over[7, 3] += 1.1e-4

    assert compare(TableEngine(within), Precision.F32, numbered(16), reference).passed
    report = compare(TableEngine(over), Precision.F32, numbered(16), reference)
    assert not report.passed
    assert report.max_abs_diff == pytest.approx(1.1e-4, rel=1e-2)
    assert compare(TableEngine(over), Precision.BF16, numbered(16), reference).passed


def put(place: int, value: float) -> Change:
    """Put `value` into the first or the last row and class."""

    def change(given: Probabilities) -> Probabilities:
        changed = given.copy()
        changed[place, place] = value
        return changed

    return change


@pytest.mark.parametrize(
    "change", [lambda given: given[:, :-1], lambda given: given[1:], put(0, np.nan), put(-1, np.inf)]
)
@pytest.mark.parametrize("precision", [Precision.F32, Precision.BF16])
def test_answers_that_are_no_answers_are_the_worst_there_is(change: Change, precision: Precision) -> None:
    """Another shape, or a number that is not finite, fails with the worst figures, and the report is still JSON."""
    reference = rows()

    report = compare(TableEngine(reference, change), precision, numbered(16), reference)

    assert not report.passed
    assert (report.logit_cosine, report.top1_agreement, report.top5_agreement) == (-1, 0, 0)
    assert report.max_abs_diff == 1
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


def test_constant_answers_fail() -> None:
    """An engine that gives every class of every image the same probability has no cosine to speak of."""
    reference = rows(classes=1024)
    uniform = np.full_like(reference, 1 / 1024)

    report = compare(TableEngine(uniform), Precision.BF16, numbered(16), reference)

    assert not report.passed
    assert report.logit_cosine == pytest.approx(0, abs=1e-9)


def test_near_tie_may_go_either_way() -> None:
    """Best classes, and fifth and sixth, that differ by less than rounding count as agreeing when exchanged."""
    logits = [[9, 9 - 5e-4, 8, 7, 6, 6 - 5e-4, *[0.0] * 10]]
    reference = softmax(logits)

    for change in (swap(0, 1), swap(4, 5)):
        report = compare(TableEngine(reference, change), Precision.F32, numbered(1), reference)
        assert (report.top1_agreement, report.top5_agreement) == (1, 1)


def test_clear_exchange_is_caught_where_the_probabilities_hardly_differ() -> None:
    """Among many classes of small probability a wrong order passes difference and cosine, and agreement fails it."""
    reference = softmax([[*(0.005 * (10 - index) for index in range(10)), *np.linspace(-1, -5, 990)]])

    first = compare(TableEngine(reference, swap(0, 1)), Precision.F32, numbered(1), reference)
    fifth = compare(TableEngine(reference, swap(4, 5)), Precision.F32, numbered(1), reference)

    assert max(first.max_abs_diff, fifth.max_abs_diff) < parity.THRESHOLDS[Precision.F32].max_abs_diff
    assert min(first.logit_cosine, fifth.logit_cosine) > parity.THRESHOLDS[Precision.F32].logit_cosine
    assert (first.top1_agreement, first.top5_agreement) == (0, 1)
    assert fifth.top1_agreement == 1
    assert fifth.top5_agreement == pytest.approx(0.8)
    assert not first.passed
    assert not fifth.passed


def test_wrong_small_probabilities_are_caught_by_the_cosine() -> None:
    """Classes that tie and are far from likely may go wrong without a large difference; the cosine fails them."""
    reference, given = (softmax([[16.0, *[noise, -noise] * 500]]) for noise in (0.0, 0.5))

    report = compare(TableEngine(given), Precision.F32, numbered(1), reference)

    assert report.max_abs_diff < parity.THRESHOLDS[Precision.F32].max_abs_diff
    assert (report.passed, report.top1_agreement, report.top5_agreement) == (False, 1, 1)


def test_tie_is_wider_in_bf16() -> None:
    """What rounding may reverse depends on the precision: 5 percent is a tie in bf16 and none in f32."""
    reference = softmax([[2.0, 1.95, *[0.0] * 20]])
    engine = TableEngine(reference, swap(0, 1))

    assert compare(engine, Precision.BF16, numbered(1), reference).top1_agreement == 1
    assert compare(engine, Precision.F32, numbered(1), reference).top1_agreement == 0


def test_what_goes_wrong_at_one_batch_size_only_is_caught() -> None:
    """An engine that is right for single images and mixes up the rows of a batch of three fails."""
    reference = rows()

    def change(given: Probabilities) -> Probabilities:
        return given[::-1] if len(given) == 3 else given

    report = compare(TableEngine(reference, change), Precision.F32, numbered(16), reference)

    assert not report.passed
    order = [2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9, 14, 13, 12, 15]
    assert report.max_abs_diff == pytest.approx(np.abs(reference[order] - reference).max())
    wrong = (reference[order].argmax(axis=1) != reference.argmax(axis=1)).mean()
    assert report.top1_agreement == pytest.approx(1 - wrong / len(BATCH_SIZES))


def test_probability_of_zero_has_a_cosine() -> None:
    """Underflow to zero on either side neither divides by zero nor makes the figures meaningless."""
    reference = softmax([[150.0, 3.0, 2.0, 1.0, 0.5, 0.0]])
    assert reference[0, -1] == 0

    report = compare(TableEngine(reference), Precision.F32, numbered(1), reference)

    assert report.passed
    assert report.logit_cosine == pytest.approx(1)


def test_same_uniform_answer_agrees() -> None:
    """Logits that are all equal have no direction; the same on both sides is a cosine of one."""
    uniform = np.full((2, 8), 0.125, dtype=np.float32)

    report = compare(TableEngine(uniform), Precision.F32, numbered(2), uniform)

    assert report.passed
    assert report.logit_cosine == 1


def test_line_of_figures_has_what_was_measured_and_what_was_asked() -> None:
    """The one line that a user sees names engine and precision, each figure and each threshold."""
    reference = np.array([[0.5, 0.25, 0.25]], dtype=np.float32)
    report = compare(TableEngine(reference, swap(0, 1)), Precision.F32, numbered(1), reference)

    assert figures(report) == (
        "fake f32: max |dp| 0.25 (at most 0.0001), cosine -0.500000 (at least 0.9999), "
        "top-1 0.0% (at least 100%), top-5 100.0% (at least 100%)"
    )


def test_the_reason_is_the_one_that_decided(exported: Path) -> None:
    """What is said against an engine is what misses its threshold and nothing else; of a passed report nothing is."""
    report = load(exported, "tiny").manifest.parity[0]
    close = report.model_copy(update={"thresholds": THRESHOLDS[Precision.BF16], "max_abs_diff": 0.00083})

    assert missed(close) == ""
    assert missed(close.model_copy(update={"top1_agreement": 15 / 16})) == "top-1 agrees in 93.8 %, 100 % needed"
    assert missed(close.model_copy(update={"max_abs_diff": 0.05, "top5_agreement": 0.5})) == (
        "max |dp| 0.05, 0.03 allowed; top-5 agrees in 50 %, 90 % needed"
    )


F32 = EngineKind(Runtime.OPENVINO, Precision.F32)
OTHER = EngineKind(Runtime.ONNXRUNTIME, Precision.F32)
CUDA = EngineKind(Runtime.ONNXRUNTIME_CUDA, Precision.F32)
BF16 = EngineKind(Runtime.OPENVINO, Precision.BF16)


Gate = Callable[[dict[EngineKind, Engine | Exception]], tuple[ParityReport, ...]]


@pytest.fixture
def gate(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Runs the gate on these engines; an exception is raised where the engine would be built.

    The gate reads nothing of the artifact but its name.
    """

    def run(engines: dict[EngineKind, Engine | Exception]) -> tuple[ParityReport, ...]:
        def build(_artifact: Artifact, runtime: Runtime, precision: Precision, _options: EngineOptions) -> Engine:
            engine = engines[EngineKind(runtime, precision)]
            if isinstance(engine, Exception):
                raise engine
            return engine

        monkeypatch.setattr(parity_gate, "engine_kinds", lambda: list(engines))
        monkeypatch.setattr(parity_gate, "build_engine", build)
        return check_parity(load(exported, "tiny"), numbered(16), rows(), NullReporter().step)

    return run


def failing(error: Exception) -> TableEngine:
    """An engine whose runs fail."""

    def change(_given: Probabilities) -> Probabilities:
        raise error

    return TableEngine(rows(), change)


def test_gate_reports_on_every_engine(gate: Gate) -> None:
    """There is a report for each engine that may serve, and every engine is closed again.

    A lower precision that differs too much is a report that did not pass, not an error.
    """
    engines = {F32: TableEngine(rows()), OTHER: TableEngine(rows()), BF16: TableEngine(rows(), add(0.05), "bf16")}

    reports = gate(dict(engines))

    assert [(report.precision, report.passed) for report in reports] == [("f32", True), ("f32", True), ("bf16", False)]
    assert all(engine.closed for engine in engines.values())


def test_gate_refuses_a_file_that_differs_in_f32(gate: Gate) -> None:
    """One engine that differs in f32 means that the file is wrong: the message has model, engine and figures."""
    wrong = TableEngine(rows(), add(0.01))

    with pytest.raises(
        ParityError, match=r"tiny differs from PyTorch, no artifact .* fake f32: max \|dp\| 0\.01, 0\.0001 allowed"
    ):
        gate({F32: TableEngine(rows()), OTHER: wrong})

    assert wrong.closed


@pytest.mark.parametrize("broken", ["to build", "to run"])
def test_gate_refuses_a_file_that_an_engine_cannot_run(gate: Gate, broken: str) -> None:
    """An engine that should serve and cannot run the file in f32 is an error with the engine's own message."""
    engine = failing(RuntimeError("no kernel for Foo"))

    with pytest.raises(ParityError, match=r"tiny does not run on onnxruntime, no artifact .*: no kernel for Foo"):
        gate({OTHER: EngineUnavailableError("no kernel for Foo") if broken == "to build" else engine})

    assert engine.closed == (broken == "to run")


def test_gate_leaves_out_what_does_not_serve_here(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """A lower precision that fails has no report, so that the service does not use it, and the log says why.

    Nor has ONNX Runtime with CUDA on a machine without a card. Neither stops the export.
    """
    broken = failing(RuntimeError("no bf16 kernel"))

    reports = gate({CUDA: EngineUnavailableError("no driver"), F32: TableEngine(rows()), BF16: broken})

    assert [report.precision for report in reports] == ["f32"]
    assert "no bf16 kernel" in caplog.text
    assert broken.closed


def test_gate_needs_an_engine(gate: Gate) -> None:
    """Where no engine is installed nothing was checked: an error that says what to install."""
    with pytest.raises(ParityError, match=r"pip install '\.\[cpu\]'"):
        gate({})


def test_no_artifact_where_the_gate_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export whose f32 answers are a little off leaves nothing under the artifacts folder."""
    distort(monkeypatch, {F32: add(2e-4), BF16: None})

    with pytest.raises(ParityError, match=r"max \|dp\| 0\.0002"):
        export(CATALOG["tiny"], WeightsChoice.parse("untrained", None), tmp_path, NullReporter())

    assert list(tmp_path.iterdir()) == []


def test_artifact_remembers_that_bf16_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With bf16 giving no numbers there is an artifact, valid JSON, that says so; the service computes in f32."""
    distort(monkeypatch, {F32: None, BF16: put(0, np.nan)})

    export(CATALOG["tiny"], WeightsChoice.parse("untrained", None), tmp_path, NullReporter())

    artifact = load(tmp_path, "tiny")
    f32, bf16 = artifact.parity("openvino", "f32"), artifact.parity("openvino", "bf16")
    assert f32 is not None
    assert bf16 is not None
    assert (f32.passed, bf16.passed) == (True, False)
    assert choose_precision(artifact, Runtime.OPENVINO, Precision.AUTO) is Precision.F32

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((artifact.folder / "manifest.json").read_text(), parse_constant=refuse)
