"""From a graph in half precision to one in int8 as TensorRT reads it: pairs of QuantizeLinear and DequantizeLinear."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from export.onnx_common import ExportError, strip_metadata
from export.tensorrt.calibration import CalibrationError, Photos

_QUANTISED = ["Conv", "Gemm"]
# What TensorRT asks for: zero points of 0, no quantised biases, and no pair where a layer gives its result to a fused
# addition or ReLU.
_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
    "DedicatedQDQPair": False,
    "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "Add", "Relu"],
    "CalibStridedMinMax": 1,  # photos taken in at a time: without it the maps of all are kept until the last one
}
# The key by which ONNX Runtime knows a graph that needs no preparation: batch norms are folded, shapes are inferred.
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}


def quantise(half: Path, photos: Photos, path: Path, progress: Callable[[int, int], None]) -> None:
    """Write `half` to `path` with the inputs and weights of convolutions and fully connected layers in int8.

    The ranges of activations are those of least entropy loss over `photos`, weights have a scale for each channel.
    Raises CalibrationError where it finds no ranges, and ExportError.
    """
    model = onnx.load(half)
    onnx.helper.set_model_props(model, _PREPARED)
    prepared = path.with_suffix(".prepared.onnx")
    onnx.save(model, prepared)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            quantize_static(
                prepared,
                path,
                _Reader(photos, progress),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_QUANTISED,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Entropy,
                nodes_to_exclude=_preprocessing(model),
                extra_options=_OPTIONS,
            )
    except ValueError as error:
        raise CalibrationError(f"the ranges of the layers cannot be found with these photos: {error}") from error
    prepared.unlink()
    quantised = onnx.load(path)
    strip_metadata(quantised)
    _check(quantised)
    path.write_bytes(quantised.SerializeToString(deterministic=True))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Photos one by one, as ONNX Runtime asks for them: for a range, then until there are none."""

    def __init__(self, photos: Photos, progress: Callable[[int, int], None]) -> None:
        self._photos = photos
        self._progress = progress
        self._next = self._end = 0

    def __len__(self) -> int:
        return len(self._photos)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Photos from `start_index` up to before `end_index` come next."""
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, Any] | None:
        """A batch of one photo, or None at the end of the range."""
        if self._next >= self._end:
            return None
        photo = self._photos[self._next]
        self._next += 1
        self._progress(self._next, len(self._photos))
        return {"image": photo[np.newaxis]}


def _preprocessing(model: onnx.ModelProto) -> list[str]:
    """The nodes before the cast to float16: normalising in int8 would lose what the network is about to see."""
    names: list[str] = []
    for node in model.graph.node:
        if node.op_type == "Cast" and any(one.name == "to" and one.i == TensorProto.FLOAT16 for one in node.attribute):
            return names
        names.append(node.name)
    raise ExportError("the graph to quantise is not one in float16")


def _check(model: onnx.ModelProto) -> None:
    """Raise ExportError where a zero point is not 0 in int8, which TensorRT refuses, or nothing is quantised at all."""
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    if not pairs:
        raise ExportError("the graph has no convolution and no fully connected layer to quantise")
    values = {one.name: one for one in model.graph.initializer}
    for node in pairs:
        zero = onnx.numpy_helper.to_array(values[node.input[2]])
        if zero.dtype != np.int8 or zero.any():
            raise ExportError(f"{node.name} has a zero point that is not 0 in int8")
