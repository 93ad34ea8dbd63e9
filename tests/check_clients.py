"""Asks a server with the clients that people use: `python tests/check_clients.py TOPFIVE tritonclient|kserve`.

Not a pytest module: it runs in an environment that has the client and little else. `make test-clients` and `make
test-kserve` make the environments. TOPFIVE is the command that starts the server.
"""

import asyncio
import base64
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MODEL = "squeezenet1_1"  # comes with topfive, trained
PHOTO = (ROOT / "export" / "photos" / "zebra.jpeg").read_bytes()
ZEBRA = 340
BOTH = "import {0}; import {1}; from proto.inference import grpc_service_pb2 as v2; v2.ModelInferRequest(id='7')"
CONTRACT = "proto.inference.grpc_service_pb2_grpc"


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server listens."""

    rest: str
    rpc: str

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Any:
        """The JSON of an answer."""
        request = Request(f"http://{self.rest}{path}", body, {k.replace("_", "-"): v for k, v in headers.items()})
        with urlopen(request, timeout=30) as response:
            return json.load(response)


@contextmanager
def server(topfive: str) -> Iterator[Ports]:
    """A server of the model that comes with topfive, ready."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as one, socket.socket() as two:
        for listener in (one, two):
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in (one, two)]
        one.close()
        two.close()
        addresses = Ports(*(f"localhost:{port}" for port in ports))
        options = ("--artifacts", folder, "--torchserve-compatible", "true", "--model-control", "explicit")
        listens = ("--port", str(ports[0]), "--grpc-port", str(ports[1]))
        process = subprocess.Popen([topfive, "serve", "--models", MODEL, *options, *listens], stderr=subprocess.DEVNULL)
        try:
            for _ in range(300):
                try:
                    addresses.ask("/v2/health/ready")
                    break
                except (HTTPError, OSError):
                    assert process.poll() is None, "the server has ended"
                    time.sleep(0.1)
            yield addresses
        finally:
            process.terminate()
            process.wait(30)


def indices(strings: Any) -> list[int]:
    """The classes of an answer of strings `probability:index:label`."""
    texts = [one.decode() if isinstance(one, bytes) else one for one in np.ravel(strings)]
    return [int(text.split(":")[1]) for text in texts]


def best(probabilities: Any) -> list[int]:
    """The five best classes of the first image."""
    found: list[int] = np.argsort(-np.asarray(probabilities).reshape(-1, 1000)[0], kind="stable")[:5].tolist()
    return found


def check_plain(ports: Ports) -> list[int]:
    """What needs no client: every way to ask with the photo has the same five classes, which are returned."""
    infer = f"/v2/models/{MODEL}/infer"
    predicted = ports.ask("/predict", PHOTO, Content_Type="image/jpeg")["predictions"]
    wanted = [one["class_id"] for one in predicted]
    text = base64.b64encode(PHOTO).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    reply = ports.ask(infer, json.dumps({"inputs": [tensor]}).encode())
    v1 = ports.ask(f"/v1/models/{MODEL}:predict", json.dumps({"instances": [{"b64": text}]}).encode())
    labels = ports.ask(f"/predictions/{MODEL}", PHOTO)
    with urlopen(Request(f"http://{ports.rest}{infer}", PHOTO, {"Inference-Header-Content-Length": "0"})) as response:
        content = response.read()[int(response.headers["Inference-Header-Content-Length"]) :]
    assert wanted[0] == ZEBRA
    assert best(reply["outputs"][0]["data"]) == wanted, "JSON"
    assert best(np.frombuffer(content, "<f4")) == wanted, "raw"
    assert [one["class_id"] for one in v1["predictions"][0]] == wanted, "V1"
    assert list(labels) == [one["label"] for one in predicted], "TorchServe"
    return wanted


def check_messages() -> None:
    """The messages and Triton's have the same fields on the wire, and both import in one process in either order."""
    import tritonclient.grpc.model_config_pb2 as theirs_config
    import tritonclient.grpc.service_pb2 as theirs

    from proto.inference import grpc_service_pb2 as ours

    known = {**theirs.DESCRIPTOR.message_types_by_name, **theirs_config.DESCRIPTOR.message_types_by_name}
    compare_fields(ours.DESCRIPTOR.message_types_by_name, known)
    (service,), (other,) = ours.DESCRIPTOR.services_by_name.values(), theirs.DESCRIPTOR.services_by_name.values()
    for method in service.methods:
        there = other.methods_by_name[method.name]
        assert method.full_name == there.full_name
        assert method.input_type.full_name == there.input_type.full_name
        assert method.output_type.full_name == there.output_type.full_name
    for order in ((CONTRACT, "tritonclient.grpc"), ("tritonclient.grpc", CONTRACT)):
        subprocess.run([sys.executable, "-c", BOTH.format(*order)], check=True, cwd=ROOT)


def compare_fields(ours: Any, theirs: Any) -> None:
    """Each field has the name, number and type that it has there; `properties` alone is of another protocol."""
    for name, message in ours.items():
        if name in ("PropertiesEntry", "RawInputContent"):
            continue
        there = theirs[name]
        for field in message.fields:
            if field.name == "properties":
                assert field.number not in there.fields_by_number
                continue
            other = there.fields_by_name[field.name]
            assert (field.number, field.type) == (other.number, other.type), f"{name}.{field.name}"
            assert field.is_repeated == other.is_repeated, f"{name}.{field.name}"
        compare_fields(message.nested_types_by_name, there.nested_types_by_name)


def sample(ports: Ports, client: Any, of_rpc: bool) -> np.ndarray[Any, Any]:
    """A tensor as metadata and configuration ask for it, after the checks of Triton's example `image_client`."""
    metadata, config = client.get_model_metadata(MODEL), client.get_model_config(MODEL)
    if of_rpc:
        metadata, config = client.get_model_metadata(MODEL, as_json=True), client.get_model_config(MODEL, as_json=True)
        config = config["config"]
    (given,), (output,), (configured,) = metadata["inputs"], metadata["outputs"], config["input"]
    assert output["datatype"] == "FP32"
    assert config["max_batch_size"] > 0
    assert [int(length) for length in output["shape"]] == [-1, 1000]
    assert configured["format"] == "FORMAT_NHWC"
    assert len(given["shape"]) == 4
    assert len(configured["dims"]) == 3
    size = int(configured["dims"][0])
    return np.random.default_rng(1).integers(0, 256, (2, size, size, 3), np.uint8)


def check_requests(module: Any, client: Any, wanted: list[int], batch: Any, forms: Sequence[dict[str, bool]]) -> None:
    """Files and tensors, in every form of this transport, with and without classification; then errors."""

    def file(content: bytes) -> Any:
        given = module.InferInput("image", [1], "BYTES")
        return given, np.array([content], dtype=object)

    for form in forms:
        given, value = file(base64.b64encode(PHOTO) if form.get("binary_data") is False else PHOTO)
        given.set_data_from_numpy(value, **form)
        for asked in (None, [module.InferRequestedOutput("probabilities", **form)]):
            result = client.infer(MODEL, [given], outputs=asked, request_id="7")
            assert best(result.as_numpy("probabilities")) == wanted
        classes = module.InferRequestedOutput("probabilities", class_count=5, **form)
        strings = client.infer(MODEL, [given], outputs=[classes], model_version="1").as_numpy("probabilities")
        assert strings.shape == (1, 5)
        assert indices(strings) == wanted
        tensor = module.InferInput("image", list(batch.shape), "UINT8")
        tensor.set_data_from_numpy(batch, **form)
        assert client.infer(MODEL, [tensor], timeout=20_000_000).as_numpy("probabilities").shape == (2, 1000)
    for name, content, words in ((MODEL, b"bad", "image"), ("nobody", PHOTO, "nobody")):
        given, value = file(content)
        given.set_data_from_numpy(value)
        assert words in error_of(client.infer, name, [given])
    given.set_data_from_numpy(np.array([PHOTO], dtype=object))
    assert best(client.infer(MODEL, [given]).as_numpy("probabilities")) == wanted


def error_of(call: Callable[..., object], *arguments: object) -> str:
    """The error that the client raises."""
    from tritonclient.utils import InferenceServerException

    try:
        call(*arguments)
    except InferenceServerException as error:
        return str(error.message())
    return "no error"


def check_server(client: Any, of_rpc: bool) -> None:
    """Health, metadata, index, statistics, load and unload."""
    options = {"as_json": True} if of_rpc else {}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.get_server_metadata(**options)["name"] == "topfive"
    index = client.get_model_repository_index(**options)
    index = index["models"] if of_rpc else index
    assert [(one["name"], one["state"]) for one in index] == [(MODEL, "READY")]
    (report,) = client.get_inference_statistics(MODEL, "1", **options)["model_stats"]
    assert int(report["inference_count"]) == sum(
        int(one["batch_size"]) * int(one["compute_infer"]["count"]) for one in report["batch_stats"]
    )
    assert int(report["inference_stats"]["success"]["ns"]) > 0
    client.load_model(MODEL, config='{"version_policy": {"specific": {"versions": [1]}}}')
    client.unload_model(MODEL)
    assert not client.is_model_ready(MODEL)
    client.load_model(MODEL)
    assert client.is_model_ready(MODEL)


async def check_aio(module: Any, url: str, wanted: list[int]) -> None:
    """The asynchronous client, with several requests at once."""
    async with module.InferenceServerClient(url) as client:
        assert await client.is_server_ready()
        assert (await client.get_model_metadata(MODEL)) is not None
        given = module.InferInput("image", [1], "BYTES")
        given.set_data_from_numpy(np.array([PHOTO], dtype=object))
        outputs = [module.InferRequestedOutput("probabilities", class_count=5)]
        results = await asyncio.gather(*(client.infer(MODEL, [given], outputs=outputs) for _ in range(8)))
        assert all(indices(result.as_numpy("probabilities")) == wanted for result in results)


def check_tritonclient(ports: Ports, wanted: list[int]) -> None:
    """Triton's clients for HTTP and gRPC, synchronous and not."""
    import tritonclient.grpc as rpc
    import tritonclient.grpc.aio as rpc_aio
    import tritonclient.http as http
    import tritonclient.http.aio as http_aio

    check_messages()
    with http.InferenceServerClient(ports.rest) as client:
        batch = sample(ports, client, False)
        check_requests(http, client, wanted, batch, ({"binary_data": True}, {"binary_data": False}))
        check_server(client, False)
    keepalive = rpc.KeepAliveOptions(10_000, 5_000, True, 0)
    with rpc.InferenceServerClient(ports.rpc, keepalive_options=keepalive) as client:
        check_requests(rpc, client, wanted, sample(ports, client, True), ({},))
        check_server(client, True)
    asyncio.run(check_aio(http_aio, ports.rest, wanted))
    asyncio.run(check_aio(rpc_aio, ports.rpc, wanted))


async def kserve_clients(ports: Ports, wanted: list[int]) -> None:
    """KServe's clients for both of its protocols over REST, and for gRPC."""
    from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

    url = f"http://{ports.rest}"
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_ready(url)
    assert await client.is_server_live(url)
    assert await client.is_model_ready(url, MODEL)
    given = InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([PHOTO], dtype=object), binary_data=True)
    reply = await client.infer(url, InferRequest(MODEL, [given]), model_name=MODEL)
    assert best(reply.outputs[0].as_numpy()) == wanted
    old = InferenceRESTClient(RESTConfig(protocol="v1"))
    assert await old.is_model_ready(url, MODEL)
    instance = {"b64": base64.b64encode(PHOTO).decode()}
    answer = await old.infer(url, {"instances": [instance]}, model_name=MODEL)
    assert [one["class_id"] for one in answer["predictions"][0]] == wanted
    async with InferenceGRPCClient(ports.rpc) as rpc:
        assert await rpc.is_server_ready()
        assert await rpc.is_server_live()
        assert await rpc.is_model_ready(MODEL)
        reply = await rpc.infer(InferRequest(MODEL, [given]))
        assert best(reply.outputs[0].as_numpy()) == wanted


def check_kserve(ports: Ports, wanted: list[int]) -> None:
    """KServe's clients, and its generated code beside ours."""
    theirs = "kserve.protocol.grpc.grpc_predict_v2_pb2"
    for order in ((CONTRACT, theirs), (theirs, CONTRACT)):
        subprocess.run([sys.executable, "-c", BOTH.format(*order)], check=True, cwd=ROOT)
    asyncio.run(kserve_clients(ports, wanted))


if __name__ == "__main__":
    check = {"tritonclient": check_tritonclient, "kserve": check_kserve}[sys.argv[2]]
    with server(sys.argv[1]) as started:
        check(started, check_plain(started))
    print(f"{sys.argv[2]} works with topfive")  # noqa: T201
