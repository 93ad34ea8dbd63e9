"""Requests of the Open Inference Protocol over HTTP: an image file, or a tensor of random values."""

import base64
import json
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from loadgen.connection import LoadTestError
from loadgen.http_connection import HttpAddress, http_request
from loadgen.images import EncodedImage

_FILE = "BYTES"
_TYPES = {"UINT8": "u1", "INT8": "i1", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
_JSON_SIZE = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Tensor:
    """The input of a request. `content` is its binary form; of an image file, the file without its length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes

    @classmethod
    def of_image(cls, image: EncodedImage) -> "Tensor":
        """The file as the only element of the input `image`."""
        return cls("image", _FILE, (1, 1), image.data)

    @classmethod
    def parse(cls, text: str) -> "Tensor":
        """Read `NAME:DATATYPE:SHAPE`, and take random values. Raises LoadTestError."""
        try:
            name, datatype, lengths = text.split(":")
            shape = tuple(map(int, lengths.split(",")))
            values = np.random.default_rng(0).random(shape) * (1 if datatype.startswith("FP") else 127)
            return cls(name, datatype, shape, values.astype(_TYPES[datatype]).tobytes())
        except (KeyError, ValueError, MemoryError) as error:
            raise LoadTestError(
                f"{text!r} is no tensor; give NAME:DATATYPE:SHAPE, such as image:UINT8:1,224,224,3, with a datatype of "
                + ", ".join(_TYPES)
            ) from error

    @property
    def raw(self) -> bytes:
        """The binary form, of an image file with its length."""
        return len(self.content).to_bytes(4, "little") + self.content if self.datatype == _FILE else self.content

    def described(self, **fields: object) -> dict[str, object]:
        """The tensor in JSON, without its values."""
        return {"name": self.name, "datatype": self.datatype, "shape": self.shape, **fields}


def infer_address(url: str, model: str) -> HttpAddress:
    """Where inference requests for a model of that server go. Raises LoadTestError."""
    if not model:
        raise LoadTestError("the protocol has no default model; name it by --model")
    return HttpAddress.parse(f"{url.rstrip('/')}/v2/models/{quote(model, safe=':+')}/infer")


def json_request(address: HttpAddress, tensor: Tensor) -> bytes:
    """A request whose values are in JSON; an image file is in base64."""
    if tensor.datatype == _FILE:
        data = [base64.b64encode(tensor.content).decode()]
    else:
        data = np.frombuffer(tensor.content, _TYPES[tensor.datatype]).tolist()
    body = json.dumps({"inputs": [tensor.described(data=data)]}).encode()
    return http_request(address, body, "application/json")


def binary_request(address: HttpAddress, tensor: Tensor) -> bytes:
    """A request whose values follow the JSON."""
    size = {"binary_data_size": len(tensor.raw)}
    head = json.dumps({"inputs": [tensor.described(parameters=size)]}).encode()
    return http_request(address, head + tensor.raw, "application/octet-stream", f"{_JSON_SIZE}: {len(head)}")


def bare_request(address: HttpAddress, tensor: Tensor) -> bytes:
    """A request whose body is the tensor alone."""
    return http_request(address, tensor.content, "application/octet-stream", f"{_JSON_SIZE}: 0")
