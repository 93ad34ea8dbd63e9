"""Converts an imported graph without changing its answers: only needed nodes, float32, any batch.

The import runs each result against the file itself before it takes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from export.common import strip_metadata
from export.importing.signature import Signature
from models.weights.onnx_reader import all_graphs, constants, read_names, real_inputs, used_nodes

IR_VERSION = 10  # of opset 20 and 21; from 4 on initializers need not be inputs as well
_BATCH = "batch"
_QUANTISED = (
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "QLinear",
    "QAttention",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
_BATCH_ENTRIES = {"Reshape": 0, "Expand": 1}  # the entry of a shape that keeps the batch: 0 copies, 1 broadcasts


@dataclass(frozen=True, slots=True)
class Variant:
    """A converted graph; `batch` is the fixed batch size of its input, None for any."""

    model: ModelProto
    batch: int | None

    @property
    def max_batch(self) -> int | None:
        """The largest batch of the served graph, None for any; a fixed batch holds copies of one image."""
        return None if self.batch is None else 1

    def fixed(self, signature: Signature) -> ModelProto:
        """A copy of the graph with every axis of its input fixed; a dynamic batch becomes 1."""
        copy = ModelProto()
        copy.CopyFrom(self.model)
        _set_shapes(copy.graph, signature.shape(self.batch or 1))
        return copy


def variants(model: ModelProto, signature: Signature) -> Iterator[Variant]:
    """Graphs with one input and one output: for any batch, and for a fixed one.

    Each computes in float32 if the file computes in float16.
    """
    base = _only_needed(model, signature)
    if has_half(base):
        _to_float(base)
    yield Variant(_any_batch(base, signature), None)
    batch = signature.batch or 1
    yield Variant(Variant(base, batch).fixed(signature), batch)


def has_half(model: ModelProto) -> bool:
    """Whether any stored, cast or declared value is float16."""
    return any(TensorProto.FLOAT16 in _element_types(graph) for graph in all_graphs(model.graph))


def has_quantised(model: ModelProto) -> bool:
    """Whether any value between layers is quantised; quantised weights alone do not count."""
    return any(node.op_type.startswith(_QUANTISED) for graph in all_graphs(model.graph) for node in graph.node)


def _element_types(graph: GraphProto) -> Iterator[int]:
    for tensor in graph.initializer:
        yield tensor.data_type
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.type.tensor_type.elem_type
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t.data_type
            if attribute.name in _TYPE_ATTRIBUTES:
                yield attribute.i


def _only_needed(model: ModelProto, signature: Signature) -> ModelProto:
    """A copy with the image as its only input, one output, and without unused nodes and weights."""
    graph = model.graph
    nodes = used_nodes(graph, {signature.output})
    names = {signature.output}.union(*map(read_names, nodes))
    inputs = [value for value in real_inputs(graph) if value.name == signature.input]
    outputs = [value for value in graph.output if value.name == signature.output]
    stored = [tensor for tensor in graph.initializer if tensor.name in names]
    whole = onnx.helper.make_graph(nodes, graph.name, inputs, outputs, stored, value_info=graph.value_info)
    whole.sparse_initializer.extend(graph.sparse_initializer)
    copy = onnx.helper.make_model(whole, opset_imports=model.opset_import, ir_version=max(model.ir_version, IR_VERSION))
    strip_metadata(copy)
    return copy


def _to_float(model: ModelProto) -> None:
    """Convert every float16 of the model to float32, in place."""
    for graph in all_graphs(model.graph):
        for tensor in graph.initializer:
            _tensor_to_float(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _tensor_to_float(attribute.t)
                if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.FLOAT16:
                    attribute.i = TensorProto.FLOAT


def _tensor_to_float(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _any_batch(model: ModelProto, signature: Signature) -> ModelProto:
    """A copy with a dynamic batch: constant shapes that name the batch take it from their data."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    _set_shapes(graph, signature.shape(_BATCH))
    stored, dependent = constants(graph), {signature.input}  # the values that depend on the image
    for node in graph.node:
        if not dependent & set(node.input):
            continue
        dependent |= set(node.output)
        if node.op_type in _BATCH_ENTRIES and node.input[0] in dependent and len(node.input) == 2:
            _free_batch(graph, node, stored.get(node.input[1]), signature.batch or 1)
    return copy


def _free_batch(graph: GraphProto, node: NodeProto, tensor: TensorProto | None, batch: int) -> None:
    """Give `node` a shape that does not name the batch, if its constant shape begins with it."""
    if tensor is None:
        return
    shape = numpy_helper.to_array(tensor).astype(np.int64).reshape(-1)
    if not len(shape) or shape[0] != batch or 0 in shape:
        return
    kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]  # it makes 0 a length
    node.ClearField("attribute")
    node.attribute.extend(kept)
    shape = shape.copy()
    shape[0] = _BATCH_ENTRIES[node.op_type]
    name = f"{node.output[0]}.any_batch"
    graph.initializer.append(numpy_helper.from_array(shape, name))
    node.input[1] = name


def _set_shapes(graph: GraphProto, shape: list[int | str]) -> None:
    """Set the input's shape, and remove the shapes that follow from the old one."""
    image = graph.input[0]
    element = image.type.tensor_type.elem_type
    image.CopyFrom(onnx.helper.make_tensor_value_info(image.name, element, shape))
    for inner in all_graphs(graph):
        inner.ClearField("value_info")
    output: ValueInfoProto = graph.output[0]
    output.type.tensor_type.ClearField("shape")
