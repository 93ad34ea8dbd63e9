"""Compares a catalog network with the ONNX file that its weights came from, on the same input."""

from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from torch import nn

from models.catalog import Architecture, InputSpec
from models.weights.onnx_reader import IMAGE_TYPES, real_inputs
from models.weights.weights import WeightsError

_IMAGES = 2
_SEED = 1998
_LIMIT, _HALF_LIMIT = 1e-3, 3e-2  # relative; swapping two layers changes the answers by tenths
_SMALLEST = 1e-30
_CHANNELS = (1, 3)
_CEIL_MODE_SINCE = 10  # opset

Values = NDArray[np.float64]


def check_answers(network: nn.Module, architecture: Architecture, model: ModelProto, path: Path) -> None:
    """Run both on the same seeded noise of bytes. Raises WeightsError if the answers differ.

    Caffe rounds the sizes of pooled maps up. Files that were converted from it may round down, and their networks take
    another size then; weights say nothing of either. So the file is also run rounded up, at the network's own size.
    """
    file = _OnnxFile(model, path, architecture, path)
    error = _difference(network, architecture.input, file)
    if error > file.limit and not file.channels_last and _round_up(model, architecture.input.crop):
        file = _OnnxFile(model, path, architecture, model.SerializeToString())
        error = min(error, _difference(network, architecture.input, file))
    if error > file.limit:
        differ = f"differ by {error:.1%}" if error < inf else "cannot be compared"
        raise WeightsError(
            f"{path} has layers of the shapes of {architecture.name}, but its answers {differ}: "
            "its branches come in another order, or between its layers it computes something else; "
            "give the weights as .safetensors, or serve the file itself: topfive import"
        )


def _difference(network: nn.Module, spec: InputSpec, file: "_OnnxFile") -> float:
    """The smallest relative difference of the answers, over the inputs that the file may want.

    The network gets the noise with the catalog's normalisation. A file with a float input may want the same, or
    ImageNet's normalisation, or 0 to 1, or 0 to 255: published files of GoogLeNet and Inception-v3 normalise inside. A
    file with a uint8 input may want RGB, as the graphs that topfive exports, or the network's own channels.
    """
    rgb = np.random.default_rng(_SEED).integers(0, 256, (_IMAGES, 3, file.size, file.size)).astype(np.float64)
    pixels = np.einsum("oc,nchw->nohw", np.array(spec.channels.matrix), rgb / 255)
    normalised = _normalised(pixels, spec)
    try:
        with torch.inference_mode():
            logits = network.eval()(torch.from_numpy(normalised.astype(np.float32))).double().numpy()
    except RuntimeError:  # it takes another size
        return inf
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
            raise WeightsError(f"{file.path} gives {found.shape[1:]} numbers for an image, not {expected.shape[1:]}")
        errors.append(float(np.linalg.norm(found - expected)) / length)
        if errors[-1] <= file.limit:
            break
    if not errors:
        raise WeightsError(f"{file.path} takes {file.channels} channels, not {pixels.shape[1]}; it cannot be checked")
    return min(errors)


def _round_up(model: ModelProto, size: int) -> bool:
    """Let the poolings of the model round up instead of padding their ends. Returns False if there are none."""
    pools = [node for node in model.graph.node if node.op_type in ("MaxPool", "AveragePool")]
    for node in pools:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        pads = attributes.get("pads", [0, 0])
        if not any(pads[: len(pads) // 2]) and "auto_pad" not in attributes:
            attributes |= {"ceil_mode": 1, **({"pads": [0] * len(pads)} if "pads" in attributes else {})}
            del node.attribute[:]
            node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    for entry in model.opset_import:
        if not entry.domain:
            entry.version = max(entry.version, _CEIL_MODE_SINCE)
    del model.graph.value_info[:]  # the sizes between the layers change
    for axis in real_inputs(model.graph)[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value = size
    return bool(pools)


class _OnnxFile:
    """A model in ONNX Runtime, one image at a time. `content` is its file, or its bytes if it was changed."""

    def __init__(self, model: ModelProto, path: Path, architecture: Architecture, content: Path | bytes) -> None:
        inputs = real_inputs(model.graph)
        if len(inputs) != 1 or len(axes := inputs[0].type.tensor_type.shape.dim) != 4:
            raise WeightsError(f"{path} takes {len(inputs)} inputs, or no batch of images; it cannot be checked")
        element = inputs[0].type.tensor_type.elem_type
        if element not in IMAGE_TYPES:
            raise WeightsError(f"{path} takes neither fractions nor bytes, so it cannot be checked")
        self._type = IMAGE_TYPES[element]
        self.uint8 = element == TensorProto.UINT8
        self.channels_last = axes[3].dim_value in _CHANNELS and axes[1].dim_value not in _CHANNELS
        self.channels = axes[3 if self.channels_last else 1].dim_value  # 0 if it is not fixed
        self.size = axes[2].dim_value or architecture.input.crop
        self._batch = axes[0].dim_value or 1
        halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
        self.limit = _HALF_LIMIT if halves or element == TensorProto.FLOAT16 else _LIMIT
        self._input, self.path, self._output = inputs[0].name, path, model.graph.output[0].name
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        try:
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
            raise WeightsError(f"ONNX Runtime cannot load {path}, so it cannot be checked: {error}") from error

    def log_probabilities(self, images: Values) -> Values:
        """The log-probabilities of each image, or its logits, less their mean: both are equal then."""
        rows = np.stack([self._row(image[None]) for image in images])
        if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-2):
            rows = np.log(np.maximum(rows, _SMALLEST))
        return _centred(rows)

    def _row(self, image: Values) -> Values:
        given = image.transpose(0, 2, 3, 1) if self.channels_last else image
        batch = np.ascontiguousarray(np.repeat(given, self._batch, axis=0).astype(self._type))
        try:
            (found,) = self._session.run([self._output], {self._input: batch})
        except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
            raise WeightsError(f"ONNX Runtime cannot run {self.path}: {error}") from error
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
