"""The table of a network's layers, and its file in the artifact. Loads no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from models.analysis.cost import Cost, Size, largest
from models.artifact.artifact import LAYERS, ArtifactError, Manifest, read_file


class Kind(StrEnum):
    """Kinds of layers. A module of another kind has its class name, so `Layer.kind` may be any text."""

    CONVOLUTION = "convolution"
    DEPTHWISE = "depthwise convolution"
    FULLY_CONNECTED = "fully connected"
    MAX_POOLING = "max pooling"
    AVERAGE_POOLING = "average pooling"
    GLOBAL_AVERAGE_POOLING = "global average pooling"
    BATCH_NORM = "batch norm"
    LOCAL_RESPONSE_NORM = "local response norm"


@dataclass(frozen=True, slots=True)
class Layer:
    """One row: a layer that has parameters, multiplies and accumulates, or changes the size of the feature map.

    Activations, dropout, flattening, concatenation and addition have no row. `name` is the module's path in the
    network, or the node's name in an imported graph. `input` and `output` are (channels, height, width), or (values,)
    after a flatten. `kernel`, `stride` and `padding` are (height, width), None if there is none; `padding` is also
    None if two sides differ. A layer that runs twice has two rows, the second without parameters.
    `receptive_field` is (height, width) in pixels of the input, by the formula of `cost.ReceptiveField`; a global
    pooling, and a fully connected layer after a flatten, count as a kernel of the whole feature map. It is None in an
    imported graph.
    """

    name: str
    kind: str
    stage: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: Size | None
    kernel: Size | None = None
    stride: Size | None = None
    padding: Size | None = None
    groups: int | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive layers of one stage: their number, output shape, totals and largest receptive field."""

    name: str
    layers: int
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: Size | None


@dataclass(frozen=True, slots=True)
class LayerTable:
    """The layers and stages of one network in running order, for one image of `input` = (channels, height, width)."""

    input: tuple[int, int, int]
    layers: tuple[Layer, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def of(
        cls,
        size: tuple[int, int, int],
        layers: Sequence[Layer],
        outputs: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> "LayerTable":
        """The table of these layers for an input of `size`; consecutive layers with one stage name are a stage.

        The output of a stage is its last layer's, or the shape that `outputs` has for its name, as for a module
        that ends in a concatenation.
        """
        stages = []
        for name, group in groupby(layers, key=lambda layer: layer.stage):
            rows = tuple(group)
            cost, fields = _total(rows), [row.receptive_field for row in rows if row.receptive_field is not None]
            output, field = outputs.get(name, rows[-1].output), largest(*fields) if fields else None
            stages.append(Stage(name, len(rows), output, cost.parameters, cost.macs, field))
        return cls(size, tuple(layers), tuple(stages))

    def with_stage_names(self, names: Sequence[str]) -> "LayerTable":
        """The same table with these names of the stages, in order. Raises ValueError if there are more or fewer."""
        named = dict(zip((stage.name for stage in self.stages), names, strict=True))
        layers = tuple(replace(layer, stage=named[layer.stage]) for layer in self.layers)
        return LayerTable(self.input, layers, tuple(replace(stage, name=named[stage.name]) for stage in self.stages))

    @property
    def cost(self) -> Cost:
        """The totals, from the stages: they are few, and `share` is called for each row."""
        return _total(self.stages)

    def share(self, macs: int) -> float:
        """`macs` in percent of the network's multiply-accumulates; 0 if it has none."""
        return 100 * macs / whole if (whole := self.cost.macs) else 0.0


_TABLE = TypeAdapter(LayerTable)


def _total(parts: Sequence[Layer | Stage]) -> Cost:
    return Cost(sum(part.parameters for part in parts), sum(part.macs for part in parts))


def write_layers(folder: Path, table: LayerTable) -> None:
    """Write the table into the folder of a new artifact, before the manifest, which lists the sha256 of the file."""
    (folder / LAYERS).write_text(json.dumps(asdict(table)) + "\n", encoding="utf-8")


def read_layers(root: Path, version: int, manifest: Manifest) -> LayerTable:
    """The layer table of the artifact with that manifest under `root`.

    Raises FileNotInArtifactError if the artifact has none, ArtifactError if the file is missing or damaged.
    """
    content = read_file(root, version, manifest, LAYERS)
    try:
        return _TABLE.validate_json(content)
    except ValidationError as error:
        raise ArtifactError(
            f"{LAYERS} of {manifest.name} is not a table that this version reads; export or import the model again"
        ) from error
