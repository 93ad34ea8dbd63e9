"""Exports one catalog network: network, weights, graph, parity gate, artifact. A failure leaves nothing."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from export.batch_norm import calibrate_batch_norm
from export.common import Reporter, tool_versions
from export.gate_images import photos, random_pixels
from export.onnx_writer import write_onnx
from export.parity_gate import check_parity
from export.weights_choice import WeightsChoice
from models.analysis.cost import Cost
from models.analysis.layer_table import write_layers
from models.analysis.trace import network_layers
from models.artifact.artifact import (
    GRAPH,
    LABELS,
    WEIGHTS,
    Artifact,
    Manifest,
    WeightRecord,
    WeightSource,
    new_version,
    read_manifest,
    write_manifest,
)
from models.artifact.reference import write_reference
from models.build import ServedNetwork, build
from models.catalog import Architecture, InputSpec, WeightSet
from models.labels import named_labels, read_labels, write_labels
from models.weights.weights import HostUnreachableError, load_file, load_pretrained, untrained

_RANDOM_IMAGES = 6
_CALIBRATION_SEED = 2012  # other noise than the gate's


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The new artifact. `fallback_reason` says why `auto` took untrained weights, if it did."""

    version: int
    manifest: Manifest
    fallback_reason: str | None = None


def export(architecture: Architecture, choice: WeightsChoice, root: Path, reporter: Reporter) -> ExportResult:
    """Write the next version of the artifact of `architecture` under `root`.

    Raises WeightsError or ExportError; then nothing is written.
    """
    reporter.step("network and weights")
    network = build(architecture)
    record, fallback_reason = _load_weights(network, architecture, choice, reporter)
    spec = _input_spec(architecture, record)
    served = ServedNetwork(network, spec).eval()
    pictures = photos(spec)
    if record.source is WeightSource.UNTRAINED:
        # With photos alone, noise grows from layer to layer until rounding decides the answer.
        noise = random_pixels(spec, len(pictures), seed=_CALIBRATION_SEED)
        calibrate_batch_norm(served, np.concatenate([pictures, noise]))
    reporter.step("ONNX graph")
    with new_version(root, architecture.name) as folder:
        write_onnx(served, spec, architecture.classes, folder / GRAPH)
        table = network_layers(network, spec, architecture.stages)
        write_layers(folder, table)
        write_labels(folder / LABELS, named_labels(architecture.labels)[: architecture.classes])
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
        reporter.step("PyTorch's own answers")
        images = np.concatenate([pictures, random_pixels(spec, _RANDOM_IMAGES)])
        with torch.inference_mode():
            reference = served(torch.from_numpy(images)).numpy()
        write_reference(folder, images, reference)
        manifest = _manifest(architecture, table.cost, record)
        artifact = Artifact(folder, 0, manifest, read_labels(folder / LABELS))
        reports = check_parity(artifact, images, reference, reporter.step)
        write_manifest(folder, manifest.model_copy(update={"parity": reports}))
        reporter.step("artifact")
    number, manifest = read_manifest(root, architecture.name)
    return ExportResult(number, manifest, fallback_reason)


def _load_weights(
    network: torch.nn.Module, architecture: Architecture, choice: WeightsChoice, reporter: Reporter
) -> tuple[WeightRecord, str | None]:
    """Load the weights of `choice`; returns their record, and why auto fell back to untrained ones."""
    if choice.file is not None:
        return load_file(network, architecture, choice.file), None
    unpublished = choice.source is None and architecture.default_weights is None
    if choice.source is WeightSource.UNTRAINED or unpublished:
        return untrained(), None
    try:
        progress = partial(reporter.phase, "download")
        return load_pretrained(network, architecture, mirror=choice.mirror, progress=progress), None
    except HostUnreachableError as error:
        if choice.source is WeightSource.PRETRAINED:
            raise
        return untrained(), str(error)


def _published(architecture: Architecture, record: WeightRecord) -> WeightSet | None:
    """The published set of these weights, or None for a user's file and for untrained weights."""
    for published in architecture.weight_sets:
        if record.source is WeightSource.PRETRAINED and published.tag == record.name:
            return published
    return None


def _input_spec(architecture: Architecture, record: WeightRecord) -> InputSpec:
    """The input of the published set of these weights, else the architecture's input."""
    if record.source is WeightSource.UNTRAINED and architecture.untrained_input is not None:
        return architecture.untrained_input
    published = _published(architecture, record)
    return published.input if published else architecture.input


def _manifest(architecture: Architecture, cost: Cost, record: WeightRecord) -> Manifest:
    published = _published(architecture, record)
    return Manifest(
        name=architecture.name,
        family=architecture.family,
        year=architecture.year,
        paper=architecture.paper,
        input=_input_spec(architecture, record),
        classes=architecture.classes,
        parameters=cost.parameters,
        parameters_train=architecture.parameters_train,
        macs=cost.macs,
        acc1=published.acc1 if published else None,
        acc5=published.acc5 if published else None,
        acc_dataset=published.dataset if published else None,
        weights=record,
        tools=tool_versions(),
    )
