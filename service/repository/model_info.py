"""Describes a model: from its manifest if it is exported, else from the catalog."""

from pathlib import Path

from models.analysis.layer_table import LayerTable, read_layers
from models.artifact.artifact import ArtifactError, FileNotInArtifactError, Manifest, NotExportedError
from models.catalog import WeightSet
from service.common.errors import ModelNotFound, NotReady
from service.common.model_info import (
    BuiltEngine,
    LayerRow,
    ModelDetail,
    ModelLayers,
    PublishedWeights,
    StageRow,
    WeightsInfo,
)
from service.common.types import copy_as
from service.engines.selection.compatibility import Fit
from service.engines.selection.opening import Choice
from service.repository.exported import ModelEntry
from service.repository.loaded_model import warnings_of


def built_engine(fit: Fit) -> BuiltEngine:
    """The record of an engine, and whether it fits this machine."""
    record = fit.plan.record
    return BuiltEngine(
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


def exported(entry: ModelEntry, root: Path) -> tuple[int, Manifest]:
    """The version and the manifest. Raises ModelNotFound if the model is not exported, NotReady if it is damaged."""
    if entry.exported is not None:
        return entry.exported
    if entry.damage is not None:
        raise NotReady(entry.damage)
    raise ModelNotFound(str(NotExportedError(entry.name, root)))


def model_layers(entry: ModelEntry, root: Path) -> ModelLayers:
    """The layer table of an exported model under `root`; the model need not be loaded.

    It reads a file, so call it on a thread. Raises ModelNotFound if the model is not exported or its artifact is too
    old to have a layer table, and NotReady if the manifest or the table is damaged.
    """
    version, manifest = exported(entry, root)
    try:
        return layers_of(entry.name, version, read_layers(root, version, manifest))
    except FileNotInArtifactError as error:
        raise ModelNotFound(str(error)) from error
    except ArtifactError as error:
        raise NotReady(str(error)) from error


def layers_of(name: str, version: int | None, table: LayerTable) -> ModelLayers:
    """The rows of the table with their shares of the total, and its totals."""
    return ModelLayers(
        model=name,
        version=version,
        input_shape=table.input,
        layers=tuple(copy_as(LayerRow, layer, share=round(table.share(layer.macs), 3)) for layer in table.layers),
        stages=tuple(copy_as(StageRow, stage, share=round(table.share(stage.macs), 3)) for stage in table.stages),
        parameters=table.cost.parameters,
        macs=table.cost.macs,
    )


def model_detail(entry: ModelEntry) -> ModelDetail:
    """The full description of the model."""
    version, manifest = entry.exported or (None, None)
    architecture = entry.architecture
    source = manifest or architecture
    assert source is not None, "a listed model is in the catalog or exported"
    published = architecture.default_weights if architecture else None
    acc1, acc5, dataset = _accuracy(manifest, published)
    choice = entry.loaded.choice if entry.loaded else Choice()
    return copy_as(
        ModelDetail,
        source,  # has the family, year, paper, parameters, macs, classes and input
        name=entry.name,
        state=entry.state,
        versions=entry.versions,
        input_size=source.input.crop,
        acc1=acc1,
        acc5=acc5,
        acc_dataset=dataset,
        measured=manifest.measured if manifest else (),
        version=version,
        packaged=manifest is not None and manifest.packaged,
        weights=manifest.weights.source if manifest else None,
        engine=entry.loaded.engine_info if entry.loaded else None,
        latency_ms=entry.loaded.latency.snapshot() if entry.loaded else None,
        warnings=(*(warnings_of(manifest) if manifest else ()), *filter(None, [entry.damage])),
        passed_over=choice.passed_over,
        layout=choice.layout,
        weights_file=copy_as(WeightsInfo, manifest.weights) if manifest else None,
        parity=(manifest.parity if manifest else ()) + choice.parity,
        published=tuple(copy_as(PublishedWeights, weights) for weights in architecture.weight_sets)
        if architecture
        else (),
        published_errors=architecture.published if architecture else (),
        published_macs=architecture.published_macs if architecture else None,
        depth=architecture.depth if architecture else None,
        configuration=architecture.configuration if architecture else None,
        ilsvrc=architecture.ilsvrc if architecture else None,
        note=architecture.note if architecture else None,
        engines=tuple(map(built_engine, choice.fits)),
        quantized=choice.quantized,
    )


def _accuracy(manifest: Manifest | None, published: WeightSet | None) -> tuple[float | None, float | None, str | None]:
    """Top-1, top-5, and the dataset."""
    if manifest is not None:
        return manifest.acc1, manifest.acc5, manifest.acc_dataset
    return (published.acc1, published.acc5, published.dataset) if published else (None, None, None)
