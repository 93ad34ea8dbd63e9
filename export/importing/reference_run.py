"""The imported file itself in ONNX Runtime on the CPU: the reference of the gate. It shares nothing with the graph."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from export.importing.recipe import Output, Recipe
from export.importing.signature import Layout, RefusedError, Signature
from models.catalog import Channels
from models.weights.onnx_reader import IMAGE_TYPES
from service.common.types import Batch, EngineInfo, Precision, Probabilities, Rows, Runtime
from service.engines.base import CPU, Engine, as_batch, held_bytes

_REPEATED_ERROR = 1e-3  # what the order of threads may change at most
_SOURCE = re.compile(r"/\S*onnxruntime\S*/\S+:\d+ .*?\) (?=[A-Z])")  # where in ONNX Runtime it was noticed
_LINES = 3  # those after are a stack or advice to whoever wrote the runtime
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?")

Scores = NDArray[np.float64]


class Original:
    """The file as it came, one image at a time; where it takes several at once, the image is repeated."""

    def __init__(self, path: Path, model: ModelProto, signature: Signature) -> None:
        self._signature = signature
        self._session = open_session(_without_zeros(model, signature) or path)

    def scores(self, images: Batch, recipe: Recipe, scale: int) -> Scores:
        """Its output for each image of [N, S, S, 3], [N, C].

        Raises RefusedError where it fails, gives no row, or answers one image in two ways.
        """
        rows = [self._row(image, recipe, scale) for image in images]
        if len({row.shape for row in rows}) != 1:
            raise RefusedError("the output differs in shape from image to image, as of a detector; classes are served")
        again = self._row(images[0], recipe, scale)
        if not np.allclose(again, rows[0], rtol=_REPEATED_ERROR, atol=_REPEATED_ERROR, equal_nan=True):
            raise RefusedError(
                "the file answers the same image differently each time, because it draws random numbers; "
                "export the network in evaluation mode"
            )
        return np.stack(rows)

    def _row(self, image: Batch, recipe: Recipe, scale: int) -> Scores:
        signature = self._signature
        given = np.repeat(network_input(image[None], recipe, signature, scale), signature.batch or 1, axis=0)
        try:
            (found,) = self._session.run([signature.output], {signature.input: given})
        except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
            raise RefusedError(f"ONNX Runtime cannot run the file on an image: {one_line(error)}") from error
        return _row_of(signature, np.asarray(found), len(given))


def _without_zeros(model: ModelProto, signature: Signature) -> bytes | None:
    """The file with an input of any size, where it has axes of length 0, as old exporters write for that; else None."""
    given = next(value for value in model.graph.input if value.name == signature.input)
    if not any(dim.HasField("dim_value") and dim.dim_value == 0 for dim in given.type.tensor_type.shape.dim):
        return None
    free = ModelProto()
    free.CopyFrom(model)
    for value in free.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if value.name == signature.input and dim.dim_value == 0:
                dim.ClearField("dim_value")
    return free.SerializeToString()


def _row_of(signature: Signature, found: NDArray[Any], batch: int) -> Scores:
    """The first image's scores of an output [N, C], [N, C, 1, 1] or for one image [C]; RefusedError for any other."""
    if found.ndim == 1 and batch == 1:
        found = found[None]
    shape = list(found.shape)
    kind = f"the output {signature.output!r} is {shape}"
    if found.ndim < 2 or shape[0] != batch:
        raise RefusedError(f"{kind} for a batch of {batch}; a score for each class of each image is served, [N, C]")
    if found.size // batch != max(shape[1:]):
        what = "a map over the image" if found.ndim == 4 else "boxes or tokens"
        raise RefusedError(f"{kind}, which looks like {what}; a classifier gives [N, C]")
    if (classes := max(shape[1:])) < 2:
        raise RefusedError(f"{kind}, {classes} class; two or more are served: give both sides of a yes or no")
    return np.asarray(found[0].reshape(-1), dtype=np.float64)


def network_input(images: Batch, recipe: Recipe, signature: Signature, scale: int) -> NDArray[Any]:
    """`images` [N, S, S, 3] as the file wants them, by the words of the recipe alone.

    Grey for a network of whole numbers is rounded to the nearest, halves up.
    """
    if recipe.channels is Channels.GREY:
        thousandths = images.astype(np.int64) @ np.array([299, 587, 114])
        whole = signature.element == TensorProto.UINT8
        values = ((thousandths + 500) // 1000 if whole else thousandths / 1000)[..., None].astype(np.float64)
    else:
        values = images.astype(np.float64)
        values = values[..., ::-1] if recipe.channels is Channels.BGR else values
    channels = values.shape[-1]
    values = (values / scale - np.array(recipe.mean[:channels])) / np.array(recipe.std[:channels])
    if signature.layout is Layout.NCHW:
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values.astype(IMAGE_TYPES[signature.element]))


def probabilities(scores: Scores, recipe: Recipe, sum_error: float) -> Probabilities:
    """What the service must answer; probabilities may miss a sum of 1 by `sum_error`.

    Raises RefusedError where the scores are not what the recipe says they are.
    """
    if not np.isfinite(scores).all():
        raise RefusedError(
            "the file gives numbers that are not finite for photos; check scale, mean and std of the recipe, "
            "and whether the file's weights are whole"
        )
    sums = scores.sum(axis=1)
    are = bool((scores >= -sum_error).all() and (np.abs(sums - 1) <= sum_error).all())
    if recipe.output is Output.PROBABILITIES:
        if not are:
            what = "" if scores.min() < 0 else ", if they are what a softmax is put after; otherwise export that"
            raise RefusedError(
                f"the outputs are no probabilities: they add up to {sums.min():.4g} to {sums.max():.4g}, "
                f'and the least is {scores.min():.4g}; write output = "logits"{what}'
            )
        return scores.astype(np.float32)
    if are:
        raise RefusedError('the outputs are probabilities already: they add up to 1; write output = "probabilities"')
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


class Trial(Engine):
    """A graph of the contract in ONNX Runtime, tried before it is written."""

    slots = 1
    device = CPU

    def __init__(self, graph: bytes, max_batch: int) -> None:
        self.max_batch = max_batch
        self.memory_bytes = held_bytes(len(graph))
        self._session = open_session(graph)

    def run(self, rows: Rows) -> Probabilities:
        """Probabilities [N, C] of N samples. Raises RefusedError where the graph fails."""
        try:
            (found,) = self._session.run(["probabilities"], {"image": as_batch(rows)})
        except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
            raise RefusedError(f"ONNX Runtime cannot run the graph made from the file: {one_line(error)}") from error
        return np.asarray(found, dtype=np.float32)

    def describe(self) -> EngineInfo:
        """What runs."""
        return EngineInfo(Runtime.ONNXRUNTIME, ort.__version__, self.device, Precision.F32)

    def close(self) -> None:
        """Release the session."""
        del self._session


def open_session(source: Path | bytes) -> ort.InferenceSession:
    """A session on the CPU over a file or its bytes. Raises RefusedError where ONNX Runtime does not take it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
        raise RefusedError(f"ONNX Runtime cannot load the file: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """What a runtime says, in one line without its codes and the places in its own source files."""
    lines = [line.strip() for line in _SOURCE.sub("", str(error)).splitlines()]
    text = " ".join(line for line in lines[:_LINES] if line)
    return _CODE.sub("", text) or type(error).__name__
