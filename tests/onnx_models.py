"""Small ONNX classifiers whose answer to an image of one colour can be worked out by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

SIZE = 16
WEIGHT: NDArray[np.float32] = np.random.default_rng(7).normal(0, 1, (4, 3)).astype(np.float32)
"""A row for each of four classes: what its logit takes of the mean of each channel."""


def classifier(
    *,
    layout: str = "NCHW",
    element: int = TensorProto.FLOAT,
    batch: int | str | None = "N",
    opset: int = 17,
    weight: NDArray[np.float32] = WEIGHT,
    head: str = "gemm",
    size: int | str = SIZE,
) -> ModelProto:
    """Logits are `weight` times the mean of each channel of the input; `head` says by which nodes.

    gemm: Flatten, Gemm. conv: a 1x1 convolution, so that the output is [N, C, 1, 1]. reshape: a Reshape that names the
    batch, Gemm. mixed: a Reshape that mixes the batch with the channels, right for one image alone. softmax: gemm and
    a Softmax.
    """
    classes, channels = weight.shape
    half = element == TensorProto.FLOAT16
    kind = np.float16 if half else np.float32
    stored = {"w": weight.astype(kind)}
    nodes: list[NodeProto] = []
    value = "x"

    def add(operator: str, *names: str, **attributes: Any) -> None:
        nonlocal value
        nodes.append(helper.make_node(operator, [value, *names], [f"v{len(nodes)}"], **attributes))
        value = nodes[-1].output[0]

    if layout == "NHWC":
        add("Transpose", perm=[0, 3, 1, 2])
    if element not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        add("Cast", to=TensorProto.FLOAT)
    add("GlobalAveragePool")
    rows = batch if isinstance(batch, int) else 1
    if head == "conv":
        stored["w"] = stored["w"][:, :, None, None]
        add("Conv", "w")
    else:
        if head == "reshape":
            stored["shape"] = np.array([rows, channels])
            add("Reshape", "shape")
        elif head == "mixed":
            stored["shape"] = np.array([channels, -1])
            add("Reshape", "shape")
            add("Transpose", perm=[1, 0])
        else:
            add("Flatten")
        stored["bias"] = np.zeros(classes, dtype=kind)
        add("Gemm", "w", "bias", transB=1)
        if head == "softmax":
            add("Softmax", axis=1)
    shape = [batch, channels, size, size] if layout == "NCHW" else [batch, size, size, channels]
    output = [batch, classes, 1, 1] if head == "conv" else [batch, classes]
    return model_of(
        nodes,
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT16 if half else TensorProto.FLOAT, output)],
        stored,
        opset,
    )


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    stored: dict[str, NDArray[Any]],
    opset: int = 17,
) -> ModelProto:
    """A model of these parts; those of opset 8 and before are of IR 3, whose initializers are inputs as well."""
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    given = list(inputs)
    if opset < 9:
        given += [helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in tensors]
    graph = helper.make_graph(list(nodes), "net", given, list(outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if opset < 9 else 8)


def saved(model: ModelProto, folder: Path, name: str = "net.onnx") -> Path:
    """Write the model to a file."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def recipe(folder: Path, text: str = "") -> Path:
    """Write a recipe to a file."""
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities of each row."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return result
