"""Models as the Open Inference Protocol describes them: one input tensor, one output tensor, and a configuration.

The descriptions are JSON values; the messages of gRPC have the same fields.
"""

import base64
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from typing import Any

import numpy as np

from service.common.errors import BadRequest, ModelNotFound
from service.common.model_info import ModelDetail, ModelState, ModelVersion
from service.common.types import Probabilities
from service.inference.dataplane import DataPlane, Images, Inference
from service.inference.topk import top_k

IMAGE, PROBABILITIES = "image", "probabilities"
PIXELS, FILES, FLOATS = "UINT8", "BYTES", "FP32"
"""The datatypes: of resized and cropped images, of image files and of strings, and of probabilities."""

_MOST_FILES = 4096  # in a request: the event loop copies each before any is refused for capacity
_EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "schedule_policy", "parameters")
_LARGEST_BATCH = 64  # of an engine whose largest batch is not known
_STATES = {ModelState.READY: "READY", ModelState.LOADING: "LOADING"}
_CONFIG = '{"version_policy": {"specific": {"versions": [2]}}}'
_LONGEST_NAME = 60  # of a client's own name in an error message
_LONGEST_CONFIG = 64 << 10  # in characters
_MOST_LENGTHS = 8  # of a shape; one with more is wrong, and long in an error message
_BASE64_PIECE = 1 << 20  # characters, a multiple of four

LONG_REPLY = 16_384
"""Probabilities of which the reply takes milliseconds."""


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input of a request. `content` is the tensor in the protocol's binary form, or the elements of one of BYTES."""

    name: str
    datatype: str
    shape: Sequence[int]
    content: bytes | Sequence[bytes]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """The output of a response: probabilities [N, classes], or strings [N, k] of the best classes."""

    probabilities: Probabilities
    strings: Sequence[Sequence[str]] | None

    @property
    def datatype(self) -> str:
        return FLOATS if self.strings is None else FILES

    @property
    def shape(self) -> Sequence[int]:
        return self.probabilities.shape if self.strings is None else (len(self.strings), len(self.strings[0]))

    @property
    def values(self) -> list[float] | list[str]:
        """The values, flat, for JSON."""
        return self.probabilities.ravel().tolist() if self.strings is None else list(chain.from_iterable(self.strings))

    @property
    def content(self) -> bytes:
        """The tensor in the protocol's binary form."""
        if self.strings is None:
            return self.probabilities.astype("<f4").tobytes()
        return pack(one.encode() for row in self.strings for one in row)


def read_images(inputs: Sequence[InputTensor]) -> Images:
    """The images in the inputs of a request. Raises BadRequest."""
    _check_names("input", [one.name for one in inputs], IMAGE)
    if not inputs:
        raise BadRequest(f"expected 1 input but got 0; send the input {IMAGE!r}")
    tensor = inputs[0]
    if len(tensor.shape) > _MOST_LENGTHS:
        raise BadRequest(f"the shape of input {IMAGE!r} has {len(tensor.shape)} lengths; send at most 4")
    if any(length < 0 for length in tensor.shape):
        raise BadRequest(f"the shape of input {IMAGE!r} is {list(tensor.shape)}; send lengths of 0 or more")
    if tensor.datatype == FILES:
        return _elements(tensor)
    if tensor.datatype != PIXELS:
        raise BadRequest(
            f"inference input {IMAGE!r} data-type is {tensor.datatype[:_LONGEST_NAME]!r}; send {PIXELS} for images "
            f"that are resized and cropped, or {FILES} for image files"
        )
    if len(tensor.shape) != 4:
        raise BadRequest(f"the shape of input {IMAGE!r} is {list(tensor.shape)}; send [images, height, width, 3]")
    _check_count(tensor, len(tensor.content))
    assert isinstance(tensor.content, bytes), "only BYTES come as elements"
    return np.frombuffer(tensor.content, np.uint8).reshape(tensor.shape)


def _elements(tensor: InputTensor) -> Sequence[bytes]:
    """The elements of a tensor of BYTES, [N] or [N, 1]."""
    if not tensor.shape or tuple(tensor.shape[1:]) not in ((), (1,)):
        raise BadRequest(f"the shape of input {IMAGE!r} is {list(tensor.shape)}; send [images] for {FILES}")
    found = unpack(tensor.content) if isinstance(tensor.content, bytes) else tensor.content
    _check_count(tensor, len(found))
    return found


def _check_count(tensor: InputTensor, count: int) -> None:
    expected = math.prod(tensor.shape)
    if count != expected:
        raise BadRequest(
            f"input {tensor.name!r} got {count} elements, expecting {expected} for the shape {list(tensor.shape)}"
        )


def _check_names(kind: str, names: Sequence[str], known: str) -> None:
    for name in names:
        if name != known:
            raise BadRequest(f"unexpected {kind} {name[:_LONGEST_NAME]!r}; the model has the {kind} {known!r}")
    if len(names) > 1:
        raise BadRequest(f"{kind} {known!r} already exists in request")


def read_outputs(outputs: Sequence[tuple[str, Mapping[str, object]]]) -> int | None:
    """How many classes the one output has that is asked for by its name and parameters; None: its probabilities.

    Without any output it is those. Raises BadRequest.
    """
    _check_names("output", [name for name, _ in outputs], PROBABILITIES)
    parameters = outputs[0][1] if outputs else {}
    if "shared_memory_region" in parameters:
        raise BadRequest("this server has no shared memory; send the request without shared_memory_region")
    return _whole(parameters, "classification", 1)


def read_timeout(parameters: Mapping[str, object]) -> float:
    """The timeout in seconds: the parameter has microseconds, and 0 is none, as without it. Raises BadRequest.

    A priority is accepted, and has no effect: every request has the same.
    """
    _whole(parameters, "priority", 0)
    timeout_us = _whole(parameters, "timeout", 0)
    return timeout_us / 1e6 if timeout_us else math.inf


def _whole(parameters: Mapping[str, object], name: str, least: int) -> int | None:
    value = parameters.get(name)
    if value is not None and not (type(value) is int and least <= value < 1 << 64):
        raise BadRequest(f"{name} is {str(value)[:_LONGEST_NAME]}; send a whole number of {least} or more")
    return value


def read_version(text: str) -> int | None:
    """The version in a request; empty leaves it to the server. Raises BadRequest."""
    if not text:
        return None
    if not (text.isdecimal() and text.isascii() and len(text) < 19):
        raise BadRequest(f"the model version is {text[:_LONGEST_NAME]!r}; send a number, such as 1")
    return int(text)


def output_tensor(inference: Inference, classes: int | None) -> OutputTensor:
    """The output; of so many `classes` of each image `probability:index:label`, best first.

    Of classes that are equally probable the lower index comes first.
    """
    if classes is None:
        return OutputTensor(inference.probabilities, None)
    labels = inference.labels
    rows = [top_k(row, labels, min(classes, len(labels))) for row in inference.probabilities]
    strings = [[f"{one.probability:.6f}:{one.class_id}:{one.label}" for one in row] for row in rows]
    return OutputTensor(inference.probabilities, strings)


def pack(elements: Iterable[bytes]) -> bytes:
    """The binary form of a tensor of BYTES."""
    return b"".join(part for one in elements for part in (struct.pack("<I", len(one)), one))


def check_file_count(count: int) -> None:
    """Raise BadRequest for more image files than one request may have."""
    if count > _MOST_FILES:
        raise BadRequest(f"the request has more than {_MOST_FILES:,} image files; send fewer")


def from_base64(text: str) -> bytes:
    """The bytes in base64, decoded in pieces, between which other threads run. Raises ValueError."""
    pieces = (text[at : at + _BASE64_PIECE] for at in range(0, len(text), _BASE64_PIECE))
    return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)


async def exported(data_plane: DataPlane, name: str, version: int | None) -> ModelDetail:
    """What is known of that version of an exported model. Raises ModelNotFound and NotReady."""
    detail = await data_plane.model(name, version)
    if detail.version is None:
        raise ModelNotFound(f"Request for unknown model: {detail.name!r} is not exported")
    return detail


def unpack(content: bytes) -> list[bytes]:
    """The elements in the binary form of a tensor of BYTES. Raises BadRequest."""
    found: list[bytes] = []
    at = 0
    while at < len(content):
        check_file_count(len(found) + 1)
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        if at + 4 > len(content) or end > len(content):
            raise BadRequest(f"the tensor ends within element {len(found)}; the length of each precedes it in 4 bytes")
        found.append(content[at + 4 : end])
        at = end
    return found


def server_metadata(data_plane: DataPlane) -> dict[str, Any]:
    """The name and version of the server, and the extensions that it has."""
    return {
        "name": "topfive",
        "version": version("topfive"),
        "extensions": sorted((*_EXTENSIONS, *data_plane.extensions)),
    }


def model_metadata(detail: ModelDetail) -> dict[str, Any]:
    """The tensors of a model, and in `properties` what is known of it."""
    facts = {
        "family": detail.family,
        "parameters": detail.parameters,
        "macs": detail.macs,
        "weights": detail.weights,
        "acc1": detail.acc1,
        "acc5": detail.acc5,
        "acc_dataset": detail.acc_dataset,
        "preprocessing": f"RGB, resize {detail.input.resize} {detail.input.interpolation}, crop {detail.input.crop}",
    }
    size = detail.input.crop
    return {
        "name": detail.name,
        "versions": [str(one) for one in detail.versions],
        "platform": _platform(detail),
        "inputs": [{"name": IMAGE, "datatype": PIXELS, "shape": [-1, size, size, 3]}],
        "outputs": [{"name": PROBABILITIES, "datatype": FLOATS, "shape": [-1, detail.classes]}],
        "properties": {name: str(value) for name, value in facts.items() if value is not None},
    }


def model_config(detail: ModelDetail) -> dict[str, Any]:
    """What Triton's clients read of the configuration of a model. Dimensions are without that of the batch."""
    size, layout = detail.input.crop, detail.layout
    largest = layout.max_batch if layout else _LARGEST_BATCH
    _, _, gpu = (detail.engine.device if detail.engine else "").partition(":")
    return {
        "name": detail.name,
        "platform": _platform(detail),
        "backend": detail.engine.runtime if detail.engine else "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": largest,
        "input": [
            {"name": IMAGE, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [size, size, 3]},
        ],
        "output": [
            {
                "name": PROBABILITIES,
                "data_type": "TYPE_FP32",
                "dims": [detail.classes],
                "label_filename": "labels.csv",
            }
        ],
        "instance_group": [
            {
                "name": f"{detail.name}_0",
                "kind": "KIND_GPU" if gpu else "KIND_CPU",
                "count": layout.slots if layout else 1,
                "gpus": [int(gpu)] if gpu else [],
            }
        ],
        "dynamic_batching": {"preferred_batch_size": [largest], "max_queue_delay_microseconds": 0},
    }


def _platform(detail: ModelDetail) -> str:
    runtime = detail.engine.runtime if detail.engine else "onnx"
    return "tensorrt_plan" if runtime.startswith("tensorrt") else f"{runtime}_onnx"


def repository_index(known: Sequence[ModelVersion], ready: bool) -> list[dict[str, str]]:
    """The versions of the models with their states; with `ready` only those that are ready."""
    return [
        {
            "name": one.name,
            "version": str(one.version),
            "state": _STATES.get(one.state, "UNAVAILABLE"),
            "reason": one.reason,
        }
        for one in known
        if one.state is ModelState.READY or not ready
    ]


def read_version_policy(parameters: Mapping[str, object]) -> int | None:
    """The version that a load asks for in its model configuration; None is the newest. Raises BadRequest."""
    if others := parameters.keys() - {"config"}:
        raise BadRequest(f"the parameter {min(others)[:_LONGEST_NAME]!r} of a load is not taken; there is config")
    if "config" not in parameters:
        return None
    config = str(parameters["config"])
    try:
        if len(config) > _LONGEST_CONFIG:
            raise ValueError
        (number,) = json.loads(config)["version_policy"]["specific"]["versions"]
        return read_version(str(number))
    except (BadRequest, KeyError, RecursionError, TypeError, ValueError):
        raise BadRequest(f"a load reads the version of its config alone, such as {_CONFIG}") from None
