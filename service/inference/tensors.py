"""The tensors of the Open Inference Protocol: reads the images in a request, and makes the output of a response."""

import base64
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from service.common.errors import BadRequest
from service.common.types import Probabilities
from service.inference.dataplane import Images, Inference
from service.inference.topk import top_k

IMAGE, PROBABILITIES = "image", "probabilities"
PIXELS, FILES, FLOATS = "UINT8", "BYTES", "FP32"
"""The datatypes: of resized and cropped images, of image files and of strings, and of probabilities."""

_MOST_FILES = 4096  # in a request: the event loop copies each before any is refused for capacity
_LONGEST_NAME = 60  # of a client's own name in an error message
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
    content: bytes | memoryview | Sequence[bytes]


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
    assert isinstance(tensor.content, bytes | memoryview), "only BYTES come as elements"
    return np.frombuffer(tensor.content, np.uint8).reshape(tensor.shape)


def _elements(tensor: InputTensor) -> Sequence[bytes]:
    """The elements of a tensor of BYTES, [N] or [N, 1]."""
    if not tensor.shape or tuple(tensor.shape[1:]) not in ((), (1,)):
        raise BadRequest(f"the shape of input {IMAGE!r} is {list(tensor.shape)}; send [images] for {FILES}")
    found = unpack(tensor.content) if isinstance(tensor.content, bytes | memoryview) else tensor.content
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


def unpack(content: bytes | memoryview) -> list[bytes]:
    """The elements in the binary form of a tensor of BYTES. Raises BadRequest."""
    found: list[bytes] = []
    at = 0
    while at < len(content):
        check_file_count(len(found) + 1)
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        if at + 4 > len(content) or end > len(content):
            raise BadRequest(f"the tensor ends within element {len(found)}; the length of each precedes it in 4 bytes")
        found.append(bytes(content[at + 4 : end]))
        at = end
    return found
