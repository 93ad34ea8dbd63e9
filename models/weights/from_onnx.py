"""Loads the weights of an ONNX file into a catalog network of the same architecture, layer by layer in graph order.

Exporters fold a batch norm into the convolution before it. Such a convolution has a bias that the network's own lacks;
the batch norm after it is then set so that it only adds that bias.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn

from models.catalog import Architecture
from models.weights.onnx_check import check_agreement
from models.weights.onnx_reader import constants, read_model, used_nodes

_KINDS: dict[str, type[nn.Module]] = {"conv": nn.Conv2d, "linear": nn.Linear, "norm": nn.BatchNorm2d}


class MismatchError(Exception):
    """The file has another architecture; the message has the first layer that differs."""


@dataclass(frozen=True, slots=True)
class FileLayer:
    """A layer of the file. `weight` is [out, in, ...] as in torch; only a norm has `mean`, `variance`, `epsilon`."""

    kind: str
    name: str
    weight: Tensor
    bias: Tensor | None
    mean: Tensor | None = None
    variance: Tensor | None = None
    epsilon: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} {self.kind} {_size(self.weight)}"


@dataclass(frozen=True, slots=True)
class NetworkLayer:
    """A layer of the network."""

    kind: str
    name: str
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    def __str__(self) -> str:
        return f"{self.name} {self.kind} {_size(self.weight)}"


def load_onnx(network: nn.Module, architecture: Architecture, path: Path) -> None:
    """Copy the weights of the file into `network`, and check that both give the same answers.

    Raises OnnxFileError where the file is not ONNX, MismatchError where a layer differs, DisagreementError where the
    answers differ.
    """
    model = read_model(path)
    own = list(_network_layers(network, architecture))
    found = list(_file_layers(model.graph))
    with torch.no_grad():
        _match(own, found, architecture.name, path)
    if wrong := [name for name, value in network.state_dict().items() if not value.isfinite().all()]:
        raise MismatchError(f"{path} is not finite in {wrong[0]}")
    check_agreement(network, architecture, model, path)


def _network_layers(network: nn.Module, architecture: Architecture) -> Iterator[NetworkLayer]:
    names = {module: name for name, module in network.named_modules()}
    known = tuple(_KINDS.values())
    for module, name in names.items():
        if not isinstance(module, known) and any(True for _ in module.parameters(recurse=False)):
            raise MismatchError(
                f"{architecture.name} has learned values in {name or type(module).__name__} that no ONNX file names; "
                "give its weights as .safetensors"
            )
    order: list[nn.Module] = []  # in which they run

    def note(module: nn.Module, _inputs: object, _output: object) -> None:
        order.append(module)

    hooks = [module.register_forward_hook(note) for module in names if isinstance(module, known)]
    try:
        with torch.inference_mode():
            crop = architecture.input.crop
            network.eval()(torch.zeros(1, len(architecture.input.channels.matrix), crop, crop))
    finally:
        for hook in hooks:
            hook.remove()
    for module in order:
        yield NetworkLayer(next(kind for kind, cls in _KINDS.items() if isinstance(module, cls)), names[module], module)


def _match(own: list[NetworkLayer], found: list[FileLayer], name: str, path: Path) -> None:
    """Copy layer by layer. Raises MismatchError at the first layers that differ, and where one list is longer."""
    remaining = iter(found)
    number = 0
    folded: Tensor | None = None
    for index, layer in enumerate(own):
        if layer.kind == "norm" and folded is not None:
            _set_to_add(layer.module, folded)
            folded = None
            continue
        number += 1
        given = next(remaining, None)
        if given is None:
            raise MismatchError(f"{path} ends after layer {number - 1}, where {name} has layer {layer}")
        if (weight := _fitting_weight(given, layer)) is None:
            raise MismatchError(f"{path} has layer {number} {given} where {name} has layer {layer}")
        follows = own[index + 1] if index + 1 < len(own) else None
        folded = _copy(layer, given, weight, follows, f"{path} has layer {number} {given} where {name} has {layer}")
    if (left := next(remaining, None)) is not None:
        raise MismatchError(f"{path} has layer {number + 1} {left} where {name} has no more")


def _fitting_weight(given: FileLayer, layer: NetworkLayer) -> Tensor | None:
    """The file's weight in the shape of the network's, or None. The file may have a convolution for a linear layer."""
    if given.kind == layer.kind and given.weight.shape == layer.weight.shape:
        return given.weight
    sizes = (len(given.weight), given.weight.numel()) == (len(layer.weight), layer.weight.numel())
    if sizes and {given.kind, layer.kind} == {"conv", "linear"}:
        return given.weight.reshape(layer.weight.shape)
    return None


def _copy(
    layer: NetworkLayer, given: FileLayer, weight: Tensor, follows: NetworkLayer | None, what: str
) -> Tensor | None:
    """Copy one layer. Returns a bias that only the norm after it can hold."""
    module = layer.module
    layer.weight.copy_(weight)
    if isinstance(module, nn.BatchNorm2d):
        assert given.mean is not None
        assert given.variance is not None
        assert module.running_mean is not None
        assert module.running_var is not None
        module.running_mean.copy_(given.mean)
        module.running_var.copy_(given.variance.double() + (given.epsilon - module.eps))
    if isinstance(module.bias, Tensor):
        module.bias.copy_(given.bias if given.bias is not None else torch.zeros(len(weight)))
        return None
    if given.bias is None:
        return None
    if follows is None or follows.kind != "norm" or len(follows.weight) != len(weight):
        raise MismatchError(f"{what} without a bias")
    return given.bias


def _set_to_add(norm: nn.Module, bias: Tensor) -> None:
    """Set `norm` so that it only adds `bias`; its weight undoes the division by sqrt(1 + eps)."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    norm.weight.fill_((1 + norm.eps) ** 0.5)
    norm.bias.copy_(bias)


def _file_layers(graph: GraphProto) -> Iterator[FileLayer]:
    """The layers that the first output depends on, in the order of the file."""
    stored = constants(graph)
    nodes = used_nodes(graph, {graph.output[0].name})
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def value(node: NodeProto, place: int) -> Tensor | None:
        name = node.input[place] if place < len(node.input) else ""
        return _tensor(stored[name]) if name in stored else None

    def added(node: NodeProto, channels: int) -> Tensor | None:
        """The bias that an Add right after `node` adds to each channel."""
        following = readers.get(node.output[0], [])
        if len(following) != 1 or following[0].op_type != "Add":
            return None
        for name in following[0].input:
            if name in stored and (bias := _tensor(stored[name])).numel() == channels:
                return bias.reshape(-1)
        return None

    for node in nodes:
        if (layer := _layer(node, value, added)) is not None:
            yield layer


def _layer(
    node: NodeProto, value: Callable[[NodeProto, int], Tensor | None], added: Callable[[NodeProto, int], Tensor | None]
) -> FileLayer | None:
    """The layer of a node, or None where it has no stored weights."""
    if node.op_type not in ("Conv", "Gemm", "MatMul", "BatchNormalization"):
        return None
    name, weight = node.name or node.output[0], value(node, 1)
    if weight is None:
        return None
    if node.op_type == "BatchNormalization":
        statistics = value(node, 2), value(node, 3), value(node, 4)
        return FileLayer("norm", name, weight, *statistics, epsilon=_number(node, "epsilon", 1e-5))
    if node.op_type == "Conv":
        bias = value(node, 2)
        return FileLayer("conv", name, weight, bias if bias is not None else added(node, len(weight)))
    if node.op_type == "MatMul" or not _number(node, "transB", 0):
        weight = weight.T
    bias = value(node, 2)
    if node.op_type == "Gemm":
        weight = weight * _number(node, "alpha", 1.0)
        bias = bias * _number(node, "beta", 1.0) if bias is not None else None
    bias = bias.reshape(-1) if bias is not None else added(node, len(weight))
    return FileLayer("linear", name, weight, bias)


def _tensor(tensor: TensorProto) -> Tensor:
    return torch.from_numpy(numpy_helper.to_array(tensor).astype("float32"))


def _number(node: NodeProto, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(attribute.f or attribute.i)
    return default


def _size(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))
