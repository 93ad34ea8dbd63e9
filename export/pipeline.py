"""One export from beginning to end: network, weights, graph, gate, artifact. A failure on the way leaves nothing."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from export.batch_norm import calibrate_batch_norm
from export.gate_images import photos, random_pixels
from export.onnx_writer import write_onnx
from export.parity_gate import gate
from export.progress import Reporter, tool_versions
from models.analysis.cost import Cost
from models.analysis.layer_table import write_layers
from models.analysis.trace import network_layers
from models.artifact import artifact as artifacts
from models.artifact.artifact import Artifact, Manifest, WeightRecord, WeightSource
from models.artifact.reference import write_reference
from models.build import ServedNetwork, build
from models.catalog import Architecture, InputSpec, WeightSet
from models.labels import named_labels, read_labels, write_labels
from models.weights import weights as sources

_RANDOM_IMAGES = 6
_CALIBRATION_SEED = 2012  # other noise than the gate's
STEPS = 4  # weights, graph, reference, artifact; the gate adds one for each engine


@dataclass(frozen=True, slots=True)
class WeightsChoice:
    """What `--weights` asked for: a source, or None for auto; the file; and the mirror to download from."""

    source: WeightSource | None
    file: Path | None = None
    mirror: str | None = None

    @classmethod
    def parse(cls, text: str, mirror: str | None) -> "WeightsChoice":
        """From `auto`, `pretrained`, `untrained` or a path."""
        if text == "auto":
            return cls(None, mirror=mirror)
        if text in (WeightSource.PRETRAINED, WeightSource.UNTRAINED):
            return cls(WeightSource(text), mirror=mirror)
        return cls(WeightSource.FILE, file=Path(text), mirror=mirror)

    def strictly(self) -> "WeightsChoice":
        """The same, but auto takes nothing else than pretrained weights."""
        return replace(self, source=self.source or WeightSource.PRETRAINED)

    def satisfied_by(self, present: WeightRecord, architecture: Architecture) -> bool:
        """Whether an artifact with these weights is already what was asked for."""
        if self.source is None:
            return present.source is not WeightSource.UNTRAINED or architecture.default_weights is None
        if self.file is not None:
            return self.file.is_file() and present.sha256 == artifacts.sha256(self.file)
        return present.source is self.source


@dataclass(frozen=True, slots=True)
class Exported:
    """The artifact that is there now. `unreachable` says why untrained weights had to do, where `auto` took them."""

    version: int
    manifest: Manifest
    unreachable: str | None = None


def export(architecture: Architecture, choice: WeightsChoice, root: Path, reporter: Reporter) -> Exported:
    """Write the next version of the artifact of `architecture` under `root`.

    Raises WeightsError, ExportError or GateError; then nothing was written.
    """
    reporter.step("network and weights")
    network = build(architecture)
    record, unreachable = _fill(network, architecture, choice, reporter)
    spec = _input(architecture, record)
    served = ServedNetwork(network, spec).eval()
    pictures = photos(spec)
    if record.source is WeightSource.UNTRAINED:
        # With photos alone, noise grows from layer to layer until rounding decides the answer.
        noise = random_pixels(spec, len(pictures), seed=_CALIBRATION_SEED)
        calibrate_batch_norm(served, np.concatenate([pictures, noise]))
    reporter.step("ONNX graph")
    with artifacts.new_version(root, architecture.name) as folder:
        write_onnx(served, spec, architecture.classes, folder / artifacts.GRAPH)
        table = network_layers(network, spec)
        write_layers(folder, table)
        write_labels(folder / artifacts.LABELS, named_labels(architecture.labels)[: architecture.classes])
        save_file(
            {name: value.contiguous() for name, value in network.state_dict().items()}, folder / artifacts.WEIGHTS
        )
        reporter.step("PyTorch's own answers")
        images = np.concatenate([pictures, random_pixels(spec, _RANDOM_IMAGES)])
        with torch.inference_mode():
            reference = served(torch.from_numpy(images)).numpy()
        write_reference(folder, images, reference)
        draft = _manifest(architecture, table.cost, record)
        labels = read_labels(folder / artifacts.LABELS)
        reports = gate(Artifact(folder, 0, draft, labels), images, reference, reporter.step)
        artifacts.write_manifest(folder, draft.model_copy(update={"parity": reports}))
        reporter.step("artifact")
    number, manifest = artifacts.read_manifest(root, architecture.name)
    return Exported(number, manifest, unreachable)


def _fill(
    network: torch.nn.Module, architecture: Architecture, choice: WeightsChoice, reporter: Reporter
) -> tuple[WeightRecord, str | None]:
    """Put the weights asked for into `network`; with auto also why they are untrained, where they are."""
    if choice.source is WeightSource.UNTRAINED:
        return sources.untrained(), None
    if choice.file is not None:
        return sources.load_file(network, architecture, choice.file), None
    if choice.source is None and architecture.default_weights is None:
        return sources.untrained(), None
    try:
        record = sources.load_pretrained(network, architecture, mirror=choice.mirror, progress=reporter.download)
    except sources.HostUnreachableError as error:
        if choice.source is WeightSource.PRETRAINED:
            raise
        return sources.untrained(), str(error)
    return record, None


def _published(architecture: Architecture, record: WeightRecord) -> WeightSet | None:
    """The published set that these weights are, or None for a file of the user's and for untrained ones."""
    for published in architecture.weight_sets:
        if record.source is WeightSource.PRETRAINED and published.tag == record.name:
            return published
    return None


def _input(architecture: Architecture, record: WeightRecord) -> InputSpec:
    """The recipe that belongs to the weights: the published set's own, else that of the architecture's default."""
    published = _published(architecture, record)
    return published.input if published else architecture.input


def _manifest(architecture: Architecture, cost: Cost, record: WeightRecord) -> Manifest:
    published = _published(architecture, record)
    return Manifest(
        name=architecture.name,
        family=architecture.family,
        year=architecture.year,
        paper=architecture.paper,
        input=_input(architecture, record),
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
