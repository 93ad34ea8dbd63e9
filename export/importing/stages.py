"""Names and stages of the layers of an imported graph: by the module paths in its node names, or by the map's size."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from export.importing.shape_tracing import Shape
from models.analysis.layer_table import Layer
from models.analysis.stages import Place, position_of, staged

_LAST = "classifier"


def module_path(name: str) -> str:
    """The module that torch's exporter of TorchScript names a node by: its path step by step, then the operator.

    `layer1.0.conv1` of the node `/layer1/layer1.0/conv1/Conv`; empty where the node is the network's own.

    The exporter writes a child of a container with the container's name before its own.
    """
    path, before = "", ""
    for part in name.split("/")[1:-1]:
        own = part.removeprefix(f"{before}.") if before else part
        path, before = f"{path}.{own}" if path else own, part
    return path


def has_paths(layers: Sequence[tuple[str, Layer]]) -> bool:
    """Whether the nodes of these rows are named by modules: all that have parameters, and one at least."""
    learned = [name for name, layer in layers if layer.parameters]
    return bool(learned) and all(name.startswith("/") and module_path(name) for name in learned)


def by_path(
    rows: Sequence[tuple[str, Layer]], outputs: Mapping[str, Shape]
) -> tuple[tuple[Layer, ...], dict[str, Shape]]:
    """The rows, each with its node's name, called by their modules and in stages of modules, and what blocks give.

    `outputs` has what each node of the graph gives, in its order: the last inside a block says how that ends. Two
    rows of one module are told apart by their operators.
    """
    containers = _containers(outputs)
    paths = [module_path(name) for name, _ in rows]
    taken = Counter(paths)
    named = []
    for (name, layer), path in zip(rows, paths, strict=True):
        operator = name.rpartition("/")[2]
        alone = taken[path] == 1 and path not in containers
        named.append(replace(layer, name=path if path and alone else f"{path}.{operator}".strip(".")))
    positions = [position_of(path, containers) for path in paths]
    given = {position_of(module_path(name), containers): shape for name, shape in outputs.items()}
    layers = staged(named, positions)
    ends = {}
    for layer, position in zip(layers, positions, strict=True):  # the last of a stage says how it ends
        ends[layer.stage] = given.get(position, layer.output) if position.place is Place.BLOCK else layer.output
    return layers, ends


def _containers(nodes: Iterable[str]) -> set[str]:
    """The paths of the modules with modules inside, from the names of all nodes."""
    paths = [module_path(name).split(".") for name in nodes]
    return {".".join(parts[:end]) for parts in paths for end in range(1, len(parts))}


def by_map(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers in stages of one map size, `56x56`; those after the last map of more than one value are the
    `classifier`. A layer without a map in between, such as one of a squeeze and excitation, belongs to its stage.
    """
    last = max((place for place, layer in enumerate(layers) if _map(layer)), default=-1)
    named, stage = [], next((name for layer in layers if (name := _map(layer))), _LAST)
    for place, layer in enumerate(layers):
        stage = _LAST if place > last else _map(layer) or stage
        named.append(replace(layer, stage=stage))
    return tuple(named)


def _map(layer: Layer) -> str:
    """The size of the map that it gives, empty where it gives none of more than one value."""
    sides = layer.output[1:]
    return "x".join(map(str, sides)) if len(layer.output) == 3 and sides != (1, 1) else ""
