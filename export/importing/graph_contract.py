"""Puts the graph contract around somebody's network: its recipe before it, softmax where it wants one after it."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.importing.conversion import Variant
from export.importing.recipe import Output
from export.importing.signature import Layout, Signature
from models.catalog import Channels, InputSpec
from models.weights.onnx_reader import subgraphs

_PREFIX = "network."
_HALF_UP = 0.5005  # luma is a whole number of thousandths: so no rounding error of its sum moves it over a half


class _Chain:
    """Nodes one after the other, each with constants of its own."""

    def __init__(self, name: str, first: str) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.value = first
        self._name = name

    def add(self, operator: str, *constants: NDArray[np.generic], **attributes: Any) -> None:
        """Apply `operator` to the value so far."""
        result = f"{self._name}.{len(self.nodes)}"
        names = [f"{result}.{index}" for index in range(len(constants))]
        self.initializers += [
            numpy_helper.from_array(value, name) for value, name in zip(constants, names, strict=True)
        ]
        self.nodes.append(helper.make_node(operator, [self.value, *names], [result], name=result, **attributes))
        self.value = result

    def end(self, name: str) -> None:
        """Give the last value that name."""
        self.nodes.append(helper.make_node("Identity", [self.value], [name], name=f"{self._name}.end"))


def wrap(variant: Variant, signature: Signature, spec: InputSpec, output: Output, classes: int) -> ModelProto:
    """The served graph: `image`, uint8 [N, S, S, 3] RGB, to `probabilities`, float32 [N, classes].

    A graph that takes no other than a fixed number of images takes one here and gets copies of it; the first row of
    its answer is kept.
    """
    model = ModelProto()
    model.CopyFrom(variant.model)
    graph = model.graph
    _prefix(graph)
    source, target = graph.input[0], graph.output[0]
    front = _front(signature, spec, source.type.tensor_type.elem_type, variant.batch)
    front.end(source.name)
    back = _back(target, output, classes, variant.batch)
    back.end("probabilities")
    rows: int | str = "batch" if variant.batch is None else 1
    size = signature.size
    whole = helper.make_graph(
        [*front.nodes, *graph.node, *back.nodes],
        "served",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [rows, size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [rows, classes])],
        [*front.initializers, *graph.initializer, *back.initializers],
    )
    result = helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)
    result.producer_name = "topfive"
    return result


def _front(signature: Signature, spec: InputSpec, element: int, batch: int | None) -> _Chain:
    """From `image` to what the network takes. The cast comes first because TensorRT transposes no uint8."""
    chain = _Chain("recipe", "image")
    chain.add("Cast", to=TensorProto.FLOAT)
    matrix = np.array(spec.channels.matrix, dtype=np.float32)
    mixed = spec.channels is not Channels.RGB
    planes = signature.layout is Layout.NCHW
    if planes:
        chain.add("Transpose", perm=[0, 3, 1, 2])
        if mixed:
            chain.add("Conv", matrix[:, :, None, None])
    elif mixed:
        chain.add("MatMul", np.ascontiguousarray(matrix.T))
    channels = signature.channels
    std = np.array(spec.std[:channels])
    scale = (1 / (255 * std)).astype(np.float32)
    shift = (-np.array(spec.mean[:channels]) / std).astype(np.float32)
    shape = (channels, 1, 1) if planes else (channels,)
    if (scale != 1).any():
        chain.add("Mul", scale.reshape(shape))
    if shift.any():
        chain.add("Add", shift.reshape(shape))
    if element == TensorProto.UINT8 and spec.channels is Channels.GREY:
        chain.add("Add", np.array(_HALF_UP, dtype=np.float32))
        chain.add("Floor")
    if element != TensorProto.FLOAT:
        chain.add("Cast", to=element)
    if batch is not None and batch > 1:
        chain.add("Tile", np.array([batch, 1, 1, 1]))
    return chain


def _back(output: onnx.ValueInfoProto, kind: Output, classes: int, batch: int | None) -> _Chain:
    """From what the network gives, [N, C] with axes of 1 or for one image [C], to `probabilities`."""
    chain = _Chain("answer", output.name)
    if batch is not None and batch > 1:
        chain.add("Gather", np.array([0]), axis=0)
    if output.type.tensor_type.elem_type != TensorProto.FLOAT:
        chain.add("Cast", to=TensorProto.FLOAT)
    chain.add("Reshape", np.array([-1, classes]))
    if kind is Output.LOGITS:
        chain.add("Softmax", axis=1)
    return chain


def _prefix(graph: GraphProto) -> None:
    """Put a prefix before every name of a value or node, in the graphs inside as well, so that none is met twice."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = _PREFIX + value.name
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        tensor.name = _PREFIX + tensor.name
    met: set[str] = set()
    for node in graph.node:
        name = "" if node.name in met else node.name  # a node needs none, but from IR 10 on no two have the same
        met.add(name)
        node.name = name and _PREFIX + name
        for names in (node.input, node.output):
            names[:] = [name and _PREFIX + name for name in names]
    for inner in subgraphs(graph):
        _prefix(inner)
