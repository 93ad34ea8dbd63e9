"""The replies of the REST interface, as clients and the OpenAPI document see them."""

from pydantic import BaseModel, ConfigDict, Field

from models.artifact import ParityReport
from models.catalog import InputSpec
from service.model import describe, warnings_of
from service.repository import Entry, ModelState
from service.types import Classification, EngineInfo, Latency, ModelCard, Prediction, Timing


class _Reply(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


class PredictReply(_Reply):
    """The answer to one image. Probabilities are in [0, 1], accuracy in percent, times in milliseconds."""

    request_id: str
    predictions: list[Prediction]
    model: ModelCard
    engine: EngineInfo
    timing_ms: Timing
    batch_size: int = Field(description="How many images shared this run of the engine")
    warnings: list[str]

    @classmethod
    def of(cls, request_id: str, answer: Classification) -> "PredictReply":
        """The reply for an answer of the classifier."""
        return cls(
            request_id=request_id,
            predictions=list(answer.predictions),
            model=answer.model,
            engine=answer.engine,
            timing_ms=answer.timing_ms,
            batch_size=answer.batch_size,
            warnings=list(answer.warnings),
        )


class WeightsReply(_Reply):
    """The weights inside an exported model."""

    source: str
    name: str
    sha256: str | None


class ModelReply(_Reply):
    """A model the server knows. What only an exported model has is null until `topfive export` has run."""

    name: str
    state: ModelState
    family: str
    year: int
    paper: str
    parameters: int
    macs: int
    input_size: int
    classes: int
    acc1: float | None = Field(description="Top-1 accuracy in percent of the weights inside, or of the published ones")
    acc5: float | None
    version: int | None
    weights: str | None
    engine: EngineInfo | None
    latency_ms: Latency | None
    warnings: list[str]

    @classmethod
    def of(cls, entry: Entry) -> "ModelReply":
        """The row of the model list."""
        return cls.model_validate(_summary(entry))


class ModelDetailReply(ModelReply):
    """A model with its input recipe, its weights and how every engine compared with PyTorch."""

    input: InputSpec
    weights_file: WeightsReply | None
    parity: list[ParityReport]

    @classmethod
    def of(cls, entry: Entry) -> "ModelDetailReply":
        """The page of one model."""
        manifest = entry.exported[1] if entry.exported else None
        source = manifest or entry.architecture
        assert source is not None, "a listed model is in the catalog or exported"
        return cls.model_validate(
            {
                **_summary(entry),
                "input": source.input,
                "weights_file": manifest.weights.model_dump() if manifest else None,
                "parity": list(manifest.parity) if manifest else [],
            }
        )


class ModelListReply(_Reply):
    """All models of the catalog and all other exported ones."""

    default: str
    models: list[ModelReply]


class Health(_Reply):
    """The state of the server."""

    status: str


class Problem(_Reply):
    """An error, as RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    request_id: str


def _summary(entry: Entry) -> dict[str, object]:
    if entry.exported is not None:
        version, manifest = entry.exported
        latency = entry.loaded.latency.snapshot() if entry.loaded else Latency(0, None, None, None)
        card = describe(manifest, version, latency)
        facts: dict[str, object] = {name: getattr(card, name) for name in ModelCard.__slots__}
        facts |= {"year": manifest.year, "paper": manifest.paper, "classes": manifest.classes}
        warnings = list(warnings_of(manifest))
    else:
        architecture = entry.architecture
        assert architecture is not None, "a listed model is in the catalog or exported"
        published = architecture.default_weights
        facts = {
            "family": architecture.family,
            "year": architecture.year,
            "paper": architecture.paper,
            "parameters": architecture.parameters,
            "macs": architecture.macs,
            "input_size": architecture.input.crop,
            "classes": architecture.classes,
            "acc1": published.acc1 if published else None,
            "acc5": published.acc5 if published else None,
            "version": None,
            "weights": None,
            "latency_ms": None,
        }
        warnings = []
    engine = entry.loaded.engine_info if entry.loaded else None
    return {**facts, "name": entry.name, "state": entry.state, "engine": engine, "warnings": warnings}
