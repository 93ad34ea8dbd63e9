"""Adds the graph contract to an imported network: its recipe before it, and a softmax after logits."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.importing.conversion import Variant
from export.importing.recipe import Output
from export.importing.signature import ChannelLayout, Signature
from models.catalog import Channels, InputSpec
from models.weights.onnx_reader import all_graphs

_PREFIX = "network."
_HALF_UP = 0.5005  # luma is a whole number of thousandths, so that no rounding error of its sum crosses a half


class _NodeChain:
    """Nodes one after the other, each with its own constants."""

    def __init__(self, name: str, first: str) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.value = first
        self._name = name

    def add(self, operator: str, *constants: NDArray[np.generic], **attributes: Any) -> None:
        """Append a node that applies `operator` to the last value."""
        result = f"{self._name}.{len(self.nodes)}"
        names = [f"{result}.{index}" for index in range(len(constants))]
        self.initializers += [
            numpy_helper.from_array(value, name) for value, name in zip(constants, names, strict=True)
        ]
        self.nodes.append(helper.make_node(operator, [self.value, *names], [result], name=result, **attributes))
        self.value = result

    def end(self, name: str) -> None:
        """Append a node that renames the last value to `name`."""
        self.nodes.append(helper.make_node("Identity", [self.value], [name], name=f"{self._name}.end"))


def add_contract(variant: Variant, signature: Signature, spec: InputSpec, output: Output, classes: int) -> ModelProto:
    """The served graph: `image`, uint8 [N, S, S, 3] RGB, to `probabilities`, float32 [N, classes].

    If the batch of `variant` is fixed, N is 1: the network gets copies of the image, and the first row counts.
    """
    model = ModelProto()
    model.CopyFrom(variant.model)
    graph = model.graph
    _add_prefix(model)
    source, target = graph.input[0], graph.output[0]
    before = _preprocessing(signature, spec, source.type.tensor_type.elem_type, variant.batch)
    before.end(source.name)
    after = _postprocessing(target, output, classes, variant.batch)
    after.end("probabilities")
    rows: int | str = "batch" if variant.batch is None else 1
    size = signature.size
    whole = helper.make_graph(
        [*before.nodes, *graph.node, *after.nodes],
        "served",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [rows, size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [rows, classes])],
        [*before.initializers, *graph.initializer, *after.initializers],
    )
    result = helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)
    result.producer_name = "topfive"
    return result


def _preprocessing(signature: Signature, spec: InputSpec, element: int, batch: int | None) -> _NodeChain:
    """From `image` to the network's input. The cast comes first because TensorRT transposes no uint8."""
    chain = _NodeChain("recipe", "image")
    chain.add("Cast", to=TensorProto.FLOAT)
    matrix = np.array(spec.channels.matrix, dtype=np.float32)
    mixed = spec.channels is not Channels.RGB
    channels_first = signature.layout is ChannelLayout.NCHW
    if channels_first:
        chain.add("Transpose", perm=[0, 3, 1, 2])
        if mixed:
            chain.add("Conv", matrix[:, :, None, None])
    elif mixed:
        chain.add("MatMul", np.ascontiguousarray(matrix.T))
    channels = signature.channels
    std = np.array(spec.std[:channels])
    scale = (1 / (255 * std)).astype(np.float32)
    shift = (-np.array(spec.mean[:channels]) / std).astype(np.float32)
    shape = (channels, 1, 1) if channels_first else (channels,)
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


def _postprocessing(output: onnx.ValueInfoProto, kind: Output, classes: int, batch: int | None) -> _NodeChain:
    """From the network's output, [N, C] with axes of 1 or for one image [C], to `probabilities`."""
    chain = _NodeChain("answer", output.name)
    if batch is not None and batch > 1:
        chain.add("Gather", np.array([0]), axis=0)
    if output.type.tensor_type.elem_type != TensorProto.FLOAT:
        chain.add("Cast", to=TensorProto.FLOAT)
    chain.add("Reshape", np.array([-1, classes]))
    if kind is Output.LOGITS:
        chain.add("Softmax", axis=1)
    return chain


def _add_prefix(model: ModelProto) -> None:
    """Add a prefix to every name of a value or node, so that none equals a name of the contract."""
    for graph in all_graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.name = _PREFIX + value.name
        for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
            tensor.name = _PREFIX + tensor.name
        seen: set[str] = set()
        for node in graph.node:
            name = "" if node.name in seen else node.name  # from IR 10 on two nodes may not have the same name
            seen.add(name)
            node.name = name and _PREFIX + name
            for names in (node.input, node.output):
                names[:] = [name and _PREFIX + name for name in names]
