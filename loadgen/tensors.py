"""What a model of the Open Inference Protocol takes, and an image as that: the file itself, or a tensor."""

import base64
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadgen.connection import LoadError
from loadgen.images import Photo

_SIDE = 224  # where the model takes any
_SHORTER = 256 / 224
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)  # of ImageNet, as torchvision's weights have it
_STD = np.array((0.229, 0.224, 0.225), np.float32)


class Datatype(StrEnum):
    """The tensors that an image can be sent as; BYTES is the file as it is."""

    BYTES = "BYTES"
    UINT8 = "UINT8"
    FP32 = "FP32"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input: its name, and its shape for one image. `data` is little-endian, row by row."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes

    @property
    def raw(self) -> bytes:
        """As the binary form has it: an element of BYTES with its length before it."""
        return struct.pack("<I", len(self.data)) + self.data if self.datatype is Datatype.BYTES else self.data

    @property
    def listed(self) -> list[Any]:
        """As JSON has it: numbers, or the file in base64."""
        if self.datatype is Datatype.BYTES:
            return [base64.b64encode(self.data).decode()]
        values = np.frombuffer(self.data, "<f4" if self.datatype is Datatype.FP32 else np.uint8)
        return [round(float(value), 6) for value in values] if self.datatype is Datatype.FP32 else values.tolist()


@dataclass(frozen=True, slots=True)
class Input:
    """The one input of a model as its metadata tells it; -1 in the shape is any."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


def only_input(model: str, inputs: Sequence[tuple[str, str, Sequence[int]]], asked: Datatype | None) -> Input:
    """The model's input from names, datatypes and shapes, with the datatype that was `asked` for if any.

    Raises LoadError of a model that does not take one image.
    """
    if len(inputs) != 1:
        names = ", ".join(name for name, _, _ in inputs) or "none"
        raise LoadError(f"{model} has {len(inputs)} inputs ({names}); only a model with one can be measured")
    name, datatype, shape = inputs[0]
    try:
        return Input(name, asked or Datatype(datatype), tuple(shape))
    except ValueError:
        raise LoadError(
            f"{model} takes {datatype}, which an image cannot be sent as; of {', '.join(Datatype)} try one: --datatype"
        ) from None


def tensor_of(photo: Photo, wanted: Input) -> Tensor:
    """The image for that input: resized and cropped to its size, and for FP32 normalised as ImageNet's networks ask.

    Raises LoadError where the input is no image, or the file is none.
    """
    if wanted.datatype is Datatype.BYTES:
        rank = len(wanted.shape) if len(wanted.shape) in (1, 2) else 1  # a shape of pixels is not that of files
        return Tensor(wanted.name, wanted.datatype, (1,) * rank, photo.data)
    height, width, channels, first = _layout(wanted)
    pixels = _pixels(photo, height, width, channels)
    values: NDArray[Any] = pixels
    if wanted.datatype is Datatype.FP32:
        scaled = pixels.astype(np.float32) / 255
        values = (scaled - _MEAN) / _STD if channels == 3 else (scaled - _MEAN.mean()) / _STD.mean()
        values = values.astype("<f4")
    if first:
        values = values.transpose(2, 0, 1)
    batch = (1,) * (len(wanted.shape) - 3)
    return Tensor(wanted.name, wanted.datatype, (*batch, *values.shape), np.ascontiguousarray(values).tobytes())


def _layout(wanted: Input) -> tuple[int, int, int, bool]:
    """Height, width, channels, and whether the channels come first. Raises LoadError."""
    one = wanted.shape[-3:]
    batched = len(wanted.shape) == 4 and wanted.shape[0] in (-1, 1)
    if len(wanted.shape) == 3 or batched:
        for place, sides in ((0, one[1:]), (2, one[:2])):
            if one[place] in (1, 3) and all(side == -1 or side > 3 for side in sides):
                height, width = (_SIDE if side == -1 else side for side in sides)
                return height, width, one[place], place == 0
    raise LoadError(
        f"the input {wanted.name} has the shape {list(wanted.shape)}, which is no image; it would be such as "
        "[-1, 3, 224, 224] or [-1, 224, 224, 3]"
    )


def _pixels(photo: Photo, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """The middle of the image at about 7/8 of its shorter side, [height, width, channels]."""
    try:
        with Image.open(io.BytesIO(photo.data)) as image:
            picture = image.convert("L" if channels == 1 else "RGB")
    except OSError as error:
        raise LoadError(f"{photo.name} is no image that can be read, so it cannot be sent as a tensor") from error
    scale = max(width * _SHORTER / picture.width, height * _SHORTER / picture.height)
    size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    resized = picture.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    return np.asarray(resized, np.uint8).reshape(height, width, channels)
