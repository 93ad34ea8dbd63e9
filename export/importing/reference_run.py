"""Runs the imported file itself in ONNX Runtime on the CPU: the reference of the parity gate.

It shares no code with the graph that the import makes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from export.importing.recipe import Output, Recipe
from export.importing.signature import ChannelLayout, Signature, UnsupportedError
from models.catalog import Channels
from models.weights.onnx_reader import IMAGE_TYPES
from service.common.types import Batch, Probabilities

_REPEATED_ERROR = 1e-3  # the most that the order of threads may change

Scores = NDArray[np.float64]


class ReferenceModel:
    """Runs the unchanged file on one image at a time. If the file fixes a larger batch, the image is repeated in it."""

    def __init__(self, path: Path, model: ModelProto, signature: Signature) -> None:
        self._signature = signature
        self._session = open_session(_without_zero_axes(model, signature) or path)

    def scores(self, images: Batch, recipe: Recipe, scale: int) -> Scores:
        """The output of the file, [N, C], for images [N, S, S, 3].

        Raises UnsupportedError if it fails, gives no row, or answers the same image in two ways.
        """
        rows = [self._row(image, recipe, scale) for image in images]
        if len({row.shape for row in rows}) != 1:
            raise UnsupportedError(
                "the output differs in shape from image to image, as of a detector; classes are served"
            )
        again = self._row(images[0], recipe, scale)
        if not np.allclose(again, rows[0], rtol=_REPEATED_ERROR, atol=_REPEATED_ERROR, equal_nan=True):
            raise UnsupportedError(
                "the file answers the same image differently each time, because it draws random numbers; "
                "export the network in evaluation mode"
            )
        return np.stack(rows)

    def _row(self, image: Batch, recipe: Recipe, scale: int) -> Scores:
        signature = self._signature
        given = np.repeat(network_input(image[None], recipe, signature, scale), signature.batch or 1, axis=0)
        (found,) = run_session(self._session, [signature.output], {signature.input: given}, "the file on an image")
        return _first_row(signature, found, len(given))


def _without_zero_axes(model: ModelProto, signature: Signature) -> bytes | None:
    """The file with axes of length 0, which old exporters write, made dynamic; None if it has none."""
    copy = ModelProto()
    copy.CopyFrom(model)
    (image,) = (value for value in copy.graph.input if value.name == signature.input)
    zeros = [dim for dim in image.type.tensor_type.shape.dim if dim.HasField("dim_value") and dim.dim_value == 0]
    for dim in zeros:
        dim.ClearField("dim_value")
    return copy.SerializeToString() if zeros else None


def _first_row(signature: Signature, found: NDArray[Any], batch: int) -> Scores:
    """The first row of an output [N, C], [N, C, 1, 1] or, of one image, [C]; UnsupportedError for others."""
    if found.ndim == 1 and batch == 1:
        found = found[None]
    shape = list(found.shape)
    kind = f"the output {signature.output!r} is {shape}"
    if found.ndim < 2 or shape[0] != batch:
        raise UnsupportedError(f"{kind} for a batch of {batch}; a score for each class of each image is served, [N, C]")
    if found.size // batch != max(shape[1:]):
        what = "a map over the image" if found.ndim == 4 else "boxes or tokens"
        raise UnsupportedError(f"{kind}, which looks like {what}; a classifier gives [N, C]")
    if (classes := max(shape[1:])) < 2:
        raise UnsupportedError(f"{kind}, {classes} class; two or more are served: give both sides of a yes or no")
    return np.asarray(found[0].reshape(-1), dtype=np.float64)


def network_input(images: Batch, recipe: Recipe, signature: Signature, scale: int) -> NDArray[Any]:
    """The input of the file for `images` [N, S, S, 3], computed from the recipe alone.

    Grey of a uint8 network is rounded to the nearest number, halves up.
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
    if signature.layout is ChannelLayout.NCHW:
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values.astype(IMAGE_TYPES[signature.element]))


def probabilities(scores: Scores, recipe: Recipe, sum_error: float) -> Probabilities:
    """The probabilities that the service must answer. The sum of the file's may differ from 1 by `sum_error`.

    Raises UnsupportedError if the scores are not what the recipe says.
    """
    if not np.isfinite(scores).all():
        raise UnsupportedError(
            "the file gives numbers that are not finite for photos; check scale, mean and std of the recipe, "
            "and whether the file's weights are whole"
        )
    sums = scores.sum(axis=1)
    are = bool((scores >= -sum_error).all() and (np.abs(sums - 1) <= sum_error).all())
    if recipe.output is Output.PROBABILITIES:
        if not are:
            what = "" if scores.min() < 0 else " if they are logits; otherwise export the logits"
            raise UnsupportedError(
                f"the outputs are no probabilities: they add up to {sums.min():.4g} to {sums.max():.4g}, "
                f'and the least is {scores.min():.4g}; write output = "logits"{what}'
            )
        return scores.astype(np.float32)
    if are:
        raise UnsupportedError(
            'the outputs are probabilities already: they add up to 1; write output = "probabilities"'
        )
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def open_session(source: Path | bytes) -> ort.InferenceSession:
    """A session on the CPU for a file or its bytes. Raises UnsupportedError if ONNX Runtime does not load it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
        raise UnsupportedError(f"ONNX Runtime cannot load the file: {' '.join(str(error).split())}") from error


def run_session(
    session: ort.InferenceSession, outputs: list[str], inputs: dict[str, NDArray[Any]], what: str
) -> list[NDArray[Any]]:
    """The values of `outputs`. Raises UnsupportedError if ONNX Runtime cannot run `what`."""
    try:
        return [np.asarray(value) for value in session.run(outputs, inputs)]
    except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
        raise UnsupportedError(f"ONNX Runtime cannot run {what}: {' '.join(str(error).split())}") from error
