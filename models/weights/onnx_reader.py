"""Reads an ONNX file of any origin, and finds its inputs, its constants and the nodes that an output needs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

LARGEST_BYTES = 2 << 30
"""The size limit of a protobuf, and so of an ONNX file with its weights inside."""

IMAGE_TYPES: Mapping[int, type[np.generic]] = MappingProxyType(
    {
        TensorProto.FLOAT: np.float32,
        TensorProto.FLOAT16: np.float16,
        TensorProto.DOUBLE: np.float64,
        TensorProto.UINT8: np.uint8,
    }
)
"""The element types of an image input, and their types in numpy."""

_SIGNATURES = {
    b"PK": "it is a zip, as PyTorch's .pth files are; export the network with torch.onnx.export",
    b"\x80": "it is a pickle, as old .pth files are; export the network with torch.onnx.export",
    b"\x89HDF": "it is HDF5, as Keras writes; convert it with tf2onnx",
    b"version https://git-lfs": "it is a pointer of Git LFS; run: git lfs pull",
    b"\x1f\x8b": "it is compressed by gzip; unpack it first",
    b"<": "it is a page of HTML or XML; download the file itself",
    b"{": "it is JSON; name the .onnx file",
}


class OnnxFileError(Exception):
    """The file cannot be read as ONNX; the message names the cause and the remedy."""


def read_model(path: Path) -> ModelProto:
    """The model in `path`, with its external data loaded and its local functions inlined. Raises OnnxFileError."""
    if not path.is_file():
        raise OnnxFileError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; name an .onnx file")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise OnnxFileError(f"{path} is not ONNX: {_looks_like(path)}") from error
    except OSError as error:
        raise OnnxFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if model.ir_version and model.graph.node and not model.opset_import:
        raise OnnxFileError(f"{path} does not name its opset (opset_import is empty); export it again")
    if not model.ir_version or not model.graph.node:
        raise OnnxFileError(f"{path} is not ONNX: {_looks_like(path)}")
    _load_external_data(model, path)
    _check_parts(model, path)
    if (size := model.ByteSize()) >= LARGEST_BYTES:
        raise OnnxFileError(
            f"{path} has {size:,} bytes with its weights; a file that is served holds less than 2 GiB: "
            "export the network in fp16 or quantised"
        )
    if model.functions:
        from onnx.inliner import inline_local_functions

        return inline_local_functions(model)
    return model


def _looks_like(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if not head:
        return "it is empty"
    if head[4:8] == b"TFL3":
        return "it is TensorFlow Lite; convert it with tf2onnx"
    if head[8:9] == b"{":
        return "it is safetensors, weights without a graph; export the network with torch.onnx.export"
    for signature, reason in _SIGNATURES.items():
        if head.startswith(signature):
            return reason
    return "it is damaged or something else; if it was downloaded, download it again"


def _load_external_data(model: ModelProto, path: Path) -> None:
    for tensor in _tensors(model.graph):
        if uses_external_data(tensor):
            location = ExternalDataInfo(tensor).location
            beside = path.parent / location
            if not location or "\0" in location or Path(location).is_absolute() or ".." in Path(location).parts:
                raise OnnxFileError(
                    f"{path} keeps its weights in {location!r}, outside its own folder, where nothing is read; "
                    "save it again with its weights beside it"
                )
            if not beside.is_file():
                raise OnnxFileError(
                    f"{path} keeps its weights in {beside.name}, which is not there; put it beside the .onnx file"
                )
    try:
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # onnx checks place, offset and length, each with an exception of another kind
        raise OnnxFileError(f"the weights beside {path} cannot be read: {error}") from error


def _check_parts(model: ModelProto, path: Path) -> None:
    """Raise OnnxFileError if a node or the graph has no output, or an attribute or a stored tensor has no value."""
    nodes = [node for graph in all_graphs(model.graph) for node in graph.node]
    if not model.graph.output or not all(node.output for node in nodes):
        raise OnnxFileError(f"{path} is damaged: its graph, or a node in it, has no output; export it again")
    for node in nodes:
        if empty := [one.name for one in node.attribute if one.type == AttributeProto.UNDEFINED]:
            raise OnnxFileError(f"{path} is damaged: {node.op_type} {node.name!r} has no {empty[0]}; export it again")
    for tensor in _tensors(model.graph):
        try:
            numpy_helper.to_array(tensor)
        except Exception as error:  # onnx checks type, shape and length, each with an exception of another kind
            raise OnnxFileError(f"{path} is damaged: {tensor.name or 'a tensor'} cannot be read: {error}") from error


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor that the graph stores, also inside loops and branches."""
    for inner in all_graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph, and the bodies of loops and branches in it at every depth."""
    yield graph
    for node in graph.node:
        yield from _bodies(node)


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from all_graphs(body)


def real_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that a caller must give; old IR versions list the initializers as inputs too."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """The constants of the graph by name: initializers, Constant nodes, and both behind Identity, Cast or Reshape.

    An initializer that is also an input counts as constant. The tensor behind a Cast has its stored type.
    """
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            if (tensor := _constant(node)) is not None:
                found[node.output[0]] = tensor
        elif node.op_type in ("Identity", "Cast") and node.input and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
        elif node.op_type == "Reshape" and {*node.input} <= found.keys():
            values, shape = (numpy_helper.to_array(found[name]) for name in node.input)
            found[node.output[0]] = numpy_helper.from_array(values.reshape(shape))
    return found


def _constant(node: NodeProto) -> TensorProto | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
            return numpy_helper.from_array(_numbers(attribute))
    return None


def _numbers(attribute: AttributeProto) -> NDArray[Any]:
    kind = np.float32 if "float" in attribute.name else np.int64
    return np.array(onnx.helper.get_attribute_value(attribute), dtype=kind)


def used_nodes(graph: GraphProto, outputs: set[str]) -> list[NodeProto]:
    """The nodes that `outputs` depend on, in the order of the file."""
    needed, used = set(outputs), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            used.append(node)
            needed |= read_names(node)
    return used[::-1]


def read_names(node: NodeProto) -> set[str]:
    """The values that a node reads, also inside the bodies of loops and branches."""
    names = set(node.input)
    for body in _bodies(node):
        names |= {value.name for value in body.output}
        names |= {name for child in body.node for name in child.input}
    return names - {""}
