"""From the service's types to messages and back: nothing is lost, in any field."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message

from models.analysis.layer_table import Layer, LayerTable
from models.artifact.artifact import ParityReport, Thresholds, WeightRecord, WeightSource
from models.artifact.measured import MeasuredAccuracy
from models.catalog import CATALOG, Channels, InputSpec, Interpolation, PublishedErrors, WeightSet
from service.common.errors import TABLE, BadImage, Code, EngineError, NotReady, Overloaded, TopfiveError, error_of
from service.common.model_info import BuiltEngine, ModelDetail, ModelLayers, ModelState, ModelSummary
from service.common.types import (
    Classification,
    EngineInfo,
    Latency,
    Layout,
    ModelCard,
    Prediction,
    Preprocessing,
    Timing,
)
from service.gateway import converters as back
from service.inference.comparison import Agreement, ClassName, Comparison, ComparisonTiming, Row
from service.rpc import converters as there

BARE_CARD = ModelCard("m", 0, "f", 1, 2, 3, "untrained", None, None, None, Latency(0, None, None, None))
CARD = ModelCard("resnet50", 4, "resnet", 25_557_032, 4_089_184_256, 224, "pretrained", 80.858, 95.434, "ImageNet",
                 Latency(9, 1.5, 2.25, 3.125))  # fmt: skip
ENGINE = EngineInfo("openvino", "2026.4", "cpu", "bf16")
ANSWER = Classification(
    predictions=(Prediction(1, 340, "n02391049", "zebra", 0.75), Prediction(2, 1, "", "other", 0.125)),
    model=CARD,
    engine=ENGINE,
    preprocessing=Preprocessing("libjpeg-turbo 3.2.0", "1/4", "resize 256 bilinear, crop 224"),
    timing_ms=Timing(1.5, 0.25, 3.125, 5.0),
    batch_size=3,
    warnings=("one", "two"),
    members=(CARD, BARE_CARD),
)
MEASUREMENT = MeasuredAccuracy(
    dataset="photos", dataset_sha256="ab", images=50, acc1=70.5, acc1_low=60.5, acc1_high=80.5, acc5=90.5,
    acc5_low=80.25, acc5_high=95.75, crops=10, runtime="openvino", precision="f32", date="2026-11-22", decode="fast",
)  # fmt: skip
INPUT = InputSpec(236, 224, Interpolation.BICUBIC, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), Channels.BGR)
FACTS = ModelDetail(
    name="resnet50", state=ModelState.READY, family="resnet", year=2015, paper="Deep", parameters=3,
    parameters_train=4, macs=5, input_size=224, classes=1000, acc1=80.858, acc5=95.434, acc_dataset="ImageNet",
    measured=(MEASUREMENT, MEASUREMENT.model_copy(update={"acc5": None, "acc5_low": None, "acc5_high": None})),
    version=2, weights="pretrained", engine=ENGINE, latency_ms=Latency(0, None, None, None), warnings=("careful",),
    passed_over=("tensorrt does not run it; openvino serves instead",),
    layout=Layout(2, 1, 8, "tuned on 2026-11-22"),
    input=INPUT,
    record=WeightRecord(source=WeightSource.FILE, name="w.safetensors", sha256="cd"),
    parity=(
        ParityReport(
            runtime="onnxruntime", runtime_version="1", precision="f32", device="cpu", images=20, batch_sizes=(1, 8),
            max_abs_diff=1e-06, logit_cosine=0.9999, top1_agreement=1.0, top5_agreement=0.95, passed=True,
            thresholds=Thresholds(
                max_abs_diff=0.0001, logit_cosine=0.999, top1_agreement=0.99, top5_agreement=0.9
            ),
        ),
    ),
    published=(WeightSet("V2", 80.858, 95.434, INPUT, "ImageNet"),),
    published_errors=(PublishedErrors("10 crops", 22.85, 6.71), PublishedErrors("single")),
    published_macs=3_800_000_000, depth=50, configuration="D", ilsvrc="2015, first", note="of a kind",
    engines=(
        BuiltEngine("tensorrt-11-sm75-fp16", "tensorrt", "11", ("sm75",), "fp16", "RTX", 1, 32, 9, True, "", ""),
        BuiltEngine("tensorrt-rtx-1-sm86+sm89-f32", "tensorrt-rtx", "1", ("sm86", "sm89"), "f32", None, 1, 8, 7, False,
                    "built for sm86, sm89", "topfive export resnet50"),
    ),
)  # fmt: skip
BARE_FACTS = replace(
    FACTS, state=ModelState.NOT_EXPORTED, year=None, paper="", acc1=None, acc5=None, acc_dataset=None, measured=(),
    version=None, weights=None, engine=None, latency_ms=None, warnings=(), passed_over=(), layout=None,
    engines=(), record=None, parity=(), published=(), published_errors=(),
    published_macs=None, depth=None, configuration=None, ilsvrc=None, note=None,
)  # fmt: skip
TABLE_OF_LAYERS = LayerTable.of(
    (3, 9, 8),
    [
        Layer("conv1", "convolution", "stem", (3, 9, 8), (4, 5, 4), 940, 10, (7, 7), (7, 7), (2, 2), (3, 3), 1),
        Layer("fc", "fully connected", "head", (64,), (10,), 650, 640, None),
    ],
)  # fmt: skip
LAYERS = ModelLayers("resnet50", 3, TABLE_OF_LAYERS)


def sent(message: Any) -> Any:
    """The message as it arrives."""
    return type(message).FromString(message.SerializeToString())


def unset(message: Message, path: str = "") -> Iterator[str]:
    """Fields that no instance in `message` sets, by their path; of an item of a list, that no item sets."""
    present = {field.name for field, _ in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        where = f"{path}.{field.name}"
        if field.name not in present:
            yield where
        elif field.message_type is not None:
            value = getattr(message, field.name)
            items = [value] if isinstance(value, Message) else list(value)
            missing = [set(unset(item, where)) for item in items]
            yield from set.intersection(*missing)


def test_an_answer() -> None:
    """Every part of an answer arrives as it was."""
    message = there.classify_reply("id", ANSWER)

    assert back.classification(sent(message)) == ANSWER
    assert sorted(unset(message)) == []


def test_a_bare_answer() -> None:
    """What an answer does not have it does not have on the other side either: accuracy, percentiles, members."""
    bare = replace(ANSWER, model=BARE_CARD, warnings=(), members=())

    assert back.classification(sent(there.classify_reply("id", bare))) == bare


def test_a_comparison() -> None:
    """Rows with answers and with errors, agreement, common classes, times and warnings arrive."""
    comparison = Comparison(
        rows=(Row("resnet50", ANSWER), Row("nobody", BadImage("not an image")), Row("ill", NotReady("it fails"))),
        agreement=(Agreement("n02391049", "zebra", ("resnet50", "vgg16")), Agreement("", "other", ("tiny",))),
        common=(ClassName("n02391049", "zebra"), ClassName("", "other")),
        timing_ms=ComparisonTiming(1.5, 2.5),
        warnings=("untrained",),
    )
    message = there.compare_reply("id", comparison)
    arrived = back.comparison(sent(message))

    assert arrived.rows[0] == comparison.rows[0]
    for left, right in zip(arrived.rows[1:], comparison.rows[1:], strict=True):
        assert left.model == right.model
        assert isinstance(left.result, TopfiveError)
        assert isinstance(right.result, TopfiveError)
        assert (type(left.result), left.result.detail) == (type(right.result), right.result.detail)
    assert replace(arrived, rows=comparison.rows) == comparison
    assert set(unset(message.rows[0].answer)) == {".request_id"}  # the reply has it
    assert sorted(unset(message)) == []


@pytest.mark.parametrize("facts", [FACTS, BARE_FACTS], ids=["exported", "not exported"])
def test_facts(facts: ModelDetail) -> None:
    """The page of a model arrives, exported or not, and so does its row in the list."""
    arrived = back.model_detail(sent(there.get_model_reply(facts)))
    row = back.model_summary(sent(there.model_info(facts)))

    assert arrived == facts
    assert type(row) is ModelSummary
    assert {name: getattr(facts, name) for name in ModelSummary.__dataclass_fields__} == {
        name: getattr(row, name) for name in ModelSummary.__dataclass_fields__
    }


def test_facts_fill_every_field() -> None:
    """The page that these tests send leaves no field of the contract out; percentiles are sent with answers."""
    assert set(unset(there.get_model_reply(FACTS))) == {
        f".info.model.latency_ms.{name}" for name in ("count", "p50", "p90", "p99")
    }


def test_layers() -> None:
    """The layer table arrives, with what a layer does not have."""
    message = there.get_layers_reply(LAYERS)

    assert back.model_layers(sent(message)) == LAYERS
    assert sorted(unset(message)) == []
    assert back.model_layers(sent(there.get_layers_reply(replace(LAYERS, version=None)))).version is None


def test_input_of_every_model() -> None:
    """Means and deviations of the whole catalog arrive as they were written, although 32 bits carry them."""
    specs = [CATALOG[name].input for name in CATALOG.names()]
    arrived = [back.model_detail(sent(there.get_model_reply(replace(FACTS, input=spec)))).input for spec in specs]

    assert arrived == specs
    assert len({spec.mean for spec in specs}) > 2


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_an_error(code: Code) -> None:
    """Each code of the table becomes the error that has it, with the words that came along."""
    error = error_of(code, "the reason")

    assert (error.code, error.detail) == (code, "the reason")
    assert error.translation is TABLE[code]


def test_errors_in_detail() -> None:
    """An overload says when to come back; a code of a later version is a failure that names it."""
    overloaded = error_of("overloaded", "full", 4.5)
    unknown = error_of("tired", "the server sleeps")

    assert isinstance(overloaded, Overloaded)
    assert overloaded.retry_after_s == 4.5
    assert type(unknown) is EngineError
    assert unknown.detail == "tired: the server sleeps"
