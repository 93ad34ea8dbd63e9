"""The layer table of an imported ONNX graph, node by node: parameters, multiply-accumulates and shapes.

It has no kernels, no receptive fields, and one stage: they cannot be derived from every graph.
"""

from collections.abc import Mapping
from math import prod

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from export.importing.reference_run import open_session, run_session
from export.importing.signature import Signature
from models.analysis.layer_table import Layer, LayerTable
from models.weights.onnx_reader import IMAGE_TYPES, constants

STAGE = "graph"

Shape = tuple[int, ...]

_SAME_VALUES = ("DequantizeLinear", "Transpose", "Reshape")
_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}  # the input with the weights
_PRODUCTS = ("Gemm", "QGemm", "MatMul", "MatMulInteger", "QLinearMatMul")
_POOLINGS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_LAYERS = (*_WEIGHTS, *_PRODUCTS, *_POOLINGS)
_LAYERS_IF_LEARNED = (
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "PRelu",
    "Add",
    "Mul",
)


def graph_layers(model: ModelProto, signature: Signature, batch: int) -> LayerTable:
    """The layers of `model`, in the file's order. Their figures are for one image.

    The input of `model` must have a fixed shape, with `batch` images. A row is a node with learned values, a matrix
    product or a pooling, and its kind is the operator. If two nodes share a learned value, it counts for the first.
    Nodes inside loops and branches are not counted. Raises UnsupportedError if ONNX Runtime cannot run the graph.
    """
    graph = model.graph
    stored = _stored_values(graph)
    nodes = [
        node
        for node in graph.node
        if node.op_type in _LAYERS or (node.op_type in _LAYERS_IF_LEARNED and _learned(node, stored))
    ]
    fixed = {name: tuple(tensor.dims) for name, tensor in constants(graph).items()}
    names = {name for node in nodes for name in (*node.input, node.output[0]) if name}
    shapes = fixed | _run_shapes(model, names - fixed.keys())
    rows: list[Layer] = []
    counted: set[str] = set()
    for node in nodes:
        learned = {one.name: prod(one.dims) for one in _learned(node, stored) if one.name not in counted}
        counted |= learned.keys()
        data = next((name for name in node.input if name not in stored), node.input[0])
        given, output = shapes[data][1:], shapes[node.output[0]][1:]
        macs = _macs(node, shapes) // batch
        name = node.name or node.output[0]
        rows.append(Layer(name, node.op_type, STAGE, given, output, sum(learned.values()), macs, None))
    return LayerTable.of((signature.channels, signature.size, signature.size), rows)


def _stored_values(graph: GraphProto) -> dict[str, TensorProto]:
    """The stored values by name, also by the names they have after a dequantisation or another shape."""
    stored = constants(graph)
    for node in graph.node:
        if node.op_type in _SAME_VALUES and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    return stored


def _learned(node: NodeProto, stored: Mapping[str, TensorProto]) -> list[TensorProto]:
    """The stored inputs of a node except single numbers, shapes, and the statistics of a batch norm."""
    names = node.input[:3] if node.op_type == "BatchNormalization" else node.input
    found = (stored[name] for name in names if name in stored)
    return [one for one in found if one.dims and one.data_type != TensorProto.INT64]


def _macs(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Multiply-accumulates for the whole batch: each output adds up one row of its left factor, or one window."""
    given, output = shapes[node.input[0]], shapes[node.output[0]]
    if node.op_type in _WEIGHTS:
        weight = shapes[node.input[_WEIGHTS[node.op_type]]]
        return prod(weight[1:]) * prod(given if node.op_type == "ConvTranspose" else output)
    if node.op_type in _PRODUCTS:
        transposed = any(one.name == "transA" and one.i for one in node.attribute)
        return prod(output) * (given[0] if transposed else given[-1])
    return 0


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
