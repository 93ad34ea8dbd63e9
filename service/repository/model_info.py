"""What the service says about a model, from its manifest where it is exported and from the catalog where it is not."""

from dataclasses import dataclass
from pathlib import Path

from models.analysis.layer_table import LayerTable, read_layers
from models.artifact.artifact import (
    ArtifactError,
    FileNotInArtifactError,
    Manifest,
    NotExportedError,
    ParityReport,
    WeightRecord,
)
from models.artifact.measured import Measurement
from models.catalog import InputSpec, PublishedErrors, WeightSet
from service.common.errors import ModelNotFound, NotReady
from service.common.types import EngineInfo, Latency
from service.engines.selection.compatibility import Fit
from service.engines.selection.cpu_layout import Layout
from service.engines.selection.result import Choice
from service.repository.loaded_model import warnings_of
from service.repository.repository import Entry, ModelState


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
    measured: tuple[Measurement, ...]
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

    @classmethod
    def of(cls, fit: Fit) -> "BuiltEngine":
        """What is known of a plan that was judged."""
        record = fit.plan.record
        return cls(
            name=record.stem,
            runtime=record.flavour,
            version=record.version,
            targets=record.targets,
            precision=record.precision,
            card=record.card,
            smallest=record.profile.smallest,
            largest=record.profile.largest,
            size_bytes=record.size_bytes,
            fits=fit.fits,
            reason=fit.reason,
            remedy=fit.remedy,
        )


@dataclass(frozen=True, slots=True)
class ModelFacts(ModelSummary):
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
class LayerFacts:
    """The layers of one model. `version` is None where they were computed without an artifact."""

    name: str
    version: int | None
    table: LayerTable


def exported(entry: Entry, root: Path) -> tuple[int, Manifest]:
    """Version and manifest of an exported model. Raises ModelNotFound where it is not, NotReady where it is damaged."""
    if entry.damage is not None:
        raise NotReady(entry.damage)
    if entry.exported is None:
        raise ModelNotFound(str(NotExportedError(entry.name, root)))
    return entry.exported


def layer_facts(entry: Entry, root: Path) -> LayerFacts:
    """Of an exported model under `root`, loaded or not. Reads and checks a file: not for the event loop.

    Raises what `exported` raises; ModelNotFound where there was no such table yet when it was exported, and NotReady
    where that is damaged.
    """
    version, manifest = exported(entry, root)
    try:
        return LayerFacts(entry.name, version, read_layers(root, version, manifest))
    except FileNotInArtifactError as error:
        raise ModelNotFound(str(error)) from error
    except ArtifactError as error:
        raise NotReady(str(error)) from error


def facts(entry: Entry) -> ModelFacts:
    """Everything known of that entry."""
    version, manifest = entry.exported or (None, None)
    architecture = entry.architecture
    source = manifest or architecture
    assert source is not None, "a listed model is in the catalog or exported"
    published = architecture.default_weights if architecture else None
    acc1, acc5, dataset = _accuracy(manifest, published)
    choice = entry.loaded.choice if entry.loaded else Choice()
    return ModelFacts(
        name=entry.name,
        state=entry.state,
        family=source.family,
        year=source.year,
        paper=source.paper,
        parameters=source.parameters,
        parameters_train=source.parameters_train,
        macs=source.macs,
        input_size=source.input.crop,
        classes=source.classes,
        acc1=acc1,
        acc5=acc5,
        acc_dataset=dataset,
        measured=manifest.measured if manifest else (),
        version=version,
        weights=manifest.weights.source if manifest else None,
        engine=entry.loaded.engine_info if entry.loaded else None,
        latency_ms=entry.loaded.latency.snapshot() if entry.loaded else None,
        warnings=warnings_of(manifest) if manifest else tuple(filter(None, [entry.damage])),
        passed_over=choice.passed_over,
        layout=choice.layout,
        input=source.input,
        record=manifest.weights if manifest else None,
        parity=(manifest.parity if manifest else ()) + choice.parity,
        published=architecture.weight_sets if architecture else (),
        published_errors=architecture.published if architecture else (),
        published_macs=architecture.published_macs if architecture else None,
        depth=architecture.depth if architecture else None,
        configuration=architecture.configuration if architecture else None,
        ilsvrc=architecture.ilsvrc if architecture else None,
        note=architecture.note if architecture else None,
        engines=tuple(map(BuiltEngine.of, choice.fits)),
    )


def _accuracy(manifest: Manifest | None, published: WeightSet | None) -> tuple[float | None, float | None, str | None]:
    """Top-1, top-5 and on what."""
    if manifest is not None:
        return manifest.acc1, manifest.acc5, manifest.acc_dataset
    return (published.acc1, published.acc5, published.dataset) if published else (None, None, None)
