"""The table of a network's layers: what a row holds, its totals, and the artifact's file of it. Loads no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from models.analysis.cost import Cost, Size
from models.artifact.artifact import LAYERS, ArtifactError, Manifest, read_file


class Kind(StrEnum):
    """What the field calls a layer. A module of another kind is a row by its own name, so `Layer.kind` is any text."""

    CONVOLUTION = "convolution"
    DEPTHWISE = "depthwise convolution"
    TRANSPOSED = "transposed convolution"
    FULLY_CONNECTED = "fully connected"
    MATRIX_PRODUCT = "matrix product"
    MAX_POOLING = "max pooling"
    AVERAGE_POOLING = "average pooling"
    GLOBAL_MAX_POOLING = "global max pooling"
    GLOBAL_AVERAGE_POOLING = "global average pooling"
    BATCH_NORM = "batch norm"
    GROUP_NORM = "group norm"
    INSTANCE_NORM = "instance norm"
    LAYER_NORM = "layer norm"
    LOCAL_RESPONSE_NORM = "local response norm"


@dataclass(frozen=True, slots=True)
class Layer:
    """One row: a layer that has parameters, multiplies and accumulates, or changes the map.

    Activations, dropout, flattening, concatenation and addition are no rows. `name` is the module's path in the
    network, or the name of a node of an imported graph that tells no modules. `input` and `output` are (channels,
    height, width), or (values,) after a flatten. `kernel`, `stride` and `padding` are (height, width), None where
    there is none; `padding` is None as well where its two sides differ. A layer that runs twice is two rows, the
    second without parameters. `receptive_field` is (height, width) in pixels of the input, not clipped at its edges,
    by the formula of `cost.ReceptiveField`; a global pooling and a fully connected layer after a flatten count as a
    kernel of the whole map; None where it is not known.
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
    """Consecutive layers of one stage name: how many, what they give together, their totals, the largest field."""

    name: str
    layers: int
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: Size | None


@dataclass(frozen=True, slots=True)
class LayerTable:
    """All rows of one network in the order in which they run, for one image of `input` = (channels, height, width).

    `stages` are the stages in the order of the rows; a name that comes back after another stage is one of its own.
    """

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
        """The table of these rows for an input of `size`.

        A stage gives what its last layer gives; `outputs` holds by name what those give that end otherwise, such as
        a module that ends in a concatenation.
        """
        stages = []
        for name, group in groupby(layers, key=lambda layer: layer.stage):
            rows = tuple(group)
            cost = _total(rows)
            stages.append(
                Stage(
                    name,
                    len(rows),
                    outputs.get(name, rows[-1].output),
                    cost.parameters,
                    cost.macs,
                    _largest([row.receptive_field for row in rows]),
                )
            )
        return cls(size, tuple(layers), tuple(stages))

    @property
    def cost(self) -> Cost:
        """The whole, from its stages: they are few, and `share` asks for it at each row."""
        return _total(self.stages)

    def share(self, macs: int) -> float:
        """So many multiply-accumulates in percent of the whole; 0 where the whole has none."""
        return 100 * macs / whole if (whole := self.cost.macs) else 0.0


_TABLE = TypeAdapter(LayerTable)


def _total(parts: Sequence[Layer | Stage]) -> Cost:
    return Cost(sum(part.parameters for part in parts), sum(part.macs for part in parts))


def _largest(fields: Sequence[Size | None]) -> Size | None:
    known = [field for field in fields if field is not None]
    return (max(high for high, _ in known), max(wide for _, wide in known)) if known else None


def write_layers(folder: Path, table: LayerTable) -> None:
    """Write the table into the draft of an artifact, before its manifest, which takes the sha256."""
    (folder / LAYERS).write_text(json.dumps(asdict(table)) + "\n", encoding="utf-8")


def read_layers(root: Path, version: int, manifest: Manifest) -> LayerTable:
    """The table of the artifact with that manifest under `root`.

    Raises FileNotInArtifactError where it has none, ArtifactError where it is missing, altered or no table.
    """
    content = read_file(root, version, manifest, LAYERS)
    try:
        return _TABLE.validate_json(content)
    except ValidationError as error:
        raise ArtifactError(
            f"{LAYERS} of {manifest.name} is not a table that this version reads; export or import the model again"
        ) from error
