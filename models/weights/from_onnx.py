"""Loads the weights of an ONNX file into a catalog network of the same architecture, layer by layer in graph order.

Shapes alone cannot tell whether the layers match, so the network and the file then run on the same input.

Exporters fold a batch norm into the convolution before it. Such a convolution has a bias that the network's own lacks;
the batch norm after it is then set so that it only adds that bias.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.catalog import Architecture, InputSpec
from models.weights.onnx_reader import IMAGE_TYPES, constants, read_model, real_inputs, used_nodes
from models.weights.weights import WeightsError

_KINDS: dict[str, type[nn.Module]] = {"conv": nn.Conv2d, "linear": nn.Linear, "norm": nn.BatchNorm2d}
_IMAGES = 2
_SEED = 1998
_LIMIT, _HALF_LIMIT = 1e-3, 3e-2  # relative; swapping two layers changes the answers by tenths
_SMALLEST = 1e-30
_CHANNELS = (1, 3)

Values = NDArray[np.float64]


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


def load_onnx(network: nn.Module, architecture: Architecture, path: Path) -> None:
    """Copy the weights of the file into `network`, and check that both give the same answers.

    Raises OnnxFileError if the file is not ONNX, WeightsError with the first layer that differs, or if the
    answers differ.
    """
    model = read_model(path)
    layers = list(_network_layers(network, architecture))
    with torch.no_grad():
        _match(layers, list(_FileGraph(model.graph).layers()), architecture.name, path)
    if wrong := [name for name, value in network.state_dict().items() if not value.isfinite().all()]:
        raise WeightsError(f"{path} is not finite in {wrong[0]}")
    _check_answers(network, architecture, model, path)


def _network_layers(network: nn.Module, architecture: Architecture) -> Iterator[NetworkLayer]:
    """The layers in the order in which they run."""
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

    hooks = [module.register_forward_hook(note) for module in names if isinstance(module, known)]
    try:
        with torch.inference_mode():
            crop = architecture.input.crop
            network.eval()(torch.zeros(1, len(architecture.input.channels.matrix), crop, crop))
    finally:
        for hook in hooks:
            hook.remove()
    for module in order:
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


class _FileGraph:
    """The nodes that the first output of a graph depends on, and the stored values."""

    def __init__(self, graph: GraphProto) -> None:
        self._stored = constants(graph)
        self._nodes = used_nodes(graph, {graph.output[0].name})
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self._nodes:
            for name in node.input:
                self._readers[name].append(node)

    def layers(self) -> Iterator[FileLayer]:
        """The layers with stored weights, in the order of the file."""
        for node in self._nodes:
            if node.op_type not in ("Conv", "Gemm", "MatMul", "BatchNormalization"):
                continue
            if (weight := self._value(node, 1)) is not None:
                yield self._layer(node, node.name or node.output[0], weight)

    def _layer(self, node: NodeProto, name: str, weight: Tensor) -> FileLayer:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
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


def _tensor(tensor: TensorProto) -> Tensor:
    return torch.from_numpy(numpy_helper.to_array(tensor).astype("float32"))


def _size(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))


def _check_answers(network: nn.Module, architecture: Architecture, model: ModelProto, path: Path) -> None:
    """Run both on the same seeded noise of bytes. Raises WeightsError if the answers differ.

    The network gets the noise with the catalog's normalisation. A file with a float input may want the same, or
    ImageNet's normalisation, or 0 to 1, or 0 to 255: published files of GoogLeNet and Inception-v3 normalise inside. A
    file with a uint8 input may want RGB, as the graphs that topfive exports, or the network's own channels.
    """
    file = _OnnxFile(model, path, architecture)
    spec, size = architecture.input, file.size
    rgb = np.random.default_rng(_SEED).integers(0, 256, (_IMAGES, 3, size, size)).astype(np.float64)
    pixels = np.einsum("oc,nchw->nohw", np.array(spec.channels.matrix), rgb / 255)
    normalised = _normalised(pixels, spec)
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(normalised.astype(np.float32))).double().numpy()
    expected = _centred(logits)
    scaled = pixels * 255
    candidates = (rgb, scaled.round()) if file.uint8 else (normalised, _normalised(pixels, InputSpec()), pixels, scaled)
    errors: list[float] = []
    length = max(float(np.linalg.norm(expected)), _SMALLEST)
    for given in candidates:
        if file.channels not in (0, given.shape[1]):
            continue
        found = file.log_probabilities(given)
        if found.shape != expected.shape:
            raise WeightsError(f"{path} gives {found.shape[1:]} numbers for an image, not {expected.shape[1:]}")
        errors.append(float(np.linalg.norm(found - expected)) / length)
        if errors[-1] <= file.limit:
            return
    if not errors:
        raise WeightsError(f"{path} takes {file.channels} channels, not {pixels.shape[1]}; it cannot be checked")
    raise WeightsError(
        f"{path} has layers of the shapes of {architecture.name}, but its answers differ by {min(errors):.1%}: "
        "its branches come in another order, or between its layers it computes something else; "
        "give the weights as .safetensors, or serve the file itself: topfive import"
    )


class _OnnxFile:
    """The file in ONNX Runtime, one image at a time."""

    def __init__(self, model: ModelProto, path: Path, architecture: Architecture) -> None:
        inputs = real_inputs(model.graph)
        if len(inputs) != 1 or len(axes := inputs[0].type.tensor_type.shape.dim) != 4:
            raise WeightsError(f"{path} takes {len(inputs)} inputs, or no batch of images; it cannot be checked")
        element = inputs[0].type.tensor_type.elem_type
        if element not in IMAGE_TYPES:
            raise WeightsError(f"{path} takes neither fractions nor bytes, so it cannot be checked")
        self._type = IMAGE_TYPES[element]
        self.uint8 = element == TensorProto.UINT8
        self._channels_last = axes[3].dim_value in _CHANNELS and axes[1].dim_value not in _CHANNELS
        self.channels = axes[3 if self._channels_last else 1].dim_value  # 0 if it is not fixed
        self.size = axes[2].dim_value or architecture.input.crop
        self._batch = axes[0].dim_value or 1
        halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
        self.limit = _HALF_LIMIT if halves or element == TensorProto.FLOAT16 else _LIMIT
        self._input, self._path, self._output = inputs[0].name, path, model.graph.output[0].name
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
            raise WeightsError(f"ONNX Runtime cannot load {path}, so it cannot be checked: {error}") from error

    def log_probabilities(self, images: Values) -> Values:
        """The log-probabilities of each image, or its logits, less their mean: both are equal then."""
        rows = np.stack([self._row(image[None]) for image in images])
        if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-2):
            rows = np.log(np.maximum(rows, _SMALLEST))
        return _centred(rows)

    def _row(self, image: Values) -> Values:
        given = image.transpose(0, 2, 3, 1) if self._channels_last else image
        batch = np.ascontiguousarray(np.repeat(given, self._batch, axis=0).astype(self._type))
        try:
            (found,) = self._session.run([self._output], {self._input: batch})
        except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
            raise WeightsError(f"ONNX Runtime cannot run {self._path}: {error}") from error
        row: Values = np.asarray(found, dtype=np.float64)[0].reshape(-1)
        return row


def _normalised(pixels: Values, spec: InputSpec) -> Values:
    channels = pixels.shape[1]
    mean, std = (np.array(values[:channels]).reshape(1, channels, 1, 1) for values in (spec.mean, spec.std))
    result: Values = (pixels - mean) / std
    return result


def _centred(values: NDArray[Any]) -> Values:
    result: Values = values - values.mean(axis=1, keepdims=True)
    return result
