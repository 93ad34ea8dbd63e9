"""What the service reports about a model: its row in the list, its details, its layers.

REST replies, gRPC messages and tables are made from these classes. The descriptions are for the OpenAPI document.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from models.analysis.cost import Size
from models.artifact.artifact import ParityReport
from models.artifact.measured import MeasuredAccuracy
from models.artifact.quantized import QuantizationRecord
from models.catalog import InputSpec, PublishedErrors
from service.common.types import EngineInfo, Latency, Layout


class ModelState(StrEnum):
    """Whether a model is exported and loaded. FAILING: it is loaded, and its last batches failed."""

    NOT_EXPORTED = "not_exported"
    EXPORTED = "exported"
    LOADING = "loading"
    READY = "ready"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """The state of one version of a model, and why it does not answer; '' if it does."""

    name: str
    version: int
    state: ModelState
    reason: str


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model that the server knows. What only an exported model has is null before the export."""

    name: str
    state: ModelState
    family: str
    year: int | None
    paper: str
    parameters: Annotated[int, Field(description="Learned values in the graph that is served")]
    parameters_train: Annotated[int, Field(description="With the auxiliary heads that only training uses")]
    macs: int
    input_size: int
    classes: int
    acc1: Annotated[
        float | None, Field(description="Top-1 accuracy in percent of the weights inside, or of the published ones")
    ]
    acc5: float | None
    acc_dataset: Annotated[str | None, Field(description="Data set of acc1 and acc5")]
    measured: Annotated[
        tuple[MeasuredAccuracy, ...],
        Field(description="Results of `topfive evaluate` on the user's own images, oldest first"),
    ]
    version: int | None
    packaged: Annotated[bool, Field(description="Whether it comes with topfive, because no version is exported")]
    weights: str | None
    engine: EngineInfo | None
    latency_ms: Latency | None
    warnings: tuple[str, ...]
    passed_over: Annotated[
        tuple[str, ...],
        Field(description="Engines preferred to the one that serves: why each does not fit, what to run"),
    ]
    layout: Annotated[
        Layout | None,
        Field(
            description="Batches at once on the CPU, threads of each, largest batch; tuned, or defaults; "
            "null until loaded"
        ),
    ]


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """The weights inside an exported model."""

    source: str
    name: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """A published set of weights: its accuracy in percent on `dataset`, and the input that it needs."""

    tag: str
    acc1: float
    acc5: float
    dataset: str
    input: InputSpec


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine in the artifact that was built for NVIDIA GPUs, and whether it fits the GPUs of this machine.

    `card` is the GPU that it was built on, null if it was built without one. It takes batches from `smallest` to
    `largest`. `reason` says what differs and `remedy` what to run; both are empty if the engine fits.
    """

    name: str
    runtime: str
    version: str
    targets: tuple[str, ...]
    precision: str
    card: str | None
    smallest: int
    largest: int
    size_bytes: int
    fits: bool
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class ModelDetail(ModelSummary):
    """A model with its input, its weights, and the parity of each engine with PyTorch or the imported file."""

    versions: Annotated[tuple[int, ...], Field(description="Exported versions; a request may name any of them")]
    input: InputSpec
    weights_file: WeightsInfo | None
    parity: tuple[ParityReport, ...]
    published: Annotated[
        tuple[PublishedWeights, ...],
        Field(description="Published weights; `--weights pretrained` takes the first, a file of any is recognised"),
    ]
    published_errors: Annotated[
        tuple[PublishedErrors, ...], Field(description="Error rates in percent as the paper reports them")
    ]
    published_macs: int | None
    depth: Annotated[int | None, Field(description="Layers with weights, as the paper counts them")]
    configuration: str | None
    ilsvrc: str | None
    note: str | None
    engines: Annotated[
        tuple[BuiltEngine, ...], Field(description="Built for NVIDIA GPUs; empty until the model is loaded")
    ]
    quantized: Annotated[
        QuantizationRecord | None,
        Field(description="The int8 graph for CPUs; null without one, and until the model is loaded"),
    ]


@dataclass(frozen=True, slots=True)
class ModelList:
    """All models of the catalog and all other exported ones. `default` answers requests that name no model."""

    default: str
    models: tuple[ModelSummary, ...]


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer of a model. Sizes are height and width; maps are channels, height and width."""

    name: Annotated[str, Field(description="The module's path in the network")]
    kind: str
    stage: str
    kernel: Size | None
    stride: Size | None
    padding: Size | None
    groups: int | None
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: Annotated[int, Field(description="Learned values; 0 if an earlier row counts them already")]
    macs: Annotated[int, Field(description="Multiply-accumulates for one image")]
    share: Annotated[float, Field(description="Of all multiply-accumulates, in percent")]
    receptive_field: Annotated[
        Size | None, Field(description="Pixels of the input that one value sees, not clipped at edges")
    ]


@dataclass(frozen=True, slots=True)
class StageRow:
    """Consecutive layers that form one stage: their number, output shape, totals, and largest receptive field."""

    name: str
    layers: int
    output: tuple[int, ...]
    parameters: int
    macs: int
    share: float
    receptive_field: Size | None


@dataclass(frozen=True, slots=True)
class ModelLayers:
    """The layers of a model in execution order, its stages, and its totals for one image.

    `input_shape` is channels, height and width of that image.
    """

    model: str
    version: Annotated[
        int | None, Field(description="Of the artifact; null where `topfive layers` computed it without one")
    ]
    input_shape: tuple[int, int, int]
    layers: tuple[LayerRow, ...]
    stages: tuple[StageRow, ...]
    parameters: int
    macs: int
