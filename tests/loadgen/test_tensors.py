"""Requests of the Open Inference Protocol: what a server of it reads of each form."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from loadgen.connection import LoadTestError
from loadgen.grpc_connection import infer_message
from loadgen.http_connection import HttpAddress
from loadgen.images import EncodedImage
from loadgen.tensors import Tensor, bare_request, binary_request, infer_address, json_request
from proto.inference.grpc_service_pb2 import ModelInferRequest

ADDRESS = infer_address("http://server:8000/", "net")
PHOTO = Tensor.of_image(EncodedImage(b"photo"))
RANDOM = Tensor.parse("input:FP32:1,2,3")


def parts(request: bytes) -> tuple[str, bytes, dict[str, Any], bytes]:
    """The request line, the size of the JSON, the JSON and what follows it."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    fields = dict(header.split(": ") for header in headers)
    size = int(fields.get("Inference-Header-Content-Length", len(body)))
    assert int(fields["Content-Length"]) == len(body)
    return line, b"" if size == len(body) else b"%d" % size, json.loads(body[:size] or "{}"), body[size:]


def test_image() -> None:
    """An image file is in base64, behind its length, or the whole body."""
    line = "POST /v2/models/net/infer HTTP/1.1"
    described = {"name": "image", "datatype": "BYTES", "shape": [1, 1]}
    text = {**described, "data": [base64.b64encode(b"photo").decode()]}
    binary = {**described, "parameters": {"binary_data_size": 9}}

    assert parts(json_request(ADDRESS, PHOTO))[::2] == (line, {"inputs": [text]})
    _, _, head, content = parts(binary_request(ADDRESS, PHOTO))
    assert (head, content) == ({"inputs": [binary]}, b"\5\0\0\0photo")
    assert parts(bare_request(ADDRESS, PHOTO)) == (line, b"0", {}, b"photo")
    message = ModelInferRequest.FromString(infer_message(PHOTO, "net"))
    assert (message.model_name, list(message.raw_input_contents)) == ("net", [b"\5\0\0\0photo"])


def test_random_values() -> None:
    """A tensor has its datatype and shape, and the same values in every form."""
    values = np.frombuffer(RANDOM.content, "<f4")
    _, _, text, _ = parts(json_request(ADDRESS, RANDOM))
    _, _, head, content = parts(binary_request(ADDRESS, RANDOM))
    message = ModelInferRequest.FromString(infer_message(RANDOM, "net"))

    assert (len(values), len(set(values))) == (6, 6)
    assert text["inputs"][0]["data"] == values.tolist()
    assert head["inputs"][0] == {
        "name": "input",
        "datatype": "FP32",
        "shape": [1, 2, 3],
        "parameters": {"binary_data_size": 24},
    }
    assert content == RANDOM.content == message.raw_input_contents[0]
    assert (message.inputs[0].datatype, list(message.inputs[0].shape)) == ("FP32", [1, 2, 3])


@pytest.mark.parametrize("text", ["", "a:FP32", "a:STRING:1", "a:FP32:x", "a:FP32:-1", "a:FP32:1:2"])
def test_no_tensor(text: str) -> None:
    """What is no tensor is named, with an example."""
    with pytest.raises(LoadTestError, match="such as image:UINT8:1,224,224,3"):
        Tensor.parse(text)


def test_no_model() -> None:
    """The protocol needs the name of a model."""
    with pytest.raises(LoadTestError, match="--model"):
        infer_address("server:8000", "")
    assert infer_address("server", "a/b").path == "/v2/models/a%2Fb/infer"
    assert isinstance(ADDRESS, HttpAddress)
