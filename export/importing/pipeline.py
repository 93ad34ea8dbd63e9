"""Imports one ONNX file: file, recipe, graph, parity gate, artifact. A failure leaves nothing.

The reference of the parity gate is the unchanged file.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from export.common import ExportError, Reporter, tool_versions
from export.gate_images import photos, random_pixels
from export.importing.conversion import Variant, has_half, has_quantised, variants
from export.importing.graph_contract import add_contract
from export.importing.labels import ImportLabels, labels_for
from export.importing.layer_table import graph_layers
from export.importing.recipe import Recipe, RecipeError, read_recipe
from export.importing.reference_run import ReferenceModel, probabilities
from export.importing.signature import Signature, UnsupportedError, check_opset, read_signature
from export.parity_gate import ParityError, check_parity
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
        write_reference(folder, source.images, source.reference)
        write_manifest(folder, _write_graph(source, request, folder, reporter))
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
    return _Source(model, signature, recipe, spec, images, reference)


def _rounding(model: ModelProto) -> Precision:
    """The precision whose bounds fit a file that rounds its own values to float32, float16 or 8 bits."""
    if has_quantised(model):
        return Precision.BF16  # the last bit of a pixel becomes a whole step of 256
    return Precision.FP16 if has_half(model) else Precision.F32


def _sum_error(model: ModelProto) -> float:
    """The most that the rounding of a thousand probabilities may change their sum."""
    if has_quantised(model):
        return 0.1
    return 2e-2 if has_half(model) else 1e-3


def _write_graph(source: _Source, request: ImportRequest, folder: Path, reporter: Reporter) -> Manifest:
    """Write the first graph that passes the gate, and its layers, to `folder`. Raises the error of the last one."""
    labels = read_labels(folder / LABELS)
    failures: list[ExportError] = []
    for variant in variants(source.model, source.signature):
        try:
            check_opset(variant.model)
            graph = add_contract(variant, source.signature, source.spec, source.recipe.output, source.classes)
            if (size := graph.ByteSize()) >= LARGEST_BYTES:
                raise UnsupportedError(f"in float32 the graph has {size:,} bytes; an ONNX file holds less than 2 GiB")
            (folder / GRAPH).write_bytes(graph.SerializeToString(deterministic=True))
            table = graph_layers(variant.fixed(source.signature), source.signature, variant.batch or 1)
            write_layers(folder, table)
            manifest = _manifest(source, request, variant, table.cost)
            reports = check_parity(
                Artifact(folder, 0, manifest, labels), source.images, source.reference, reporter.step
            )
        except (UnsupportedError, ParityError) as error:
            failures.append(error)
            continue
        return manifest.model_copy(update={"parity": reports})
    raise failures[-1]


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
        rounding=_rounding(source.model),
        tools=tool_versions(),
    )


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
