"""The replies of the REST interface, as clients and the OpenAPI document see them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from models.analysis.cost import Size
from models.artifact.artifact import ParityReport
from models.artifact.measured import MeasuredAccuracy
from models.catalog import InputSpec, PublishedErrors
from service.common.model_info import BuiltEngine, ModelLayers, ModelState
from service.common.types import (
    DEFAULT_CROPS,
    DEFAULT_TOP_K,
    Classification,
    EngineInfo,
    Latency,
    Layout,
    ModelCard,
    Prediction,
    Preprocessing,
    Timing,
)
from service.inference.comparison import Agreement, ClassName, Comparison, ComparisonTiming

_Crops = Annotated[int, Field(description="1, or 10: the average over corners, centre and their mirrors")]
_TopK = Annotated[
    int | None, Field(description=f"How many classes, best first; {DEFAULT_TOP_K}, or all if there are fewer")
]


class ImageQuery(BaseModel):
    """The parameters of a request with an image."""

    repeated: ClassVar[frozenset[str]] = frozenset()
    """Those that may be given more than once."""


class PredictQuery(ImageQuery):
    """The parameters of `POST /predict`."""

    model: Annotated[
        str | None, Field(description="A name from /models, or ensemble:a+b; else the server's default")
    ] = None
    top_k: _TopK = None
    crops: _Crops = DEFAULT_CROPS


class CompareQuery(ImageQuery):
    """The parameters of `POST /compare`."""

    repeated = frozenset({"model"})

    model: Annotated[
        list[str] | None, Field(description="Names as of /predict, repeated or with commas; else all loaded models")
    ] = None
    top_k: _TopK = None
    crops: _Crops = DEFAULT_CROPS


class Reply(BaseModel):
    """The body of any reply."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


class Answer(Reply):
    """What a model says of one image. Probabilities are in [0, 1], accuracy in percent, times in milliseconds."""

    predictions: list[Prediction]
    model: ModelCard
    engine: EngineInfo
    preprocessing: Preprocessing
    timing_ms: Timing
    batch_size: int = Field(description="How many images shared this run of the engine")
    warnings: list[str]
    members: list[ModelCard] = Field(description="The members of an ensemble; empty for a single model")


class _Identified(Reply):
    request_id: str


class PredictReply(Answer, _Identified):  # the id first: fields come in the order of the bases from the last
    """The answer to one image."""

    @classmethod
    def of(cls, request_id: str, answer: Classification) -> "PredictReply":
        """The reply for an answer of the classifier."""
        return cls(request_id=request_id, **dict(Answer.model_validate(answer)))


class RowProblem(Reply):
    """Why one model of a comparison has no answer; `code` is that of the problem it would have been alone."""

    code: str
    detail: str
    retryable: bool


class CompareRow(Reply):
    """One model of a comparison, by the name it was asked for: its answer or its error, the other is null."""

    model: str
    answer: Answer | None
    error: RowProblem | None


class CompareReply(Reply):
    """One image and many models, each once, in the order of the request."""

    request_id: str
    rows: list[CompareRow]
    agreement: list[Agreement] = Field(description="Classes that are the best of any model, of the most models first")
    common: list[ClassName] = Field(description="What all that answered have among their best, most probable first")
    timing_ms: ComparisonTiming
    warnings: list[str]

    @classmethod
    def of(cls, request_id: str, comparison: Comparison, problems: Sequence[RowProblem | None]) -> "CompareReply":
        """The reply for a comparison, with a problem for each row that has no answer."""
        rows = [
            CompareRow(model=row.model, answer=None if problem else Answer.model_validate(row.result), error=problem)
            for row, problem in zip(comparison.rows, problems, strict=True)
        ]
        return cls(
            request_id=request_id,
            rows=rows,
            agreement=list(comparison.agreement),
            common=list(comparison.common),
            timing_ms=comparison.timing_ms,
            warnings=list(comparison.warnings),
        )


class WeightsReply(Reply):
    """The weights inside an exported model."""

    source: str
    name: str
    sha256: str | None


class WeightSetReply(Reply):
    """A published set of weights, with its accuracy in percent on `dataset` and the input it asks for."""

    tag: str
    acc1: float
    acc5: float
    dataset: str
    input: InputSpec


class ModelReply(Reply):
    """A model the server knows, what only an exported model has is null before the export."""

    name: str
    state: ModelState
    family: str
    year: int | None
    paper: str
    parameters: int = Field(description="Learned values in the graph that is served")
    parameters_train: int = Field(description="With the auxiliary heads that only training uses")
    macs: int
    input_size: int
    classes: int
    acc1: float | None = Field(description="Top-1 accuracy in percent of the weights inside, or of the published ones")
    acc5: float | None
    acc_dataset: str | None = Field(description="What acc1 and acc5 were measured on")
    measured: list[MeasuredAccuracy] = Field(
        description="What `topfive evaluate` found on the user's own images, oldest first"
    )
    version: int | None
    weights: str | None
    engine: EngineInfo | None
    latency_ms: Latency | None
    warnings: list[str]
    passed_over: list[str] = Field(
        description="Engines that were preferred to the one that serves: what differs, what to run"
    )
    layout: Layout | None = Field(
        description="Batches at once on the CPU, threads of each, largest batch; tuned, or defaults; null until loaded"
    )


class ModelDetailReply(ModelReply):
    """A model with its input recipe, its weights and how every engine compared with PyTorch, or with its file."""

    input: InputSpec
    record: WeightsReply | None = Field(serialization_alias="weights_file")
    parity: list[ParityReport]
    published: list[WeightSetReply] = Field(
        description="Published weights; `--weights pretrained` takes the first, a file of any is recognised"
    )
    published_errors: list[PublishedErrors] = Field(description="Error rates in percent as the paper reports them")
    published_macs: int | None
    depth: int | None = Field(description="Layers with weights, as the paper counts them")
    configuration: str | None
    ilsvrc: str | None
    note: str | None
    engines: list[BuiltEngine] = Field(description="Built for NVIDIA cards; empty until the model is loaded")


class ModelListReply(Reply):
    """All models of the catalog and all other exported ones."""

    default: str
    models: list[ModelReply]


class LayerReply(Reply):
    """A layer in the order of the run; sizes are height and width, maps are channels, height and width."""

    name: str = Field(description="The module's path in the network")
    kind: str
    stage: str
    kernel: Size | None
    stride: Size | None
    padding: Size | None
    groups: int | None
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int = Field(description="Learned values; 0 where an earlier row has them already")
    macs: int = Field(description="Multiply-accumulates for one image")
    share: float = Field(description="Of all multiply-accumulates, in percent")
    receptive_field: Size | None = Field(description="Pixels of the input that one value sees, not clipped at edges")


class StageReply(Reply):
    """Consecutive layers that belong together: how many, what they give, their totals, their largest field."""

    name: str
    layers: int
    output: tuple[int, ...]
    parameters: int
    macs: int
    share: float
    receptive_field: Size | None


class LayersReply(Reply):
    """The layers of a model, its stages, and its totals for one image of `input_shape` = channels, height, width."""

    model: str
    version: int | None = Field(description="Of the artifact; null where `topfive layers` computed it without one")
    input_shape: tuple[int, int, int]
    layers: list[LayerReply]
    stages: list[StageReply]
    parameters: int
    macs: int

    @classmethod
    def of(cls, facts: ModelLayers) -> "LayersReply":
        """The reply for what is known of the model."""
        table = facts.table
        return cls(
            model=facts.name,
            version=facts.version,
            input_shape=table.input,
            layers=[LayerReply(**asdict(layer), share=table.share(layer.macs)) for layer in table.layers],
            stages=[StageReply(**asdict(stage), share=table.share(stage.macs)) for stage in table.stages],
            parameters=table.cost.parameters,
            macs=table.cost.macs,
        )


class Health(Reply):
    """The state of the server."""

    status: str


class Problem(Reply):
    """An error, as RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    request_id: str
