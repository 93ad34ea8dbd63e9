"""What the service says about a model, from its manifest where it is exported and from the catalog where it is not."""

from dataclasses import dataclass

from models.artifact import ParityReport, WeightRecord
from models.catalog import InputSpec, WeightSet
from service.model import warnings_of
from service.repository import Entry, ModelState
from service.types import EngineInfo, Latency

_NOTHING_YET = Latency(0, None, None, None)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model. `version`, `weights`, `record` are None until it is exported, `engine` and `latency_ms` until loaded.

    Accuracy is in percent: of the weights inside, or before the export of those that would be downloaded.
    """

    name: str
    state: ModelState
    family: str
    year: int
    paper: str
    parameters: int
    macs: int
    input_size: int
    classes: int
    acc1: float | None
    acc5: float | None
    version: int | None
    weights: str | None
    engine: EngineInfo | None
    latency_ms: Latency | None
    warnings: tuple[str, ...]
    input: InputSpec
    record: WeightRecord | None
    parity: tuple[ParityReport, ...]
    published: tuple[WeightSet, ...]


def facts(entry: Entry) -> ModelFacts:
    """Everything known of that entry."""
    version, manifest = entry.exported or (None, None)
    source = manifest or entry.architecture
    assert source is not None, "a listed model is in the catalog or exported"
    published = entry.architecture.default_weights if entry.architecture else None
    accuracy = manifest or published
    return ModelFacts(
        name=entry.name,
        state=entry.state,
        family=source.family,
        year=source.year,
        paper=source.paper,
        parameters=source.parameters,
        macs=source.macs,
        input_size=source.input.crop,
        classes=source.classes,
        acc1=accuracy.acc1 if accuracy else None,
        acc5=accuracy.acc5 if accuracy else None,
        version=version,
        weights=manifest.weights.source if manifest else None,
        engine=entry.loaded.engine_info if entry.loaded else None,
        latency_ms=entry.loaded.latency.snapshot() if entry.loaded else None,
        warnings=warnings_of(manifest) if manifest else (),
        input=source.input,
        record=manifest.weights if manifest else None,
        parity=manifest.parity if manifest else (),
        published=entry.architecture.weight_sets if entry.architecture else (),
    )
