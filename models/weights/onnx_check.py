"""Checks that a network gives the answers of the ONNX file that its weights come from; shapes alone cannot tell."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from torch import nn

from models.catalog import Architecture, InputSpec
from models.weights.onnx_reader import IMAGE_TYPES, real_inputs

_IMAGES = 2
_SEED = 1998
_IMAGENET = InputSpec()
_LIMIT, _HALF_LIMIT = 1e-3, 3e-2  # relative; a swap of two layers moves it by tenths
_SMALLEST = 1e-30
_CHANNELS = (1, 3)

Values = NDArray[np.float64]


class DisagreementError(Exception):
    """The network and the file give different answers, or the file does not run."""


def check_agreement(network: nn.Module, architecture: Architecture, model: ModelProto, path: Path) -> None:
    """Run both on the same seeded noise of bytes. Raises DisagreementError.

    The network gets the noise with the catalog's normalisation. A file with a float input may want the same, or
    ImageNet's normalisation, or 0 to 1, or 0 to 255: published files of GoogLeNet and Inception-v3 normalise inside. A
    file with a uint8 input may want RGB, as the graphs that topfive exports, or the network's own channels.
    """
    file = _OnnxFile(model, path, architecture)
    spec, size = architecture.input, file.size
    colours = np.random.default_rng(_SEED).integers(0, 256, (_IMAGES, 3, size, size)).astype(np.float64)
    pixels = np.einsum("oc,nchw->nohw", np.array(spec.channels.matrix), colours / 255)
    channels = pixels.shape[1]
    own = _normalised(pixels, spec.mean, spec.std)
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(own.astype(np.float32))).double().numpy()
    expected = _centred(logits)
    scaled = _normalised(pixels, (0.0,) * channels, (1 / 255,) * channels)
    fractions = (own, _normalised(pixels, _IMAGENET.mean, _IMAGENET.std), pixels, scaled)
    candidates = (colours, scaled.round()) if file.uint8 else fractions
    errors: list[float] = []
    length = max(float(np.linalg.norm(expected)), _SMALLEST)
    for given in candidates:
        if file.channels not in (0, given.shape[1]):
            continue
        found = file.log_probabilities(given)
        if found.shape != expected.shape:
            raise DisagreementError(f"{path} gives {found.shape[1:]} numbers for an image, not {expected.shape[1:]}")
        errors.append(float(np.linalg.norm(found - expected)) / length)
        if errors[-1] <= file.limit:
            return
    if not errors:
        raise DisagreementError(f"{path} takes {file.channels} channels, not {channels}; it cannot be checked")
    raise DisagreementError(
        f"{path} has layers of the shapes of {architecture.name}, but its answers differ by {min(errors):.1%}: "
        "its branches come in another order, or between its layers it computes something else; "
        "give the weights as .safetensors, or serve the file itself: topfive import"
    )


class _OnnxFile:
    """The file in ONNX Runtime, one image at a time."""

    def __init__(self, model: ModelProto, path: Path, architecture: Architecture) -> None:
        inputs = real_inputs(model.graph)
        if len(inputs) != 1 or len(dims := inputs[0].type.tensor_type.shape.dim) != 4:
            raise DisagreementError(f"{path} takes {len(inputs)} inputs, or no batch of images; it cannot be checked")
        element = inputs[0].type.tensor_type.elem_type
        if element not in IMAGE_TYPES:
            raise DisagreementError(f"{path} takes neither fractions nor bytes, so it cannot be checked")
        self._type = IMAGE_TYPES[element]
        self.uint8 = element == TensorProto.UINT8
        self._last = dims[3].dim_value in _CHANNELS and dims[1].dim_value not in _CHANNELS
        self.channels = dims[3 if self._last else 1].dim_value  # 0 where it is not fixed
        self.size = dims[2].dim_value or architecture.input.crop
        self._batch = dims[0].dim_value or 1
        halves = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
        self.limit = _HALF_LIMIT if halves or element == TensorProto.FLOAT16 else _LIMIT
        self._input, self._path, self._output = inputs[0].name, path, model.graph.output[0].name
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what is wrong is raised
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
            raise DisagreementError(f"ONNX Runtime cannot load {path}, so it cannot be checked: {error}") from error

    def log_probabilities(self, images: Values) -> Values:
        """The log-probabilities of each image, or its logits, less their mean: both are equal then."""
        rows = np.stack([self._row(image[None]) for image in images])
        if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-2):
            rows = np.log(np.maximum(rows, _SMALLEST))
        return _centred(rows)

    def _row(self, image: Values) -> Values:
        given = image.transpose(0, 2, 3, 1) if self._last else image
        batch = np.ascontiguousarray(np.repeat(given, self._batch, axis=0).astype(self._type))
        try:
            (found,) = self._session.run([self._output], {self._input: batch})
        except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
            raise DisagreementError(f"ONNX Runtime cannot run {self._path}: {error}") from error
        row: Values = np.asarray(found, dtype=np.float64)[0].reshape(-1)
        return row


def _normalised(pixels: Values, mean: tuple[float, ...], std: tuple[float, ...]) -> Values:
    channels = pixels.shape[1]
    shape = (1, channels, 1, 1)
    result: Values = (pixels - np.array(mean[:channels]).reshape(shape)) / np.array(std[:channels]).reshape(shape)
    return result


def _centred(values: NDArray[Any]) -> Values:
    result: Values = values - values.mean(axis=1, keepdims=True)
    return result
