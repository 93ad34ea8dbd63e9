"""The load generator and the Open Inference Protocol over HTTP: what it asks, sends and makes of the replies."""

import base64
import io
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loadgen.connection import LoadError
from loadgen.images import Photo, read
from loadgen.requests import Api, Encoding, Form
from loadgen.target import HttpTarget, http_target
from loadgen.tensors import Datatype, Input, tensor_of
from tests.conftest import png
from tests.load_server import Asked, Say, reply, scripted

GREY = Photo("grey.png", png((10, 20, 30), (80, 60)), (80, 60), "image/png")


class Server:
    """A server of one model over HTTP, which counts what it spent."""

    def __init__(self, datatype: str, shape: list[int], extensions: list[str]) -> None:
        self.datatype = datatype
        self.shape = shape
        self.extensions = extensions
        self.inferred: list[Asked] = []

    def __call__(self, _number: int, asked: Asked) -> Say:
        """The script."""
        if asked.path == "/v2":
            return reply(json.dumps({"name": "x", "version": "1", "extensions": self.extensions}).encode())
        if asked.path == "/v2/models/net":
            tensor = {"name": "image", "datatype": self.datatype, "shape": self.shape}
            return reply(json.dumps({"name": "net", "platform": "p", "inputs": [tensor], "outputs": []}).encode())
        if asked.path == "/v2/models/net/stats":
            return reply(json.dumps({"model_stats": [{"inference_stats": self.statistics()}]}).encode())
        if asked.path == "/v2/models/net/infer":
            self.inferred.append(asked)
            output = {"name": "scores", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}
            return reply(json.dumps({"model_name": "net", "outputs": [output]}).encode())
        return reply(b'{"error": "Request for unknown model"}', "404 Not Found")

    def statistics(self) -> dict[str, Any]:
        """3 ms in the queue, 1 for each other step, 7 in all, for each request."""
        count = len(self.inferred)
        steps = {"queue": 3, "compute_input": 1, "compute_infer": 1, "compute_output": 1, "success": 7}
        return {name: {"count": count, "ns": ms * 1_000_000 * count} for name, ms in steps.items()}


async def inferred(server: Server, form: Form, photo: Photo = GREY) -> tuple[dict[str, Any], bytes, list[str]]:
    """What the server got as the first inference: the JSON and what follows it; and what was said of the reply."""
    async with scripted(server) as running:
        target = await http_target([running.url], form, [photo])
        said = await target.check()
    asked = server.inferred[0]
    size = int(asked.headers.get("inference-header-content-length", len(asked.body)))
    return json.loads(asked.body[:size]), asked.body[size:], said


@pytest.mark.parametrize("shape", [[-1], [-1, 1], [1]])
@pytest.mark.anyio
async def test_file_in_binary(shape: list[int]) -> None:
    """BYTES gets the file as it is, with its length before it, where the server has the binary extension."""
    heading, raw, said = await inferred(Server("BYTES", shape, ["binary_tensor_data"]), Form(Api.V2, "net"))

    assert raw == struct.pack("<I", len(GREY.data)) + GREY.data
    assert heading["inputs"] == [
        {
            "name": "image",
            "shape": [1] * len(shape),
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(GREY.data) + 4},
        }
    ]
    assert said[0].endswith("net: scores FP32 [1, 1]")


@pytest.mark.anyio
async def test_file_in_json() -> None:
    """Without the extension the file goes as base64 in JSON, and says so."""
    heading, raw, _ = await inferred(Server("BYTES", [-1, 1], []), Form(Api.V2, "net"))

    (tensor,) = heading["inputs"]
    assert raw == b""
    assert tensor["parameters"] == {"content_type": "base64"}
    assert base64.b64decode(tensor["data"][0]) == GREY.data


@pytest.mark.parametrize("encoding", [Encoding.BINARY, Encoding.JSON])
@pytest.mark.anyio
async def test_tensor_encodings(encoding: Encoding) -> None:
    """The same pixels arrive in either encoding, which the option sets whatever the server says."""
    heading, raw, _ = await inferred(Server("UINT8", [-1, 4, 6, 3], []), Form(Api.V2, "net", encoding=encoding))

    (tensor,) = heading["inputs"]
    values = np.array(tensor["data"], np.uint8) if encoding is Encoding.JSON else np.frombuffer(raw, np.uint8)
    assert tensor["shape"] == [1, 4, 6, 3]
    assert values.reshape(-1, 3).tolist() == [[10, 20, 30]] * 24


@pytest.mark.parametrize(
    ("shape", "of_one"),
    [((-1, 3, 8, 4), (1, 3, 8, 4)), ((3, 8, 4), (3, 8, 4)), ((-1, 3, -1, -1), (1, 3, 224, 224))],
)
def test_planes(shape: tuple[int, ...], of_one: tuple[int, ...]) -> None:
    """Channels that come first are sent as planes; FP32 is normalised by ImageNet's mean and deviation."""
    tensor = tensor_of(GREY, Input("image", Datatype.FP32, shape))

    planes = np.frombuffer(tensor.data, "<f4").reshape(of_one)
    expected = (np.array([10, 20, 30]) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert tensor.shape == of_one
    assert planes.reshape(3, -1)[:, 0] == pytest.approx(expected, abs=1e-6)
    assert float(np.ptp(planes.reshape(3, -1), axis=1).max()) == 0


def test_the_middle_is_kept() -> None:
    """A tensor shows the middle of the photo, undistorted: a disc in its centre keeps its shape and place."""
    down, across = np.mgrid[0:300, 0:600]
    disc = ((down - 149.5) ** 2 + (across - 299.5) ** 2 < 100**2).astype(np.uint8) * 255
    file = io.BytesIO()
    Image.fromarray(disc).save(file, "PNG")

    tensor = tensor_of(
        Photo("disc.png", file.getvalue(), (600, 300), "image/png"), Input("image", Datatype.UINT8, (64, 64, 1))
    )

    seen = np.frombuffer(tensor.data, np.uint8).reshape(64, 64) > 127
    radius = 100 * 64 * (256 / 224) / 300
    assert seen.sum() == pytest.approx(np.pi * radius**2, rel=0.05)
    assert [float(np.mean(places)) for places in np.nonzero(seen)] == pytest.approx([31.5, 31.5], abs=0.6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tensor_of(GREY, Input("image", Datatype.FP32, (-1, 10))), "is no image"),
        (
            lambda: tensor_of(Photo("a.txt", b"text", None, ""), Input("x", Datatype.UINT8, (3, 8, 8))),
            "a.txt is no image",
        ),
    ],
)
def test_no_tensor(make: Callable[[], object], said: str) -> None:
    """What cannot be made into the model's input is refused by name."""
    with pytest.raises(LoadError, match=said):
        make()


@pytest.mark.parametrize(
    ("datatype", "model", "said"),
    [("INT64", "net", "takes INT64.*--datatype"), ("BYTES", "other", "answers 404.*unknown model")],
)
@pytest.mark.anyio
async def test_no_such_model(datatype: str, model: str, said: str) -> None:
    """A model that is not there, or takes no image, is said before anything is measured."""
    async with scripted(Server(datatype, [1], [])) as running:
        with pytest.raises(LoadError, match=said):
            await http_target([running.url], Form(Api.V2, model), read([]))


@pytest.mark.anyio
async def test_what_the_server_spent() -> None:
    """The means of the server's steps between two moments come from its statistics; two servers count together."""
    one, other = Server("BYTES", [1], []), Server("BYTES", [1], [])
    async with scripted(one) as first, scripted(other) as second:
        target: HttpTarget = await http_target([first.url, second.url], Form(Api.V2, "net"), [GREY])
        before = await target.spent()
        await target.check()
        after = await target.spent()

    assert before is not None
    assert after is not None
    assert (before.requests, after.requests) == (0, 2)
    server = after.since(before)
    assert server is not None
    assert (server.queue, server.input, server.inference, server.output, server.total) == (3, 1, 1, 1, 7)
    assert before.since(before) is None
