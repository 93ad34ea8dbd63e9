"""What the service says about a model: a row of the list, its page, its layers."""

from dataclasses import dataclass
from enum import StrEnum

from models.analysis.layer_table import LayerTable
from models.artifact.artifact import ParityReport, WeightRecord
from models.artifact.measured import MeasuredAccuracy
from models.catalog import InputSpec, PublishedErrors, WeightSet
from service.common.types import EngineInfo, Latency, Layout


class ModelState(StrEnum):
    """Where a model is on its way: known, exported, loading, ready, or failing its last real runs."""

    NOT_EXPORTED = "not_exported"
    EXPORTED = "exported"
    LOADING = "loading"
    READY = "ready"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A row of the list. `version` and `weights` are None until it is exported, `engine` and `latency_ms` until loaded.

    Accuracy is in percent: of the weights inside, or before the export of those that would be taken; `measured` on the
    user's own images, oldest first. `passed_over` says which engines were preferred to the one that serves, and why
    they do not: empty where there are none, and until it is loaded. `layout` is None until then, and on a card.
    """

    name: str
    state: ModelState
    family: str
    year: int | None
    paper: str
    parameters: int
    parameters_train: int
    macs: int
    input_size: int
    classes: int
    acc1: float | None
    acc5: float | None
    acc_dataset: str | None
    measured: tuple[MeasuredAccuracy, ...]
    version: int | None
    weights: str | None
    engine: EngineInfo | None
    latency_ms: Latency | None
    warnings: tuple[str, ...]
    passed_over: tuple[str, ...]
    layout: Layout | None


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine in the artifact that was built for NVIDIA cards, and whether it fits those of this machine.

    `card` is the one that it was built on, None where it was built without; it takes batches from `smallest` to
    `largest`. `reason` says what differs and `remedy` what to run, both empty where it fits.
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
    """The page of one model. `record` is None until it is exported.

    What the paper says of itself is that of the catalog, and empty or None for a model that is not in it. `parity` are
    the reports of the export, then those of this machine. `engines` are empty until it is loaded.
    """

    input: InputSpec
    record: WeightRecord | None
    parity: tuple[ParityReport, ...]
    published: tuple[WeightSet, ...]
    published_errors: tuple[PublishedErrors, ...]
    published_macs: int | None
    depth: int | None
    configuration: str | None
    ilsvrc: str | None
    note: str | None
    engines: tuple[BuiltEngine, ...]


@dataclass(frozen=True, slots=True)
class ModelLayers:
    """The layers of one model. `version` is None where they were computed without an artifact."""

    name: str
    version: int | None
    table: LayerTable


@dataclass(frozen=True, slots=True)
class ModelList:
    """Every model that is known, and the name of the one that a request without a name means."""

    default: str
    models: tuple[ModelSummary, ...]
