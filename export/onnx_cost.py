"""Parameters and multiply-accumulates of any ONNX graph, node by node, from stored values and the shapes of a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from export.original import met_shapes
from models.onnx_reader import constants

# Which inputs of a node are learned; of a batch norm the statistics are not. Of Add and Mul it is the one that is
# stored, unless it is a single number.
_LEARNED = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "ConvInteger": (1,),
    "QLinearConv": (3, 8),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
    "Add": (0, 1),
    "Mul": (0, 1),
}
_CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv")
_PRODUCTS = ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NodeCost:
    """One node that has learned values, for one image; `kernel` and `stride` are empty where there are none."""

    name: str
    op: str
    kernel: Shape
    stride: Shape
    output: Shape
    parameters: int
    macs: int


def graph_cost(model: ModelProto, batch: int) -> tuple[NodeCost, ...]:
    """The nodes of `model` that have learned values, in the file's order; a value that two share counts at the first.

    The graph's input must have fixed axes, `batch` images at once. Multiply-accumulates are those of convolutions and
    of products with a stored matrix. Shapes are those of a run on zeros, because ONNX's own inference stops where a
    graph computes shapes. Raises RefusedError where ONNX Runtime cannot run it.
    """
    graph = model.graph
    counted_nodes = [node for node in graph.node if node.op_type in _LEARNED]
    inputs = {node.input[0] for node in counted_nodes if node.op_type == "ConvTranspose"}
    shapes = met_shapes(model, {node.output[0] for node in counted_nodes} | inputs)
    stored = _through_dequantisation(graph)
    counted: set[str] = set()
    rows = []
    for node in counted_nodes:
        places = [place for place in _LEARNED[node.op_type] if place < len(node.input)]
        weights = [stored[node.input[place]] for place in places if node.input[place] in stored]
        if node.op_type in ("Add", "Mul"):
            weights = [weight for weight in weights if prod(weight.dims) > 1 and _floating(weight)]
        if not weights:
            continue
        parameters = sum(prod(weight.dims) for weight in weights if weight.name not in counted)
        counted |= {weight.name for weight in weights}
        rows.append(
            NodeCost(
                name=node.name or node.output[0],
                op=node.op_type,
                kernel=tuple(weights[0].dims[2:]) if "Conv" in node.op_type else (),
                stride=_strides(node, weights[0]),
                output=shapes[node.output[0]][1:],
                parameters=parameters,
                macs=_macs(node, weights[0], shapes) // batch,
            )
        )
    return tuple(rows)


def totals(rows: Iterable[NodeCost]) -> tuple[int, int]:
    """Parameters and multiply-accumulates of all nodes."""
    found = list(rows)
    return sum(row.parameters for row in found), sum(row.macs for row in found)


def _macs(node: NodeProto, weight: TensorProto, shapes: dict[str, Shape]) -> int:
    dims = tuple(weight.dims)
    output = shapes[node.output[0]]
    if node.op_type in _CONVOLUTIONS:
        each, over = prod(dims[1:]), output
    elif node.op_type == "ConvTranspose":
        each, over = prod(dims[1:]), shapes[node.input[0]]
    elif node.op_type in _PRODUCTS:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        each, over = dims[-1] if transposed or len(dims) < 2 else dims[-2], output
    else:
        return 0
    return each * prod(over)


def _strides(node: NodeProto, weight: TensorProto) -> Shape:
    if "Conv" not in node.op_type:
        return ()
    written = [tuple(attribute.ints) for attribute in node.attribute if attribute.name == "strides"]
    return written[0] if written else (1,) * (len(weight.dims) - 2)


def _through_dequantisation(graph: GraphProto) -> dict[str, TensorProto]:
    """Stored values by name, a quantised one also by the name it has after it became a float."""
    stored = constants(graph)
    for node in graph.node:
        if node.op_type in ("DequantizeLinear", "Transpose", "Reshape") and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    return stored


def _floating(tensor: TensorProto) -> bool:
    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
