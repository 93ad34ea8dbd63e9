"""The layer table of an imported ONNX graph, node by node: parameters, multiply-accumulates and shapes.

It has no receptive fields, and one stage: neither can be derived from every graph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.importing.reference_run import open_session, run_session
from export.importing.signature import Signature
from models.analysis.cost import Size
from models.analysis.layer_table import Kind, Layer, LayerTable
from models.weights.onnx_reader import IMAGE_TYPES, constants

STAGE = "graph"

Shape = tuple[int, ...]

_ONE: Size = (1, 1)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_SAME_VALUES = ("DequantizeLinear", "Transpose", "Reshape")

# The inputs of each operator that are learned. The statistics of a batch norm are not.
_LEARNED: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "Conv": (1, 2),
        "ConvTranspose": (1, 2),
        "ConvInteger": (1,),
        "QLinearConv": (3, 8),
        "Gemm": (1, 2),
        "QGemm": (3, 6),
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
)


@dataclass(frozen=True, slots=True)
class _Node:
    """A node with its attributes; the shapes of all values and the stored tensors by name; `batch` images at once."""

    proto: NodeProto
    attributes: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    stored: Mapping[str, TensorProto]
    batch: int

    def input(self, index: int) -> Shape:
        """The shape of that input, batch first; empty if it is left out."""
        return self.shapes.get(self.proto.input[index], ()) if index < len(self.proto.input) else ()

    @property
    def output(self) -> Shape:
        """The shape of the first output, batch first."""
        return self.shapes[self.proto.output[0]]

    @property
    def learned(self) -> dict[str, TensorProto]:
        """The stored tensors that the node learned; of a sum or product only floats, and no single number."""
        operator, names = self.proto.op_type, self.proto.input
        places = (place for place in _LEARNED.get(operator, ()) if place < len(names))
        found = {names[place]: self.stored[names[place]] for place in places if names[place] in self.stored}
        if operator not in ("Add", "Mul"):
            return found
        return {name: one for name, one in found.items() if prod(one.dims) > 1 and one.data_type in _FLOATS}

    def axes(self) -> tuple[int, ...]:
        """The axes that the node reduces: an attribute, or in newer opsets the stored second input."""
        if "axes" in self.attributes:
            return tuple(self.attributes["axes"])
        if len(self.proto.input) > 1 and (tensor := self.stored.get(self.proto.input[1])) is not None:
            return tuple(map(int, numpy_helper.to_array(tensor).reshape(-1)))
        return ()

    def layer(
        self,
        kind: str,
        macs: int = 0,
        kernel: Size | None = None,
        stride: Size | None = None,
        padding: Size | None = None,
        groups: int | None = None,
    ) -> Layer:
        """The row of the node, without its parameters; shapes are in the node's own order, without the batch."""
        data = [place for place, name in enumerate(self.proto.input) if name not in self.stored]
        name, given = self.proto.name or self.proto.output[0], self.input(data[0] if data else 0)
        return Layer(name, kind, STAGE, given[1:], self.output[1:], 0, macs, None, kernel, stride, padding, groups)


def graph_layers(model: ModelProto, signature: Signature, batch: int) -> LayerTable:
    """The layers of `model`, in the file's order. Their figures are for one image.

    The input of `model` must have a fixed shape, with `batch` images. A row is a node with learned values, a matrix
    product or a pooling; a sum or product with learned values is a `bias` or a `scale`. If two nodes share a learned
    value, it counts for the first. Nodes inside loops and branches are not counted. Raises UnsupportedError if ONNX
    Runtime cannot run the graph.
    """
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type in _LAYERS]
    fixed = {name: tuple(tensor.dims) for name, tensor in constants(graph).items()}
    names = {name for node in nodes for name in (*node.input, node.output[0]) if name}
    shapes = fixed | _run_shapes(model, names - fixed.keys())
    stored = _stored_values(graph)
    rows: list[Layer] = []
    counted: set[str] = set()
    for proto in nodes:
        attributes = {one.name: helper.get_attribute_value(one) for one in proto.attribute}
        node = _Node(proto, attributes, shapes, stored, batch)
        if (layer := _LAYERS[proto.op_type](node)) is not None:
            learned = {tensor.name: prod(tensor.dims) for tensor in node.learned.values()}
            parameters = sum(count for name, count in learned.items() if name not in counted)
            counted |= learned.keys()
            rows.append(replace(layer, parameters=parameters))
    return LayerTable.of((signature.channels, signature.size, signature.size), rows)


def _stored_values(graph: GraphProto) -> dict[str, TensorProto]:
    """The stored values by name, also by the names they have after a dequantisation or another shape."""
    stored = constants(graph)
    for node in graph.node:
        if node.op_type in _SAME_VALUES and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    return stored


def _run_shapes(model: ModelProto, names: set[str]) -> dict[str, Shape]:
    """The shapes of these values in a run on zeros; ONNX's own shape inference stops if a graph computes shapes.

    The run gives only the shapes, so that it holds no more values in memory than the graph itself needs.
    """
    watched = ModelProto()
    watched.CopyFrom(model)
    image = model.graph.input[0]
    tensor = image.type.tensor_type
    zeros = np.zeros([dim.dim_value for dim in tensor.shape.dim], dtype=IMAGE_TYPES[tensor.elem_type])
    known: dict[str, Shape] = {image.name: zeros.shape}
    wanted = sorted(names - known.keys())
    outputs = [f"shape of {name}" for name in wanted]
    for name, output in zip(wanted, outputs, strict=True):
        watched.graph.node.append(helper.make_node("Shape", [name], [output]))
        watched.graph.output.append(helper.make_tensor_value_info(output, TensorProto.INT64, None))
    session = open_session(watched.SerializeToString())
    found = run_session(session, outputs, {image.name: zeros}, "the graph made from the file") if wanted else []
    return known | {name: tuple(map(int, shape)) for name, shape in zip(wanted, found, strict=True)}


def _padding(node: _Node, kernel: Size, stride: Size) -> Size | None:
    """The padding of each side, None if two sides differ; automatic padding is what the output needs."""
    automatic = node.attributes.get("auto_pad", b"NOTSET")
    if automatic == b"VALID":
        return 0, 0
    if automatic == b"NOTSET":
        top, left, bottom, right = node.attributes.get("pads", (0, 0, 0, 0))
        return (top, left) if (top, left) == (bottom, right) else None
    dilations = node.attributes.get("dilations", _ONE)
    sides = zip(node.input(0)[2:], node.output[2:], kernel, stride, dilations, strict=True)
    added = [max((after - 1) * step + (size - 1) * wide + 1 - before, 0) for before, after, size, step, wide in sides]
    return (added[0] // 2, added[1] // 2) if not any(one % 2 for one in added) else None


def _convolution(node: _Node) -> Layer:
    transposed = node.proto.op_type == "ConvTranspose"
    weight, groups = node.input(_LEARNED[node.proto.op_type][0]), node.attributes.get("group", 1)
    macs = prod(weight[1:]) * prod(node.input(0) if transposed else node.output) // node.batch
    kind = Kind.TRANSPOSED if transposed else Kind.DEPTHWISE if weight[1] == 1 < groups else Kind.CONVOLUTION
    if len(weight) != 4:
        return node.layer(kind, macs, groups=groups)
    kernel, stride = (weight[2], weight[3]), tuple(node.attributes.get("strides", _ONE))
    padding = None if transposed and "auto_pad" in node.attributes else _padding(node, kernel, stride)
    return node.layer(kind, macs, kernel, stride, padding, groups)


def _product(node: _Node) -> Layer:
    """Each output adds up one row of the left factor, or one column if that is transposed."""
    left, names = node.input(0), node.proto.input
    summed = left[0] if node.attributes.get("transA", 0) else left[-1]
    right = 3 if node.proto.op_type.startswith("Q") else 1
    stored = names[0] in node.stored or names[right] in node.stored
    kind = Kind.FULLY_CONNECTED if stored else Kind.MATRIX_PRODUCT
    return node.layer(kind, prod(node.output) * summed // node.batch)


def _pooling(kind: Kind, over_all: Kind) -> Callable[[_Node], Layer | None]:
    """A pooling, named `over_all` if its kernel is the whole feature map."""

    def layer(node: _Node) -> Layer | None:
        kernel = tuple(node.attributes["kernel_shape"])
        stride = tuple(node.attributes.get("strides", (1,) * len(kernel)))
        if set(kernel[-2:]) == set(stride[-2:]) == {1}:  # along other axes, as inside a local response norm
            return None
        if len(kernel) != 2:
            return node.layer(kind)
        padding = _padding(node, kernel, stride)
        if kernel == node.input(0)[2:] and node.output[2:] == _ONE and padding == (0, 0):
            return node.layer(over_all, kernel=kernel)
        return node.layer(kind, 0, kernel, stride, padding)

    return layer


def _global_pooling(kind: Kind) -> Callable[[_Node], Layer]:
    def layer(node: _Node) -> Layer:
        sides = node.input(0)[1:-1] if node.attributes.get("channels_last", 0) else node.input(0)[2:]
        return node.layer(kind, kernel=(sides[0], sides[1]) if len(sides) == 2 else None)

    return layer


def _reduction(kind: Kind) -> Callable[[_Node], Layer | None]:
    """A mean or maximum over height and width, with the channels first or last; over other axes it is no pooling."""

    def layer(node: _Node) -> Layer | None:
        shape = node.input(0)
        axes = sorted(axis % len(shape) for axis in node.axes())
        if len(shape) != 4 or axes not in ([1, 2], [2, 3]):
            return None
        return node.layer(kind, kernel=(shape[axes[0]], shape[axes[1]]))

    return layer


def _plain(kind: str) -> Callable[[_Node], Layer]:
    return lambda node: node.layer(kind)


def _if_learned(kind: str) -> Callable[[_Node], Layer | None]:
    return lambda node: node.layer(kind) if node.learned else None


_AVERAGE = _pooling(Kind.AVERAGE_POOLING, Kind.GLOBAL_AVERAGE_POOLING)
# By operator: the row of a node, or None if the node is no layer. Other operators are no layers.
_LAYERS: Mapping[str, Callable[[_Node], Layer | None]] = MappingProxyType(
    {
        "Conv": _convolution,
        "ConvInteger": _convolution,
        "QLinearConv": _convolution,
        "ConvTranspose": _convolution,
        "Gemm": _product,
        "QGemm": _product,
        "MatMul": _product,
        "MatMulInteger": _product,
        "QLinearMatMul": _product,
        "MaxPool": _pooling(Kind.MAX_POOLING, Kind.GLOBAL_MAX_POOLING),
        "AveragePool": _AVERAGE,
        "QLinearAveragePool": _AVERAGE,
        "GlobalAveragePool": _global_pooling(Kind.GLOBAL_AVERAGE_POOLING),
        "QLinearGlobalAveragePool": _global_pooling(Kind.GLOBAL_AVERAGE_POOLING),
        "GlobalMaxPool": _global_pooling(Kind.GLOBAL_MAX_POOLING),
        "ReduceMean": _reduction(Kind.GLOBAL_AVERAGE_POOLING),
        "ReduceMax": _reduction(Kind.GLOBAL_MAX_POOLING),
        "BatchNormalization": _plain(Kind.BATCH_NORM),
        "InstanceNormalization": _plain(Kind.INSTANCE_NORM),
        "LayerNormalization": _plain(Kind.LAYER_NORM),
        "GroupNormalization": _plain(Kind.GROUP_NORM),
        "LRN": _plain(Kind.LOCAL_RESPONSE_NORM),
        "PRelu": _plain("PReLU"),
        "Add": _if_learned("bias"),
        "Mul": _if_learned("scale"),
    }
)
