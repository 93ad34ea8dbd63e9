"""The stages of a network as a lecture names them: which layers belong together. Loads no torch.

The rule, for each direct child of the network, of which the container named `features` is opened, so that its children
count as the network's own:

- A block, which is a child with layers inside, is a stage of its own name: `layer1`, `inception3a`, `features.3`.
- Single layers between blocks, one after the other, are a stage, named by the first of them that has weights: `conv1`,
  `fc`. Where `features` holds single layers only, its stages are numbered: `features 1`, `features 2`.
- A layer that shrinks the map without multiplying (a pooling with a stride) ends the stage before it.
- A global pooling opens the stage after it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from models.analysis.layer_table import Kind, Layer

_CONTAINER = "features"


class Place(Enum):
    """Where a layer stands: inside a block, alone between blocks, or alone in a container of single layers."""

    BLOCK = "block"
    ALONE = "alone"
    NUMBERED = "numbered"


@dataclass(frozen=True, slots=True)
class Position:
    """The place of a layer, and what it stands in: the block, or the opened container (empty for the network)."""

    place: Place
    owner: str


def position_of(path: str, containers: Collection[str]) -> Position:
    """Where the layer of that module path stands; `containers` are the paths of all modules with layers inside."""
    first, _, rest = path.partition(".")
    if first == _CONTAINER and rest:
        first = f"{first}.{rest.partition('.')[0]}"
        if first not in containers:
            blocks = any(name.startswith(f"{_CONTAINER}.") for name in containers)
            return Position(Place.ALONE if blocks else Place.NUMBERED, _CONTAINER)
    elif first not in containers:
        return Position(Place.ALONE, "")
    return Position(Place.BLOCK, first)


@dataclass(slots=True)
class _Group:
    """A stage that is being put together; closed once its pooling is there."""

    position: Position
    layers: list[Layer]
    closed: bool = False

    def takes(self, position: Position) -> bool:
        """Whether the next layer, at `position`, belongs here."""
        return all(_opens(layer) for layer in self.layers) or (self.position == position and not self.closed)

    def name(self, number: int) -> str:
        """`number` is that of this group among those of its container."""
        if self.position.place is Place.BLOCK:
            return self.position.owner
        if self.position.place is Place.NUMBERED:
            return f"{self.position.owner} {number}"
        return next((layer.name for layer in self.layers if layer.parameters), self.layers[0].name)


def staged(layers: Sequence[Layer], positions: Sequence[Position]) -> tuple[Layer, ...]:
    """The layers with the names of their stages filled in; `positions` holds the position of each."""
    groups: list[_Group] = []
    for layer, position in zip(layers, positions, strict=True):
        last = groups[-1] if groups else None
        single = position.place is not Place.BLOCK
        if last and single and _ends(layer):
            last.layers.append(layer)
            last.closed = True
        elif last and last.takes(position) and not (single and _opens(layer)):
            last.layers.append(layer)
            last.position = position  # of what a global pooling opens
        else:
            groups.append(_Group(position, [layer]))
    named = []
    numbers: dict[str, int] = {}
    for group in groups:
        number = numbers[group.position.owner] = numbers.get(group.position.owner, 0) + 1
        named += [replace(layer, stage=group.name(number)) for layer in group.layers]
    return tuple(named)


def _ends(layer: Layer) -> bool:
    return layer.macs == 0 and layer.stride is not None and max(layer.stride) > 1 and not _opens(layer)


def _opens(layer: Layer) -> bool:
    return layer.kind in (Kind.GLOBAL_AVERAGE_POOLING, Kind.GLOBAL_MAX_POOLING)
