"""One import from beginning to end: somebody's ONNX file, recipe, graph, gate, artifact. A failure leaves nothing.

The file itself, run as it came, is the reference of the gate.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from export.gate_images import photos, random_pixels
from export.importing.conversion import Variant, has_half, has_quantised, variants
from export.importing.graph_contract import wrap
from export.importing.labels import Labels, labels_for
from export.importing.layer_table import graph_layers
from export.importing.recipe import Output, Recipe, RecipeError, read_recipe
from export.importing.reference_run import Original, Trial, probabilities
from export.importing.signature import RefusedError, Signature, check_opset, signature
from export.parity_gate import Enough, GateError, Rules, gate
from export.progress import Reporter, tool_versions
from models.analysis.cost import Cost
from models.analysis.layer_table import write_layers
from models.artifact import artifact as artifacts
from models.artifact.artifact import IMPORTED, Artifact, Manifest, ParityReport, WeightRecord, WeightSource
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

STEPS = 4  # file, its answers, graph, artifact; the gate adds one for each engine

_SAME = 1e-6  # answers that differ by less from photo to noise tell nothing of what is seen
_RANDOM_IMAGES = 6
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_LONGEST_NAME = 100


class UnfitNameError(Exception):
    """A model cannot have that name; the message says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to import: the file, the name it is served by, its recipe, and its labels where there are any."""

    file: Path
    name: str
    recipe: Path
    labels: Path | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """The artifact that is there now, and what the user should know of it."""

    version: int
    manifest: Manifest
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """The file, understood: what every graph made from it must be and answer."""

    model: ModelProto
    signature: Signature
    recipe: Recipe
    spec: InputSpec
    images: Batch
    reference: Probabilities
    rules: Rules

    @property
    def classes(self) -> int:
        """How many the file tells apart."""
        return int(self.reference.shape[1])


def import_model(request: Request, root: Path, reporter: Reporter) -> Imported:
    """Write the next version of the artifact of `request` under `root`.

    Raises UnfitNameError, RecipeError, OnnxFileError, LabelsError, ExportError or GateError; then nothing was written.
    """
    check_name(request.name)
    reporter.step("file and recipe")
    recipe = read_recipe(request.recipe)
    model = read_model(request.file)
    found = signature(model, recipe)
    reporter.step("the file's own answers")
    source = _understood(request.file, model, found, recipe)
    labels = labels_for(source.classes, request.labels)
    reporter.step("ONNX graph")
    with artifacts.new_version(root, request.name) as folder:
        write_labels(folder / artifacts.LABELS, labels.rows)
        artifact = _best(source, request, folder)
        write_reference(folder, source.images, source.reference)
        rules = _rules(source.rules, artifact.manifest.max_batch)
        reports = gate(artifact, source.images, source.reference, reporter.step, rules)
        artifacts.write_manifest(folder, artifact.manifest.model_copy(update={"parity": reports}))
        reporter.step("artifact")
    number, manifest = artifacts.read_manifest(root, request.name)
    return Imported(number, manifest, _notes(labels, manifest, source))


def check_name(name: str) -> None:
    """Raise UnfitNameError unless `name` is plain and free for a model of other origin."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise UnfitNameError(
            f"{name!r} cannot be the name of a model: it is a folder and part of addresses; "
            f"begin with a letter or digit and use a-z, 0-9, '_', '.' and '-', at most {_LONGEST_NAME}"
        )
    if name in CATALOG:
        raise UnfitNameError(
            f"{name} is the name of a catalog network, whose published facts would be shown for your file; "
            f"choose another name, or fill that network: topfive export {name} --weights FILE.onnx"
        )


def _understood(file: Path, model: ModelProto, found: Signature, recipe: Recipe) -> _Source:
    """Run the file as it came on photos and noise. Raises RefusedError where its answers are not as declared."""
    scale = recipe.scale if recipe.scale is not None else 255
    if found.element == TensorProto.UINT8:
        if recipe.scale == 255 or any(recipe.mean) or recipe.std != (1.0, 1.0, 1.0):
            raise RecipeError(
                "the network takes uint8, pixels as they are; leave scale, mean and std out, or write scale = 1, "
                "mean = 0 and std = 1"
            )
        scale = 1
    spec = recipe.input_spec(found.size, scale)
    images = np.concatenate([photos(spec), random_pixels(spec, _RANDOM_IMAGES)])
    scores = Original(file, model, found).scores(images, recipe, scale)
    reference = probabilities(scores, recipe, _sum_error(model))
    return _Source(model, found, recipe, spec, images, reference, _original_rules(file.name, model, recipe))


def _sum_error(model: ModelProto) -> float:
    """By how much the roundings of a thousand probabilities may move their sum."""
    if has_quantised(model):
        return 0.1
    return 2e-2 if has_half(model) else 1e-3


def _original_rules(name: str, model: ModelProto, recipe: Recipe) -> Rules:
    """How near the graph must come to a file that rounds its own values to float32, float16 or 8 bits."""
    return Rules(original=name, enough=Enough.ONE_ENGINE, bounds=_bounds(model, recipe))


def _bounds(model: ModelProto, recipe: Recipe) -> Bounds:
    if has_quantised(model):
        return _as_coarse_as(Precision.BF16)  # the last bit of a pixel becomes a whole step of 256
    if not has_half(model):
        return BOUNDS
    half = _as_coarse_as(Precision.FP16)  # the file rounds each of its values to 11 bits; the graph in float32 does not
    return replace(half, smallest=HALF_SMALLEST) if recipe.output is Output.PROBABILITIES else half


def _as_coarse_as(precision: Precision) -> Bounds:
    """Bounds by which float32 may differ from the original as much as `precision` else may."""
    return Bounds(
        thresholds=THRESHOLDS | {Precision.F32: THRESHOLDS[precision]},
        ties=TIES | {Precision.F32: TIES[precision]},
    )


def _best(source: _Source, request: Request, folder: Path) -> Artifact:
    """The first graph that gives the file's answers, written to `folder`. Raises RefusedError or GateError."""
    failures: list[RefusedError | GateError] = []
    for variant in variants(source.model, source.signature):
        try:
            check_opset(variant.model)
            graph = wrap(variant, source.signature, source.spec, source.recipe.output, source.classes)
            if (size := graph.ByteSize()) >= LARGEST_BYTES:
                raise RefusedError(f"in float32 the graph has {size:,} bytes; an ONNX file holds less than 2 GiB")
            content = graph.SerializeToString(deterministic=True)
            report = _try(content, source, variant)
        except RefusedError as error:
            failures.append(error)
            continue
        if report.passed:
            (folder / artifacts.GRAPH).write_bytes(content)
            table = graph_layers(variant.fixed(source.signature), source.signature, variant.batch or 1)
            write_layers(folder, table)
            manifest = _manifest(source, request, variant, table.cost)
            return Artifact(folder, 0, manifest, read_labels(folder / artifacts.LABELS))
        failures.append(GateError(f"the graph made from {request.file} differs from it: {figures(report)}"))
    raise failures[-1]


def _try(content: bytes, source: _Source, variant: Variant) -> ParityReport:
    """The graph in ONNX Runtime at every batch size against the file. Raises RefusedError where it does not run."""
    bounds = _rules(source.rules, variant.max_batch).bounds
    return compare(Trial(content, max(bounds.batch_sizes)), Precision.F32, source.images, source.reference, bounds)


def _manifest(source: _Source, request: Request, variant: Variant, cost: Cost) -> Manifest:
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
        weights=WeightRecord(source=WeightSource.FILE, name=request.file.name, sha256=artifacts.sha256(request.file)),
        max_batch=variant.max_batch,
        tools=tool_versions(),
    )


def _rules(rules: Rules, max_batch: int | None) -> Rules:
    sizes = BATCH_SIZES if max_batch is None else tuple(size for size in BATCH_SIZES if size <= max_batch)
    return replace(rules, bounds=replace(rules.bounds, batch_sizes=sizes))


def _notes(labels: Labels, manifest: Manifest, source: _Source) -> tuple[str, ...]:
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
