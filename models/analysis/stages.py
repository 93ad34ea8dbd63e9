"""The stages of a network as a lecture names them: which layers belong together. Loads no torch.

The rule looks at each direct child of the network. A container named `features` is opened, so that its children count
as the network's own.

- A block, which is a child with layers inside, is a stage of its own name: `layer1`, `inception3a`, `features.3`.
- Consecutive single layers between blocks are a stage, named by the first of them that has weights: `conv1`, `fc`.
  If `features` holds single layers only, its stages are numbered: `features 1`, `features 2`.
- A layer that shrinks the map without multiplying, such as a pooling with a stride, ends the stage before it.
- A global pooling begins the stage after it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from models.analysis.layer_table import Kind, Layer

_CONTAINER = "features"


class StageNaming(Enum):
    """How the stage of a layer is named: by its block, by its first layer with weights, or by a number."""

    BLOCK = "block"
    FIRST_LAYER = "first layer"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a layer is in the network, which decides its stage.

    `naming` is how its stage is named. `parent` is the path of the block or of the opened container that holds the
    layer. It is empty for a direct child of the network.
    """

    naming: StageNaming
    parent: str


def position_of(path: str, containers: Collection[str]) -> Position:
    """The position of the layer with the module path `path`, such as `layer1.0.conv1`.

    `containers` holds the paths of all modules with layers inside.
    """
    first, _, rest = path.partition(".")
    if first == _CONTAINER and rest:
        first = f"{first}.{rest.partition('.')[0]}"
        if first not in containers:
            blocks = any(name.startswith(f"{_CONTAINER}.") for name in containers)
            return Position(StageNaming.FIRST_LAYER if blocks else StageNaming.NUMBER, _CONTAINER)
    elif first not in containers:
        return Position(StageNaming.FIRST_LAYER, "")
    return Position(StageNaming.BLOCK, first)


@dataclass(slots=True)
class _Group:
    """The layers of one stage so far; `ended` after a pooling that shrinks the map."""

    position: Position
    layers: list[Layer]
    ended: bool = False

    def takes(self, position: Position) -> bool:
        """Whether the next layer, at `position`, belongs to this stage."""
        return all(_begins(layer) for layer in self.layers) or (self.position == position and not self.ended)

    def name(self, number: int) -> str:
        """The name of the stage; `number` counts the stages of its parent."""
        if self.position.naming is StageNaming.BLOCK:
            return self.position.parent
        if self.position.naming is StageNaming.NUMBER:
            return f"{self.position.parent} {number}"
        return next((layer.name for layer in self.layers if layer.parameters), self.layers[0].name)


def with_stages(layers: Sequence[Layer], positions: Sequence[Position]) -> tuple[Layer, ...]:
    """The layers with the names of their stages filled in; `positions` holds the position of each."""
    groups: list[_Group] = []
    for layer, position in zip(layers, positions, strict=True):
        last = groups[-1] if groups else None
        single = position.naming is not StageNaming.BLOCK
        if last and single and _ends(layer):
            last.layers.append(layer)
            last.ended = True
        elif last and last.takes(position) and not (single and _begins(layer)):
            last.layers.append(layer)
            last.position = position  # the position of the layer after a global pooling
        else:
            groups.append(_Group(position, [layer]))
    named = []
    numbers: dict[str, int] = {}
    for group in groups:
        number = numbers[group.position.parent] = numbers.get(group.position.parent, 0) + 1
        named += [replace(layer, stage=group.name(number)) for layer in group.layers]
    return tuple(named)


def _ends(layer: Layer) -> bool:
    return layer.macs == 0 and layer.stride is not None and max(layer.stride) > 1 and not _begins(layer)


def _begins(layer: Layer) -> bool:
    return layer.kind == Kind.GLOBAL_AVERAGE_POOLING
