"""The table of layers of an imported ONNX graph, from its stored values and the shapes of a run, node by node."""

from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from export.importing.operators import OPERATORS, Operator, learned_values
from export.importing.reference_run import met_shapes
from export.importing.shape_tracing import SHAPED, UNKNOWN, Shape, Step, Trail, carried, one_image
from export.importing.signature import Signature
from export.importing.stages import by_map, by_path, has_paths
from models.analysis.cost import ReceptiveField
from models.analysis.layer_table import Layer, LayerTable
from models.weights.onnx_reader import constants

_UNCHANGED = ("DequantizeLinear", "Transpose", "Reshape")


class _Walk:
    """Follows the image through the nodes in the file's order, and writes a row for each that is a layer."""

    def __init__(self, graph: GraphProto, shapes: dict[str, Shape], signature: Signature, batch: int) -> None:
        self.rows: list[tuple[str, Layer]] = []  # the name of the node, and what it is
        self.outputs: dict[str, Shape] = {}  # of each named node that works on the image
        self._shapes = shapes
        self._stored = _through_dequantisation(graph)
        self._batch = batch
        self._counted: set[str] = set()
        start = Trail(ReceptiveField(), (signature.size, signature.size), signature.layout)
        self._trails = {signature.input: start}

    def see(self, node: NodeProto) -> None:
        """The next node."""
        step = Step(node, self._shapes, self._stored, self._batch)
        trails = [self._trails[name] for name in node.input if name in self._trails]
        before = trails[0] if trails else UNKNOWN
        known = OPERATORS.get(node.op_type) if trails or learned_values(step) else None
        operator = known(step, before) if known else None
        after = carried(step, trails)
        if operator:
            after = before.through(operator.reach, operator.step)
            after = Trail(after.reach, (1, 1), after.layout) if operator.whole else after.over(step.output)
            self._write(step, operator, before, after)
        if trails and after:
            self._trails |= dict.fromkeys(node.output, after)
            self.outputs[node.name] = one_image(step.output, after.layout)

    def _write(self, step: Step, operator: Operator, before: Trail, after: Trail) -> None:
        weights = {self._stored[name].name: self._stored[name] for name in learned_values(step)}
        parameters = sum(prod(tensor.dims) for name, tensor in weights.items() if name not in self._counted)
        self._counted |= weights.keys()
        data = [place for place, name in enumerate(step.node.input) if name in self._trails]
        layer = Layer(
            name=step.node.name or step.node.output[0],
            kind=operator.kind,
            stage="",
            input=one_image(step.shape(data[0] if data else 0), before.layout),
            output=one_image(step.output, after.layout),
            parameters=parameters,
            macs=operator.macs,
            receptive_field=after.reach.size if after.reach else None,
            kernel=operator.kernel,
            stride=operator.stride,
            padding=operator.padding,
            groups=operator.groups,
        )
        self.rows.append((step.node.name, layer))


def graph_layers(model: ModelProto, signature: Signature, batch: int) -> LayerTable:
    """The layers of `model` for one image, in the file's order; a value that two nodes share counts at the first.

    The graph's input must have fixed axes, `batch` images at once. A row is a node with learned values, a matrix
    product or a pooling; a sum or product with learned values is a `bias` or a `scale`. Shapes are those of a run on
    zeros, because ONNX's own inference stops where a graph computes shapes. Where torch's exporter named the nodes by
    their modules, rows and stages have the names of modules, else a row has the node's name and stages are the sizes
    of the map. What loops and branches hold is not counted. Raises RefusedError where ONNX Runtime cannot run it.
    """
    graph = model.graph
    fixed = {name: tuple(tensor.dims) for name, tensor in constants(graph).items()}
    followed = [node for node in graph.node if node.op_type in OPERATORS or node.op_type in SHAPED]
    names = {name for node in followed for name in (*node.input, node.output[0]) if name}
    walk = _Walk(graph, fixed | met_shapes(model, names - fixed.keys()), signature, batch)
    for node in graph.node:
        walk.see(node)
    size = (signature.channels, signature.size, signature.size)
    if has_paths(walk.rows):
        return LayerTable.of(size, *by_path(walk.rows, walk.outputs))
    return LayerTable.of(size, by_map([layer for _, layer in walk.rows]))


def _through_dequantisation(graph: GraphProto) -> dict[str, TensorProto]:
    """Stored values by name, a quantised one also by the name it has after it became a float."""
    stored = constants(graph)
    for node in graph.node:
        if node.op_type in _UNCHANGED and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    return stored
