"""Loads the weights of an ONNX file into a catalog network of the same architecture, layer by layer in graph order.

Shapes alone cannot tell whether the layers match: `models.weights.onnx_answers` then compares the answers.

Exporters fold a batch norm into the convolution before it. Such a convolution has a bias that the network's own lacks;
the batch norm after it is then set so that it only adds that bias.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isclose, sqrt
from pathlib import Path
from typing import Any

import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.catalog import Architecture, Channels
from models.weights.onnx_answers import check_answers
from models.weights.onnx_reader import constants, read_model, used_nodes
from models.weights.weights import WeightsError

_KINDS: dict[str, type[nn.Module]] = {"conv": nn.Conv2d, "linear": nn.Linear, "norm": nn.BatchNorm2d}
_EQUAL = 1e-6  # relative; as float32 rounds
_COLOURS = [torch.tensor(one.matrix)[:, :, None, None] for one in Channels]
"""The convolution that makes the channels of a network in a graph that topfive wrote; it is no layer of the network."""


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
        return self.module.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        return dict(self.module.named_parameters(recurse=False)).get("bias")

    def __str__(self) -> str:
        return f"{self.name} {self.kind} {_size(self.weight)}"


@dataclass(frozen=True, slots=True)
class ResponseNorm:
    """A local response normalisation: x / (k + alpha * mean of squares) ** beta, over `size` channels."""

    size: int
    alpha: float
    beta: float
    k: float


def load_onnx(network: nn.Module, architecture: Architecture, path: Path) -> None:
    """Copy the weights of the file into `network`, and check that both give the same answers.

    Raises OnnxFileError if the file is not ONNX, WeightsError with the first layer that differs, or if the
    answers differ.
    """
    model = read_model(path)
    own, found = list(_network_layers(network, architecture)), list(_FileGraph(model.graph).layers())
    layers = [layer for layer in own if isinstance(layer, NetworkLayer)]
    with torch.no_grad():
        _match(layers, [layer for layer in found if isinstance(layer, FileLayer)], architecture.name, path)
        _rescale(layers, _response_norms(own), _response_norms(found))
    if wrong := [name for name, value in network.state_dict().items() if not value.isfinite().all()]:
        raise WeightsError(f"{path} is not finite in {wrong[0]}")
    check_answers(network, architecture, model, path)


def _network_layers(network: nn.Module, architecture: Architecture) -> Iterator[NetworkLayer | ResponseNorm]:
    """The layers in the order in which they run, and the response normalisations between them."""
    names = {module: name for name, module in network.named_modules()}
    known = tuple(_KINDS.values())
    for module, name in names.items():
        if not isinstance(module, known) and any(True for _ in module.parameters(recurse=False)):
            raise WeightsError(
                f"{architecture.name} has learned values in {name or type(module).__name__} that no ONNX file names; "
                "give its weights as .safetensors"
            )
    order: list[nn.Module] = []

    def note(module: nn.Module, _inputs: object, _output: object) -> None:
        order.append(module)

    noted: tuple[type[nn.Module], ...] = (*known, nn.LocalResponseNorm)
    hooks = [module.register_forward_hook(note) for module in names if isinstance(module, noted)]
    try:
        with torch.inference_mode():
            crop = architecture.input.crop
            network.eval()(torch.zeros(1, len(architecture.input.channels.matrix), crop, crop))
    finally:
        for hook in hooks:
            hook.remove()
    for module in order:
        if isinstance(module, nn.LocalResponseNorm):
            yield ResponseNorm(module.size, module.alpha, module.beta, module.k)
            continue
        kind = next(kind for kind, cls in _KINDS.items() if isinstance(module, cls))
        yield NetworkLayer(kind, names[module], module)


def _match(layers: list[NetworkLayer], found: list[FileLayer], name: str, path: Path) -> None:
    """Copy layer by layer. Raises WeightsError at the first layers that differ, and if one list is longer."""
    remaining = iter(found)
    number = 0
    folded: Tensor | None = None
    for index, layer in enumerate(layers):
        if layer.kind == "norm" and folded is not None:
            _set_to_add(layer.module, folded)
            folded = None
            continue
        number += 1
        given = next(remaining, None)
        if given is None:
            raise WeightsError(f"{path} ends after layer {number - 1}, where {name} has layer {layer}")
        if (weight := _fitting_weight(given, layer)) is None:
            raise WeightsError(f"{path} has layer {number} {given} where {name} has layer {layer}")
        layer.weight.copy_(weight)
        if isinstance(layer.module, nn.BatchNorm2d):
            _copy_statistics(layer.module, given)
        if layer.bias is not None:
            layer.bias.copy_(given.bias if given.bias is not None else torch.zeros(len(weight)))
        elif given.bias is not None:
            follows = layers[index + 1] if index + 1 < len(layers) else None
            if follows is None or follows.kind != "norm" or len(follows.weight) != len(weight):
                raise WeightsError(f"{path} has layer {number} {given} where {name} has {layer} without a bias")
            folded = given.bias
    if (left := next(remaining, None)) is not None:
        raise WeightsError(f"{path} has layer {number + 1} {left} where {name} has no more")


def _fitting_weight(given: FileLayer, layer: NetworkLayer) -> Tensor | None:
    """The file's weight in the shape of the network's, or None. The file may have a convolution for a linear layer."""
    if given.kind == layer.kind and given.weight.shape == layer.weight.shape:
        return given.weight
    sizes = (len(given.weight), given.weight.numel()) == (len(layer.weight), layer.weight.numel())
    if sizes and {given.kind, layer.kind} == {"conv", "linear"}:
        return given.weight.reshape(layer.weight.shape)
    return None


def _copy_statistics(norm: nn.BatchNorm2d, given: FileLayer) -> None:
    assert given.mean is not None
    assert given.variance is not None
    norm.get_buffer("running_mean").copy_(given.mean)
    norm.get_buffer("running_var").copy_(given.variance.double() + (given.epsilon - norm.eps))


def _set_to_add(norm: nn.Module, bias: Tensor) -> None:
    """Set `norm` so that it only adds `bias`; its weight undoes the division by sqrt(1 + eps)."""
    assert isinstance(norm, nn.BatchNorm2d)
    norm.get_buffer("running_mean").zero_()
    norm.get_buffer("running_var").fill_(1)
    norm.weight.fill_((1 + norm.eps) ** 0.5)
    norm.bias.copy_(bias)


def _response_norms(layers: Sequence[object]) -> dict[int, ResponseNorm]:
    """The response normalisations by the number of layers before them."""
    places = [index for index, layer in enumerate(layers) if isinstance(layer, ResponseNorm)]
    return {
        place - number: norm for number, place in enumerate(places) if isinstance(norm := layers[place], ResponseNorm)
    }


def _rescale(layers: list[NetworkLayer], own: dict[int, ResponseNorm], given: dict[int, ResponseNorm]) -> None:
    """Scale the layers around a response normalisation whose constants differ from the file's.

    The paper of AlexNet and BVLC's AlexNet differ in alpha and k. With x times `inside` for the network's input, its
    result is `outside` times the file's; ReLU and pooling between the layers pass a positive factor on.
    """
    for place, mine in own.items():
        theirs = given.get(place)
        if theirs is None or (theirs.size, theirs.beta) != (mine.size, mine.beta) or not 0 < place < len(layers):
            continue
        inside = sqrt(theirs.alpha * mine.k / (theirs.k * mine.alpha))
        outside = inside * (theirs.k / mine.k) ** mine.beta
        if isclose(inside, 1, rel_tol=_EQUAL) and isclose(outside, 1, rel_tol=_EQUAL):
            continue
        before, after = layers[place - 1], layers[place]
        before.weight.mul_(inside)
        if before.bias is not None:
            before.bias.mul_(inside)
        after.weight.div_(outside)


class _FileGraph:
    """The nodes that the first output of a graph depends on, and the stored values."""

    def __init__(self, graph: GraphProto) -> None:
        self._stored = constants(graph)
        self._nodes = used_nodes(graph, {graph.output[0].name})
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self._nodes:
            for name in node.input:
                self._readers[name].append(node)

    def layers(self) -> Iterator[FileLayer | ResponseNorm]:
        """The layers with stored weights and the response normalisations, in the order of the file."""
        for node in self._nodes:
            if node.op_type == "LRN":
                one = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, **_attributes(node)}
                yield ResponseNorm(one["size"], one["alpha"], one["beta"], one["bias"])
            if node.op_type not in ("Conv", "Gemm", "MatMul", "BatchNormalization"):
                continue
            weight = self._value(node, 1)
            if weight is not None and not any(torch.equal(weight, colour) for colour in _COLOURS):
                yield self._layer(node, node.name or node.output[0], weight)

    def _layer(self, node: NodeProto, name: str, weight: Tensor) -> FileLayer:
        attributes = _attributes(node)
        bias = self._value(node, 2)
        if node.op_type == "BatchNormalization":
            mean, variance = self._value(node, 3), self._value(node, 4)
            return FileLayer("norm", name, weight, bias, mean, variance, attributes.get("epsilon", 1e-5))
        if node.op_type == "Conv":
            return FileLayer("conv", name, weight, bias if bias is not None else self._added(node, len(weight)))
        if not attributes.get("transB", 0):
            weight = weight.T
        weight = weight * attributes.get("alpha", 1.0)
        bias = self._added(node, len(weight)) if bias is None else bias.reshape(-1) * attributes.get("beta", 1.0)
        return FileLayer("linear", name, weight, bias)

    def _value(self, node: NodeProto, index: int) -> Tensor | None:
        name = node.input[index] if index < len(node.input) else ""
        return _tensor(self._stored[name]) if name in self._stored else None

    def _added(self, node: NodeProto, channels: int) -> Tensor | None:
        """The bias that an Add right after `node` adds to each channel."""
        following = self._readers[node.output[0]]
        if len(following) != 1 or following[0].op_type != "Add":
            return None
        for name in following[0].input:
            if name in self._stored and (bias := _tensor(self._stored[name])).numel() == channels:
                return bias.reshape(-1)
        return None


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _tensor(tensor: TensorProto) -> Tensor:
    return torch.from_numpy(numpy_helper.to_array(tensor).astype("float32"))


def _size(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))
