"""Changes to somebody's graph that keep its answers: only what is needed, float32, a newer opset, any batch.

None of them is trusted: the result is run against the file itself before it is taken.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from export.importing.reference_run import one_line
from export.importing.signature import Signature, opset
from export.onnx_common import OPSET, strip_metadata
from models.weights.onnx_reader import constants, real_inputs, subgraphs, used_nodes

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
_SHAPED = {"Reshape": 0, "Expand": 1}  # what keeps the axis of its data: 0 copies it, 1 is broadcast

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Variant:
    """A graph that may stand for the file; `batch` is the number of images it takes at once, None for any."""

    model: ModelProto
    batch: int | None

    @property
    def max_batch(self) -> int | None:
        """The most images that the graph made from it takes at once, None for any; copies of one do not count."""
        return None if self.batch is None else 1

    def fixed(self, signature: Signature) -> ModelProto:
        """A copy of the graph with every axis of its input fixed, one image where it takes any number."""
        copy = ModelProto()
        copy.CopyFrom(self.model)
        _set_shapes(copy.graph, signature.shape(self.batch or 1))
        return copy


def variants(model: ModelProto, signature: Signature) -> Iterator[Variant]:
    """Graphs of one input and one output, the best first: a new opset before the file's own, any batch before its own.

    Each computes in float32 what the file computes in float16.
    """
    base = _only_needed(model, signature)
    if has_half(base):
        _to_float(base)
    newer = _newer(base)
    graphs = [graph for graph in (newer, base) if graph is not None]
    for graph in graphs:
        yield Variant(_any_batch(graph, signature), None)
    for graph in graphs:
        batch = signature.batch or 1
        yield Variant(Variant(graph, batch).fixed(signature), batch)


def has_half(model: ModelProto) -> bool:
    """Whether any value that is stored, cast or declared is float16."""
    return any(kind == TensorProto.FLOAT16 for kind in _kinds(model.graph))


def has_quantised(model: ModelProto) -> bool:
    """Whether any value between the layers is rounded to 8 bits or so; weights alone are stored numbers like others."""
    return any(node.op_type.startswith(_QUANTISED) for node in _nodes(model.graph))


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    yield from graph.node
    for inner in subgraphs(graph):
        yield from _nodes(inner)


def _kinds(graph: GraphProto) -> Iterator[int]:
    for tensor in graph.initializer:
        yield tensor.data_type
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.type.tensor_type.elem_type
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t.data_type
            if attribute.name in _TYPE_ATTRIBUTES:
                yield attribute.i
    for inner in subgraphs(graph):
        yield from _kinds(inner)


def _only_needed(model: ModelProto, signature: Signature) -> ModelProto:
    """A copy with the image as its only input, one output, and neither dead nodes nor unused weights."""
    graph = model.graph
    nodes = used_nodes(graph, {signature.output})
    names = {name for node in nodes for name in _reads(node)} | {signature.output}
    inputs = [value for value in real_inputs(graph) if value.name == signature.input]
    outputs = [value for value in graph.output if value.name == signature.output]
    stored = [tensor for tensor in graph.initializer if tensor.name in names]
    whole = onnx.helper.make_graph(nodes, graph.name, inputs, outputs, stored, value_info=graph.value_info)
    whole.sparse_initializer.extend(graph.sparse_initializer)
    copy = onnx.helper.make_model(whole, opset_imports=model.opset_import, ir_version=max(model.ir_version, IR_VERSION))
    strip_metadata(copy)
    return copy


def _reads(node: NodeProto) -> Iterator[str]:
    """Every name that a node or a graph inside it mentions."""
    yield from node.input
    holder = GraphProto(node=[node])
    for inner in subgraphs(holder):
        yield from (value.name for value in inner.output)
        for child in inner.node:
            yield from _reads(child)


def _to_float(model: ModelProto) -> None:
    """Make every float16 of the graph float32, in place."""
    _graph_to_float(model.graph)


def _graph_to_float(graph: GraphProto) -> None:
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
    for inner in subgraphs(graph):
        _graph_to_float(inner)


def _tensor_to_float(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _newer(model: ModelProto) -> ModelProto | None:
    """The same in the opset that exports have, or None where it is not older or the converter does not know how."""
    if opset(model) >= OPSET:
        return None
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter is C++ and fails in its own ways on what it does not know
        log.info("the graph stays at opset %d: %s", opset(model), one_line(error))
        return None


def _any_batch(model: ModelProto, signature: Signature) -> ModelProto:
    """A copy whose shapes name no batch: the input's axis is dynamic, and constant shapes take it from their data."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    _set_shapes(graph, signature.shape(_BATCH))
    stored, follows = constants(graph), {signature.input}
    for node in graph.node:
        if not follows & set(node.input):
            continue
        follows |= set(node.output)
        if node.op_type in _SHAPED and node.input[0] in follows and len(node.input) == 2:
            _free_batch(graph, node, stored.get(node.input[1]), signature.batch or 1)
    return copy


def _free_batch(graph: GraphProto, node: NodeProto, tensor: TensorProto | None, batch: int) -> None:
    """Where the constant shape of `node` begins with the batch, give it a shape of its own that does not."""
    if tensor is None:
        return
    shape = numpy_helper.to_array(tensor).astype(np.int64).reshape(-1)
    if not len(shape) or shape[0] != batch or 0 in shape:
        return
    kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]  # it would take 0 as a length
    node.ClearField("attribute")
    node.attribute.extend(kept)
    shape = shape.copy()
    shape[0] = _SHAPED[node.op_type]
    name = f"{node.output[0]}.any_batch"
    graph.initializer.append(numpy_helper.from_array(shape, name))
    node.input[1] = name


def _set_shapes(graph: GraphProto, shape: list[int | str]) -> None:
    """Fix the input's shape, and forget those that followed from what it was."""
    image = graph.input[0]
    element = image.type.tensor_type.elem_type
    image.CopyFrom(onnx.helper.make_tensor_value_info(image.name, element, shape))
    graph.ClearField("value_info")
    for inner in subgraphs(graph):
        inner.ClearField("value_info")
    output: ValueInfoProto = graph.output[0]
    output.type.tensor_type.ClearField("shape")
