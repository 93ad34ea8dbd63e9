"""Imports one ONNX file: file, recipe, graph, parity gate, artifact. A failure leaves nothing.

The reference of the parity gate is the unchanged file.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from export.common import ExportError, Reporter, tool_versions
from export.gate_images import photos, random_pixels
from export.importing.conversion import Variant, has_half, has_quantised, variants
from export.importing.graph_contract import add_contract
from export.importing.labels import ImportLabels, labels_for
from export.importing.layer_table import graph_layers
from export.importing.recipe import Output, Recipe, RecipeError, read_recipe
from export.importing.reference_run import GraphEngine, ReferenceModel, probabilities
from export.importing.signature import Signature, UnsupportedError, check_opset, read_signature
from export.parity_gate import GateRules, ParityError, RequiredEngines, check_parity
from models.analysis.cost import Cost
from models.analysis.layer_table import write_layers
from models.artifact.artifact import (
    GRAPH,
    IMPORTED,
    LABELS,
    Artifact,
    Manifest,
    WeightRecord,
    WeightSource,
    new_version,
    read_manifest,
    sha256,
    write_manifest,
)
from models.artifact.reference import write_reference
from models.catalog import CATALOG, InputSpec
from models.labels import read_labels, write_labels
from models.weights.onnx_reader import LARGEST_BYTES, read_model
from service.common.types import Batch, Precision, Probabilities
from service.engines.selection.parity import (
    BATCH_SIZES,
    BOUNDS,
    HALF_SMALLEST,
    THRESHOLDS,
    TIES,
    Bounds,
    compare,
    figures,
)

STEPS = 4  # file, reference answers, graph, artifact; the gate adds one for each engine

_SAME = 1e-6  # answers to photos and noise that differ by less do not depend on the image
_RANDOM_IMAGES = 6
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_LONGEST_NAME = 100


class ModelNameError(ExportError):
    """A model cannot have that name; the message names the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """The file to import, the name of the model, its recipe and its labels."""

    file: Path
    name: str
    recipe: Path
    labels: Path | None = None


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The new artifact, and notes for the user."""

    version: int
    manifest: Manifest
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """The file with its recipe, and the answers that every graph made from it must give."""

    model: ModelProto
    signature: Signature
    recipe: Recipe
    spec: InputSpec
    images: Batch
    reference: Probabilities
    rules: GateRules

    @property
    def classes(self) -> int:
        return int(self.reference.shape[1])


def import_model(request: ImportRequest, root: Path, reporter: Reporter) -> ImportResult:
    """Write the next version of the artifact of `request` under `root`.

    Raises OnnxFileError or ExportError; then nothing is written.
    """
    check_name(request.name)
    reporter.step("file and recipe")
    recipe = read_recipe(request.recipe)
    model = read_model(request.file)
    signature = read_signature(model, recipe)
    reporter.step("the file's own answers")
    source = _read_source(request.file, model, signature, recipe)
    labels = labels_for(source.classes, request.labels)
    reporter.step("ONNX graph")
    with new_version(root, request.name) as folder:
        write_labels(folder / LABELS, labels.rows)
        artifact = _write_graph(source, request, folder)
        write_reference(folder, source.images, source.reference)
        rules = _rules_for(source.rules, artifact.manifest.max_batch)
        reports = check_parity(artifact, source.images, source.reference, reporter.step, rules)
        write_manifest(folder, artifact.manifest.model_copy(update={"parity": reports}))
        reporter.step("artifact")
    number, manifest = read_manifest(root, request.name)
    return ImportResult(number, manifest, _notes(labels, manifest, source))


def check_name(name: str) -> None:
    """Raise ModelNameError unless `name` is plain and not in the catalog."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ModelNameError(
            f"{name!r} cannot be the name of a model: it is a folder and part of addresses; "
            f"begin with a letter or digit and use a-z, 0-9, '_', '.' and '-', at most {_LONGEST_NAME}"
        )
    if name in CATALOG:
        raise ModelNameError(
            f"{name} is the name of a catalog network, whose published facts would be shown for your file; "
            f"choose another name, or fill that network: topfive export {name} --weights FILE.onnx"
        )


def _read_source(file: Path, model: ModelProto, signature: Signature, recipe: Recipe) -> _Source:
    """Run the unchanged file on photos and noise. Raises UnsupportedError if its answers contradict the recipe."""
    scale = recipe.scale if recipe.scale is not None else 255
    if signature.element == TensorProto.UINT8:
        if recipe.scale == 255 or any(recipe.mean) or recipe.std != (1.0, 1.0, 1.0):
            raise RecipeError(
                "the network takes uint8, pixels as they are; leave scale, mean and std out, or write scale = 1, "
                "mean = 0 and std = 1"
            )
        scale = 1
    spec = recipe.input_spec(signature.size, scale)
    images = np.concatenate([photos(spec), random_pixels(spec, _RANDOM_IMAGES)])
    scores = ReferenceModel(file, model, signature).scores(images, recipe, scale)
    reference = probabilities(scores, recipe, _sum_error(model))
    rules = GateRules(original=file.name, required=RequiredEngines.ONE, bounds=_bounds(model, recipe))
    return _Source(model, signature, recipe, spec, images, reference, rules)


def _sum_error(model: ModelProto) -> float:
    """The most that the rounding of a thousand probabilities may change their sum."""
    if has_quantised(model):
        return 0.1
    return 2e-2 if has_half(model) else 1e-3


def _bounds(model: ModelProto, recipe: Recipe) -> Bounds:
    """The bounds for a file that rounds its own values to float32, float16 or 8 bits."""
    if has_quantised(model):
        return _bounds_of(Precision.BF16)  # the last bit of a pixel becomes a whole step of 256
    if not has_half(model):
        return BOUNDS
    half = _bounds_of(Precision.FP16)  # the file rounds each value to 11 bits, the graph in float32 does not
    return replace(half, smallest=HALF_SMALLEST) if recipe.output is Output.PROBABILITIES else half


def _bounds_of(precision: Precision) -> Bounds:
    """Return the default bounds, but with the thresholds and ties of `precision` for float32 as well."""
    return Bounds(
        thresholds=THRESHOLDS | {Precision.F32: THRESHOLDS[precision]},
        ties=TIES | {Precision.F32: TIES[precision]},
    )


def _write_graph(source: _Source, request: ImportRequest, folder: Path) -> Artifact:
    """Write the first graph that gives the file's answers to `folder`. Raises UnsupportedError or ParityError."""
    failures: list[ExportError] = []
    for variant in variants(source.model, source.signature):
        try:
            content = _checked_graph(variant, source, request.file)
        except (UnsupportedError, ParityError) as error:
            failures.append(error)
            continue
        (folder / GRAPH).write_bytes(content)
        table = graph_layers(variant.fixed(source.signature), source.signature, variant.batch or 1)
        write_layers(folder, table)
        manifest = _manifest(source, request, variant, table.cost)
        return Artifact(folder, 0, manifest, read_labels(folder / LABELS))
    raise failures[-1]


def _checked_graph(variant: Variant, source: _Source, file: Path) -> bytes:
    """The served graph of `variant`. Raises UnsupportedError if it does not run, ParityError if it differs."""
    check_opset(variant.model)
    graph = add_contract(variant, source.signature, source.spec, source.recipe.output, source.classes)
    if (size := graph.ByteSize()) >= LARGEST_BYTES:
        raise UnsupportedError(f"in float32 the graph has {size:,} bytes; an ONNX file holds less than 2 GiB")
    content = graph.SerializeToString(deterministic=True)
    bounds = _rules_for(source.rules, variant.max_batch).bounds
    engine = GraphEngine(content, max(bounds.batch_sizes))
    report = compare(engine, Precision.F32, source.images, source.reference, bounds)
    if not report.passed:
        raise ParityError(f"the graph made from {file} differs from it: {figures(report)}")
    return content


def _manifest(source: _Source, request: ImportRequest, variant: Variant, cost: Cost) -> Manifest:
    return Manifest(
        name=request.name,
        family=IMPORTED,
        year=None,
        paper="",
        input=source.spec,
        classes=source.classes,
        parameters=cost.parameters,
        parameters_train=cost.parameters,
        macs=cost.macs,
        acc1=None,
        acc5=None,
        weights=WeightRecord(source=WeightSource.FILE, name=request.file.name, sha256=sha256(request.file)),
        max_batch=variant.max_batch,
        tools=tool_versions(),
    )


def _rules_for(rules: GateRules, max_batch: int | None) -> GateRules:
    """The same rules without the batch sizes above `max_batch`."""
    sizes = BATCH_SIZES if max_batch is None else tuple(size for size in BATCH_SIZES if size <= max_batch)
    return replace(rules, bounds=replace(rules.bounds, batch_sizes=sizes))


def _notes(labels: ImportLabels, manifest: Manifest, source: _Source) -> tuple[str, ...]:
    notes = [labels.note] if labels.note else []
    if manifest.max_batch is not None:
        fixed = source.signature.batch
        what = f"its batch of {fixed}" if fixed else "its batch"
        notes.append(f"{what} cannot be changed in the graph, so it is served one image at a time")
    if has_half(source.model):
        notes.append("the file computes in float16 and is served in float32")
    if float(np.ptp(source.reference, axis=0).max()) < _SAME:
        notes.append(
            "the file gives the same answer to every photo and to noise, so the check says little; "
            "is it trained, and are scale, mean and std those of its training?"
        )
    return tuple(notes)
