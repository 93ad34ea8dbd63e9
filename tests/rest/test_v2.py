"""The Open Inference Protocol over REST: every endpoint, every form of a tensor, and every error in its shape."""

import base64
import gc
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import png
from tests.fakes import FakeEngine, Opener
from tests.fleet import copy_version
from tests.serving import Running, busy, serving

pytestmark = pytest.mark.anyio

INFER = "/v2/models/tiny/infer"
JSON_SIZE = "Inference-Header-Content-Length"
PIXELS = {"name": "image", "datatype": "UINT8"}
ONE_SHADE = {**PIXELS, "shape": [1, 32, 32, 3], "data": [9] * 3072}
GOOD = {"inputs": [ONE_SHADE]}
TWO = np.stack([np.full((32, 32, 3), 9, np.uint8), np.full((32, 32, 3), 4, np.uint8)])


def packed(*elements: bytes) -> bytes:
    """The binary form of BYTES."""
    return b"".join(struct.pack("<I", len(one)) + one for one in elements)


async def binary(running: Running, head: dict[str, Any], *blocks: bytes, size: str | None = None) -> httpx.Response:
    """The response to a request whose tensors follow its JSON."""
    text = json.dumps(head).encode()
    return await running.http.post(INFER, content=text + b"".join(blocks), headers={JSON_SIZE: size or str(len(text))})


def best(output: dict[str, Any]) -> list[int]:
    """The best class of each image, of probabilities in JSON."""
    found: list[int] = np.reshape(output["data"], output["shape"]).argmax(axis=1).tolist()
    return found


async def good(running: Running) -> bool:
    """Whether a good request is answered right."""
    response = await running.http.post(INFER, json=GOOD)
    return response.status_code == 200 and best(response.json()["outputs"][0]) == [9]


async def test_server(running: Running) -> None:
    """The server has a name, a version, the extensions that are there, and is alive and ready."""
    about, live, ready = [
        (await running.http.get(path)).json() for path in ("/v2", "/v2/health/live", "/v2/health/ready")
    ]
    assert (about["name"], about["version"]) == ("topfive", "0.1.0")
    assert about["extensions"] == [
        *("binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters"),
        *("schedule_policy", "statistics"),
    ]
    assert (live, ready) == ({"live": True}, {"ready": True})


async def test_not_ready(exported: Path) -> None:
    """Before its models are loaded the server is alive and not ready, and says so by status and body."""
    async with serving(exported, FakeEngine(), load=False) as running:
        ready = await running.http.get("/v2/health/ready")
        model = await running.http.get("/v2/models/tiny/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False})
        assert (model.status_code, model.json()) == (503, {"error": "tiny is not ready, but exported"})
        assert (await running.http.get("/v2/health/live")).status_code == 200


@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_model(running: Running, version: str) -> None:
    """Metadata and configuration describe the same tensors: with the batch, and without it."""
    base = f"/v2/models/tiny{version}"
    metadata, config, ready = [(await running.http.get(base + path)).json() for path in ("", "/config", "/ready")]
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    assert metadata["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 1000]}]
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("tiny", ["1"], "fake_onnx")
    assert all(isinstance(value, str) for value in metadata["properties"].values())
    assert (config["name"], config["max_batch_size"] > 0) == ("tiny", True)
    assert (config["input"][0]["format"], config["input"][0]["dims"]) == ("FORMAT_NHWC", [32, 32, 3])
    assert (config["output"][0]["dims"], config["instance_group"][0]["kind"]) == ([1000], "KIND_CPU")
    assert ready == {"name": "tiny", "ready": True}


async def test_index(running: Running) -> None:
    """The index has the exported models with their states; with `ready` those alone that are."""
    tiny = {"name": "tiny", "version": "1", "state": "READY", "reason": ""}
    other = {"name": "squeezenet1_1", "version": "1", "state": "UNAVAILABLE", "reason": "not loaded"}
    for body, expected in ((None, [other, tiny]), ({}, [other, tiny]), ({"ready": True}, [tiny])):
        assert (await running.http.post("/v2/repository/index", json=body)).json() == expected
    assert "tiny" in (await running.http.get("/v2/models")).json()["models"]


def config(version: Any) -> dict[str, Any]:
    """The body of a load of that version."""
    return {"parameters": {"config": json.dumps({"version_policy": {"specific": {"versions": [version]}}})}}


async def test_load_and_unload(artifacts: Path) -> None:
    """With explicit control a version is loaded, replaced by another and unloaded; the index and answers follow."""
    copy_version(artifacts, 2)
    async with serving(artifacts, open_engine=Opener(), model_control="explicit") as running:

        async def states() -> dict[str, str]:
            index = (await running.http.post("/v2/repository/index")).json()
            return {one["version"]: one["state"] for one in index if one["name"] == "tiny"}

        async def version() -> object:
            reply = await running.http.post(INFER, json=GOOD)
            return reply.json().get("model_version", reply.status_code)

        base = "/v2/repository/models/tiny"
        assert (await version(), await states()) == ("2", {"1": "UNAVAILABLE", "2": "READY"})
        for body, expected in ((config(1), "1"), (config("2"), "2"), (None, "2")):
            loaded = await running.http.post(f"{base}/load", json=body)
            assert (loaded.status_code, loaded.content, await version()) == (200, b"", expected)
        others: list[Any] = [{"parameters": {"file:1/x": "eA=="}}, [], {"parameters": 1}]
        others += [config(float("inf")), config(1.5), config("1" + " " * 100_000)]
        for bad in (config(9), config("x"), config([1]), *others):
            refused = await running.http.post(f"{base}/load", json=bad)
            assert (refused.status_code, list(refused.json())) in ((400, ["error"]), (404, ["error"]))
        assert (
            await running.http.post(f"{base}/unload", json={"parameters": {"unload_dependents": True}})
        ).content == b""
        assert (await version(), set((await states()).values())) == (404, {"UNAVAILABLE"})
        assert (await running.http.post(f"{base}/unload")).status_code == 404
        assert (await running.http.get("/v2/models/tiny/ready")).status_code == 503


async def test_json(running: Running) -> None:
    """Tensors in JSON, flat and nested, and image files in base64, have the answers in their order."""
    files = [base64.b64encode(png(shade)).decode() for shade in (9, 4)]
    for tensor in (
        {**PIXELS, "shape": [2, 32, 32, 3], "data": TWO.ravel().tolist()},
        {**PIXELS, "shape": [2, 32, 32, 3], "data": TWO.tolist()},
        {"name": "image", "datatype": "BYTES", "shape": [2], "data": files},
        {"name": "image", "datatype": "BYTES", "shape": [2, 1], "data": [[one] for one in files]},
    ):
        reply = (await running.http.post(INFER, json={"id": "7", "inputs": [tensor]})).json()
        (output,) = reply.pop("outputs")
        assert reply == {"id": "7", "model_name": "tiny", "model_version": "1"}
        assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [2, 1000])
        assert best(output) == [9, 4]


@pytest.mark.parametrize("datatype", ["UINT8", "BYTES"])
async def test_binary(running: Running, datatype: str) -> None:
    """Tensors in binary have the same answers, in JSON or in binary as each output or the request asks."""
    block = TWO.tobytes() if datatype == "UINT8" else packed(png(9), png(4))
    shape = [2, 32, 32, 3] if datatype == "UINT8" else [2]
    tensor = {
        "name": "image",
        "datatype": datatype,
        "shape": shape,
        "parameters": {"binary_data_size": len(block)},
    }
    probabilities: dict[str, Any] = {"name": "probabilities"}
    for asked, in_binary in (
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{**probabilities, "parameters": {"binary_data": True}}]}, True),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{**probabilities, "parameters": {"binary_data": False}}],
            },
            False,
        ),
    ):
        response = await binary(running, {"inputs": [tensor], **asked}, block)
        assert (JSON_SIZE in response.headers) is in_binary
        if in_binary:
            size = int(response.headers[JSON_SIZE])
            (output,) = json.loads(response.content[:size])["outputs"]
            content = response.content[size:]
            assert output["parameters"] == {"binary_data_size": len(content)}
            assert response.headers["content-type"] == "application/octet-stream"
            found = np.frombuffer(content, "<f4").reshape(output["shape"]).argmax(axis=1).tolist()
        else:
            assert response.headers["content-type"] == "application/json"
            found = best(response.json()["outputs"][0])
        assert found == [9, 4]


async def test_raw(running: Running) -> None:
    """A body that is an image file is one, whatever its content type, and is answered in binary."""
    response = await running.http.post(INFER, content=png(9), headers={JSON_SIZE: "0"})
    size = int(response.headers[JSON_SIZE])
    (output,) = json.loads(response.content[:size])["outputs"]

    assert (output["shape"], output["parameters"]) == ([1, 1000], {"binary_data_size": 4000})
    assert np.frombuffer(response.content[size:], "<f4").argmax() == 9


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (3, 3), (1000, 1000), (5000, 1000)])
async def test_classification(running: Running, asked: int, given: int) -> None:
    """Any number of classes, best first and of equal ones the lower first, in JSON and in binary."""
    tensor = {**PIXELS, "shape": [2, 32, 32, 3], "data": TWO.ravel().tolist()}
    wanted: dict[str, Any] = {"name": "probabilities", "parameters": {"classification": asked}}
    reply = (await running.http.post(INFER, json={"inputs": [tensor], "outputs": [wanted]})).json()
    (output,) = reply["outputs"]
    wanted["parameters"]["binary_data"] = True
    response = await running.http.post(INFER, json={"inputs": [tensor], "outputs": [wanted]})
    size = int(response.headers[JSON_SIZE])
    indices = [int(one.split(":", 2)[1]) for one in output["data"]]

    assert (output["datatype"], output["shape"]) == ("BYTES", [2, given])
    assert output["data"][0] == "0.500000:9:ostrich"
    assert indices[:given] == [9, *(n for n in range(1000) if n != 9)][:given]
    assert indices[given:] == [4, *(n for n in range(1000) if n != 4)][:given]
    assert response.content[size:] == packed(*(one.encode() for one in output["data"]))


async def test_statistics(exported: Path) -> None:
    """Counters are those of the requests sent, whichever way they came, and every field is there."""
    async with serving(exported, FakeEngine()) as running:
        for _ in range(3):
            assert await good(running)
        await running.http.post("/predict", content=png(1), headers={"content-type": "image/png"})
        await running.http.post(INFER, json={"inputs": [{**PIXELS, "shape": [2, 32, 32, 3], "data": TWO.tolist()}]})
        paths = ("/v2/models/stats", "/v2/models/tiny/stats", "/v2/models/tiny/versions/1/stats")
        replies = [(await running.http.get(path)).json() for path in paths]
        (report,) = replies[0]["model_stats"]

        assert replies[0] == replies[1] == replies[2]
        assert (report["inference_count"], report["inference_stats"]["success"]["count"]) == (6, 5)
        assert sum(one["batch_size"] * one["compute_infer"]["count"] for one in report["batch_stats"]) == 6
        assert report["execution_count"] == sum(one["compute_infer"]["count"] for one in report["batch_stats"])
        assert sorted(report["inference_stats"]) == [
            *("cache_hit", "cache_miss", "compute_infer", "compute_input", "compute_output"),
            *("fail", "queue", "success"),
        ]
        assert report["response_stats"] == {}
        assert report["inference_stats"]["compute_infer"]["ns"] > 0


async def test_timeout(running: Running) -> None:
    """A request may shorten its time in microseconds; a priority is read and has no effect."""
    request = {**GOOD, "parameters": {"timeout": 1, "priority": 3}}
    late = await running.http.post(INFER, json=request)
    in_time = await running.http.post(INFER, json={**GOOD, "parameters": {"timeout": 30_000_000, "priority": 3}})

    assert (late.status_code, list(late.json())) == (504, ["error"])
    assert in_time.status_code == 200


BAD_JSON: Sequence[tuple[Any, int, str]] = [
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"[]", 400, "object"),
    (b"[" * 100_000, 400, "recursion"),
    (b'{"inputs":' + b'[{"data":' * 300, 400, ""),
    ({}, 400, "inputs"),
    ({"inputs": []}, 400, "inputs"),
    ({"inputs": [{}]}, 400, "name"),
    ({"inputs": [ONE_SHADE, ONE_SHADE]}, 400, "already exists in request"),
    ({"inputs": [ONE_SHADE, {**ONE_SHADE, "name": "other"}]}, 400, "unexpected input 'other'"),
    ({"inputs": [{**ONE_SHADE, "name": "other"}]}, 400, "unexpected input 'other'"),
    ({"inputs": [{**ONE_SHADE, "datatype": "FP32"}]}, 400, "data-type is 'FP32'"),
    ({"inputs": [{**ONE_SHADE, "datatype": "FP16", "data": [1.5]}]}, 400, "data-type is 'FP16'"),
    ({"inputs": [{**ONE_SHADE, "shape": [1, 32, 32, 4]}]}, 400, "got 3072 elements, expecting 4096"),
    ({"inputs": [{**ONE_SHADE, "shape": [-1, 32, 32, 3]}]}, 400, "lengths of 0 or more"),
    ({"inputs": [{**ONE_SHADE, "shape": [32, 32, 3]}]}, 400, "send [images, height, width, 3]"),
    ({"inputs": [{**ONE_SHADE, "shape": [3, 32, 32, 1]}]}, 400, "send [-1, 32, 32, 3]"),
    ({"inputs": [{**ONE_SHADE, "shape": [0, 32, 32, 3], "data": []}]}, 400, "no image"),
    ({"inputs": [{**ONE_SHADE, "shape": [1 << 40, 1 << 40, 32, 3]}]}, 400, "got 3072 elements"),
    ({"inputs": [{**ONE_SHADE, "data": [9] * 3071}]}, 400, "got 3071 elements"),
    ({"inputs": [{**ONE_SHADE, "data": [256] * 3072}]}, 400, "does not fit UINT8"),
    ({"inputs": [{**ONE_SHADE, "data": [-1] * 3072}]}, 400, "does not fit UINT8"),
    ({"inputs": [{**ONE_SHADE, "data": [10**30] * 3072}]}, 400, "does not fit UINT8"),
    ({"inputs": [{**ONE_SHADE, "data": [1.5] * 3072}]}, 400, "does not fit UINT8"),
    ({"inputs": [{**ONE_SHADE, "data": [float("nan")] * 3072}]}, 400, "does not fit UINT8"),
    ({"inputs": [{**ONE_SHADE, "data": [float("inf")] * 3072}]}, 400, "does not fit UINT8"),
    ({"inputs": [{**ONE_SHADE, "data": [True] * 3072}]}, 400, "does not fit UINT8"),
    ({"inputs": [{**ONE_SHADE, "data": [[9], 9]}]}, 400, "does not fit UINT8"),
    ({"inputs": [{**ONE_SHADE, "data": {"0": 9}}]}, 400, "does not fit UINT8"),
    ({"inputs": [{**ONE_SHADE, "data": "abc"}]}, 400, "does not fit UINT8"),
    ({"inputs": [{**PIXELS, "datatype": "BYTES", "shape": [1], "data": ["no base64!"]}]}, 400, "base64"),
    ({"inputs": [{**PIXELS, "datatype": "BYTES", "shape": [1, 2], "data": ["", ""]}]}, 400, "send [images]"),
    ({"inputs": [{**PIXELS, "datatype": "BYTES", "shape": [2], "data": ["aaaa"]}]}, 400, "got 1 elements"),
    ({"inputs": [{**PIXELS, "datatype": "BYTES", "shape": [1], "data": ["aaaa"]}]}, 422, "image"),
    ({"inputs": [{**PIXELS, "shape": [1, 32, 32, 3]}]}, 400, "only one of"),
    ({"inputs": [{**ONE_SHADE, "parameters": {"binary_data_size": 3072}}]}, 400, "only one of"),
    ({"inputs": [{**PIXELS, "shape": [1], "parameters": {"shared_memory_region": "x"}}]}, 400, "only one of"),
    ({**GOOD, "outputs": [{"name": "other"}]}, 400, "unexpected output 'other'"),
    ({**GOOD, "outputs": [{"name": "probabilities"}] * 2}, 400, "already exists in request"),
    ({**GOOD, "outputs": [{"name": "probabilities", "parameters": {"classification": 0}}]}, 400, "classification is 0"),
    ({**GOOD, "outputs": [{"name": "probabilities", "parameters": {"classification": "5"}}]}, 400, "classification"),
    ({**GOOD, "outputs": [{"name": "probabilities", "parameters": {"classification": True}}]}, 400, "classification"),
    ({**GOOD, "outputs": [{"name": "probabilities", "parameters": {"shared_memory_region": "x"}}]}, 400, "shared"),
    ({**GOOD, "parameters": {"timeout": -1}}, 400, "timeout is -1"),
    ({**GOOD, "parameters": {"timeout": "soon"}}, 400, "timeout is soon"),
    ({**GOOD, "parameters": {"priority": 1.5}}, 400, "priority is 1.5"),
    ({**GOOD, "parameters": {"nested": {}}}, 400, "parameters"),
    ({**GOOD, "parameters": {"timeout": 10**400}}, 400, "timeout is 1000"),
    ({"inputs": [{**ONE_SHADE, "shape": [10**4000, 10**4000, 1, 1]}]}, 400, "less than"),
    ({"inputs": [{**ONE_SHADE, "shape": [1] * 9}]}, 400, "at most 8 items"),
    ({"inputs": [{**ONE_SHADE, "shape": ["a"] * 500_000}]}, 400, "valid integer"),
    (b'{"inputs":[' + b"0," * 500_000 + b"0]}", 400, "at most 16 items"),
    ({**GOOD, "outputs": [{"name": "probabilities"}] * 1_000}, 400, "at most 16 items"),
    ({**GOOD, "parameters": {"x" * 100_000 + str(n): None for n in range(9)}}, 400, "send strings, numbers"),
    ({"inputs": [{**PIXELS, "datatype": "BYTES", "shape": [4097], "data": [""] * 4097}]}, 400, "4,096 image files"),
    ({"inputs": [{**PIXELS, "shape": [1], "parameters": {"binary_data_size": "9" * 100_000}}]}, 400, "is 9999"),
    ({"inputs": [{**ONE_SHADE, "data": [[]] * 200_000}]}, 413, "in binary"),
    ({"inputs": [{**ONE_SHADE, "data": [1] * 1_000_001}]}, 413, "in binary"),
    ({"inputs": [{"name": "image", "datatype": "", "shape": []}] * 200_000}, 413, "in binary"),
    (b"[" * 200_001, 413, "200,001 lists of at most 200,000"),
    (bytes(12_000_000), 413, "takes at most"),
]


@pytest.mark.parametrize("number", range(len(BAD_JSON)))
async def test_bad_requests(running: Running, number: int) -> None:
    """Each bad request has its status and the protocol's body; the next good one is answered."""
    body, status, words = BAD_JSON[number]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await running.http.post(INFER, content=content)

    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]
    assert len(response.json()["error"]) < 1200
    assert gc.isenabled()
    assert "x-request-id" in response.headers
    assert await good(running)


@pytest.mark.parametrize(
    ("size", "blocks", "declared", "words"),
    [
        ("-1", [TWO.tobytes()], 6144, "inference header size should be in range"),
        ("many", [TWO.tobytes()], 6144, "inference header size should be in range"),
        ("0" * 20 + "9" * 5000, [TWO.tobytes()], 6144, "inference header size should be in range"),
        ("9" * 30, [TWO.tobytes()], 6144, "inference header size should be in range"),
        ("7", [TWO.tobytes()], 6144, "JSON"),
        (None, [TWO.tobytes()], 6145, "binary_data_size of input 'image' is 6145, and 6144 bytes are left"),
        (None, [TWO.tobytes()], -1, "binary_data_size of input 'image' is -1"),
        (None, [TWO.tobytes()], "6144", "binary_data_size of input 'image' is 6144"),
        (None, [TWO.tobytes()], 6000, "unexpected additional input data: 144 bytes"),
        (None, [TWO.tobytes(), b"x"], 6144, "unexpected additional input data: 1 bytes"),
    ],
)
async def test_bad_sizes(running: Running, size: str | None, blocks: list[bytes], declared: Any, words: str) -> None:
    """Sizes that do not fit the body are refused; the next good request is answered."""
    tensor = {**PIXELS, "shape": [2, 32, 32, 3], "parameters": {"binary_data_size": declared}}
    response = await binary(running, {"inputs": [tensor]}, *blocks, size=size)

    assert (response.status_code, list(response.json())) == (400, ["error"])
    assert words in response.json()["error"]
    assert await good(running)


@pytest.mark.parametrize("block", [b"\1", b"\1\0\0\0", b"\xff\xff\xff\xff" + png(1)])
async def test_bad_elements(running: Running, block: bytes) -> None:
    """An element of BYTES that ends before its length is refused; the next good request is answered."""
    tensor = {**PIXELS, "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(block)}}
    response = await binary(running, {"inputs": [tensor]}, block)

    assert (response.status_code, "ends within element 0" in response.json()["error"]) == (400, True)
    assert await good(running)


async def test_many_elements(running: Running) -> None:
    """A million empty elements are refused after a few thousand of them; the next good request is answered."""
    block = bytes(4_000_000)
    tensor = {**PIXELS, "datatype": "BYTES", "shape": [1_000_000], "parameters": {"binary_data_size": len(block)}}
    response = await binary(running, {"inputs": [tensor]}, block)

    assert (response.status_code, "4,096 image files" in response.json()["error"]) == (400, True)
    assert await good(running)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v2/models/nobody/infer", 404, "nobody"),
        ("POST", "/v2/models/tiny/versions/9/infer", 404, "9"),
        ("POST", "/v2/models/ensemble:tiny+tiny/infer", 404, "ensemble"),
        ("GET", "/v2/models/nobody", 404, "nobody"),
        ("GET", "/v2/models/resnet50/config", 404, "resnet50"),
        ("GET", "/v2/models/tiny/versions/9", 404, "no version 9"),
        ("GET", "/v2/models/tiny/versions/9/stats", 404, "not available"),
        ("GET", f"/v2/models/tiny/versions/{'9' * 5000}", 400, "model version"),
        ("GET", "/v2/models/tiny/versions/x", 404, "Not Found"),
        ("GET", "/v2/models/tiny/other", 404, "Not Found"),
        ("GET", "/v2/other", 404, "Not Found"),
        ("GET", "/v2/models/tiny/infer", 405, "Method Not Allowed"),
        ("POST", "/v2/models/tiny", 405, "Method Not Allowed"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("DELETE", "/v2/models/tiny/ready", 405, "Method Not Allowed"),
        ("GET", "/v2/repository/models/tiny/load", 405, "Method Not Allowed"),
        ("POST", "/v2/repository/models/tiny/load", 400, "explicit"),
        ("POST", "/v2/repository/models/tiny/unload", 400, "explicit"),
        ("POST", "/v2/repository/models/tiny/other", 404, "Not Found"),
    ],
)
async def test_bad_paths(running: Running, method: str, path: str, status: int, words: str) -> None:
    """What is not there, and what cannot be asked so, has the protocol's body."""
    response = await running.http.request(method, path, json=GOOD if method == "POST" else None)

    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert words in response.json()["error"]
    assert await good(running)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2", "GET"),
        ("/v2/models/stats", "GET"),
        ("/v2/repository/index", "POST"),
        ("/v2/repository/models/tiny/load", "POST"),
        ("/v2/models/tiny/versions/1", "GET"),
        ("/v2/models/tiny/infer", "POST"),
        ("/v1/models/tiny", "GET"),
        ("/v1/models/tiny:predict", "POST"),
    ],
)
async def test_allowed_methods(running: Running, path: str, allowed: str) -> None:
    """A method that a path does not have is answered with those that it has (RFC 9110, 15.5.6)."""
    refused = await running.http.request("DELETE", path)

    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert refused.json() == {"error": "Method Not Allowed"}


async def test_encoded_body(running: Running) -> None:
    """A compressed body is refused, as everywhere; a HEAD is answered without a body."""
    refused = await running.http.post(INFER, json=GOOD, headers={"content-encoding": "gzip"})
    head = await running.http.head("/v2/models/tiny")

    assert (refused.status_code, list(refused.json()), refused.headers["accept-encoding"]) == (
        415,
        ["error"],
        "identity",
    )
    assert (head.status_code, head.content) == (200, b"")
    assert await good(running)


async def test_overload(exported: Path) -> None:
    """At capacity the protocol is refused like every other way, with Retry-After."""
    engine = FakeEngine()
    async with serving(exported, engine, capacity=1) as running, busy(running, engine):
        refused = await running.http.post(INFER, json=GOOD)
        assert (refused.status_code, list(refused.json())) == (429, ["error"])
        assert int(refused.headers["retry-after"]) >= 1


async def test_failure(exported: Path) -> None:
    """A failure of the engine tells the client no more than that; the next good request is answered."""
    engine = FakeEngine()
    async with serving(exported, engine) as running:
        engine.script.append(RuntimeError("secret"))
        failed = await running.http.post(INFER, json=GOOD)
        assert (failed.status_code, list(failed.json()), "secret" in failed.text) == (500, ["error"], False)
        assert await good(running)
