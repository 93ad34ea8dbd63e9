"""The Open Inference Protocol over gRPC: every call, typed and raw tensors, and every error with its status."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from proto.inference import grpc_service_pb2 as pb
from proto.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from service.common.errors import TABLE, Code
from tests.conftest import png
from tests.fakes import FakeEngine, Opener
from tests.fleet import copy_version
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio

SERVICE = "inference.GRPCInferenceService"
TWO = np.stack([np.full((32, 32, 3), 9, np.uint8), np.full((32, 32, 3), 4, np.uint8)])
Input = pb.ModelInferRequest.InferInputTensor
Output = pb.ModelInferRequest.InferRequestedOutputTensor


def stub_of(running: Running) -> Any:
    """A stub of the protocol."""
    return GRPCInferenceServiceStub(running.channel)  # type: ignore[no-untyped-call]


def pixels(**changes: Any) -> Input:
    """The input with two images."""
    return Input(**{"name": "image", "datatype": "UINT8", "shape": [2, 32, 32, 3], **changes})


def files(count: int = 2) -> Input:
    """The input with so many image files."""
    return Input(name="image", datatype="BYTES", shape=[count])


def request(*inputs: Input, raw: Sequence[bytes] = (), **fields: Any) -> pb.ModelInferRequest:
    """A request for `tiny`."""
    return pb.ModelInferRequest(**{"model_name": "tiny", "inputs": inputs, "raw_input_contents": raw, **fields})


def asking(classes: int) -> Output:
    """The output as so many classes."""
    output = Output(name="probabilities")
    output.parameters["classification"].int64_param = classes
    return output


def packed(*elements: bytes) -> bytes:
    """The binary form of BYTES."""
    return b"".join(struct.pack("<I", len(one)) + one for one in elements)


def best(reply: pb.ModelInferResponse) -> list[int]:
    """The best class of each image."""
    (output,), (content,) = reply.outputs, reply.raw_output_contents
    assert (output.name, output.datatype) == ("probabilities", "FP32")
    found: list[int] = np.frombuffer(content, "<f4").reshape(tuple(output.shape)).argmax(axis=1).tolist()
    return found


async def test_server(running: Running) -> None:
    """The server is alive and ready, has a name, a version and its extensions."""
    stub = stub_of(running)
    metadata = await stub.ServerMetadata(pb.ServerMetadataRequest())

    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert (metadata.name, metadata.version) == ("topfive", "0.1.0")
    assert list(metadata.extensions) == (await running.rest("/v2"))["extensions"]


async def test_health_and_reflection(running: Running) -> None:
    """Health checks know the service, and reflection has its messages."""
    health: Any = health_pb2_grpc.HealthStub(running.channel)
    reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)  # type: ignore[arg-type]
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
    answers = [one async for one in reflection.ServerReflectionInfo(iter([asked]))]

    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    assert b"ModelInferRequest" in answers[0].file_descriptor_response.file_descriptor_proto[0]


async def test_model(running: Running) -> None:
    """Metadata, configuration, statistics and index say what REST says."""
    stub = stub_of(running)
    for version in ("", "1"):
        asked = {"name": "tiny", "version": version}
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(**asked))
        config = (await stub.ModelConfig(pb.ModelConfigRequest(**asked))).config
        assert (await stub.ModelReady(pb.ModelReadyRequest(**asked))).ready
        assert list(metadata.inputs[0].shape) == [-1, 32, 32, 3]
        assert dict(metadata.properties) == (await running.rest("/v2/models/tiny"))["properties"]
        assert (config.input[0].format, list(config.input[0].dims)) == (pb.ModelInput.FORMAT_NHWC, [32, 32, 3])
        assert (config.input[0].data_type, config.output[0].data_type) == (pb.TYPE_UINT8, pb.TYPE_FP32)
        assert config.max_batch_size > 0
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    assert [(one.name, one.version, one.state) for one in index.models] == [("tiny", "1", "READY")]


@pytest.mark.parametrize("version", ["", "1"])
async def test_infer(running: Running, version: str) -> None:
    """Typed and raw tensors of pixels and of image files have the same answers, in their order."""
    typed, typed_files = pixels(), files()
    typed.contents.uint_contents.extend(TWO.ravel().tolist())
    typed_files.contents.bytes_contents.extend([png(9), png(4)])
    for one in (
        request(typed),
        request(typed_files),
        request(pixels(), raw=[TWO.tobytes()]),
        request(files(), raw=[packed(png(9), png(4))]),
    ):
        one.id, one.model_version = "order-7", version
        reply = await stub_of(running).ModelInfer(one)
        assert best(reply) == [9, 4]
        assert (reply.model_name, reply.model_version, reply.id) == ("tiny", "1", "order-7")


async def test_classification(running: Running) -> None:
    """Classes come as strings in raw contents, best first."""
    reply = await stub_of(running).ModelInfer(request(pixels(), raw=[TWO.tobytes()], outputs=[asking(2)]))
    strings = (b"0.500000:9:ostrich", b"0.000501:0:tench", b"0.500000:4:hammerhead", b"0.000501:0:tench")

    assert (reply.outputs[0].datatype, list(reply.outputs[0].shape)) == ("BYTES", [2, 2])
    assert list(reply.raw_output_contents) == [packed(*strings)]


async def test_statistics(exported: Path) -> None:
    """Counters are those of the requests sent, the same as over REST."""
    async with serving(exported, FakeEngine()) as running:
        stub = stub_of(running)
        await stub.ModelInfer(request(pixels(), raw=[TWO.tobytes()]))
        await stub.ModelInfer(request(files(1), raw=[packed(png(1))]))
        (report,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny", version="1"))).model_stats
        (rest,) = (await running.rest("/v2/models/stats"))["model_stats"]

        assert (report.inference_count, report.inference_stats.success.count) == (3, 2)
        assert report.inference_stats.success.ns == rest["inference_stats"]["success"]["ns"] > 0
        assert MessageToDict(report.inference_stats.queue)["count"] == "2"


async def test_load_and_unload(artifacts: Path) -> None:
    """With explicit control the calls load the version that is asked for, and unload the model."""
    copy_version(artifacts, 2)
    async with serving(artifacts, open_engine=Opener(), model_control="explicit") as running:
        stub = stub_of(running)
        load = pb.RepositoryModelLoadRequest(model_name="tiny")
        load.parameters["config"].string_param = '{"version_policy": {"specific": {"versions": ["1"]}}}'
        await stub.RepositoryModelLoad(load)
        reply = await stub.ModelInfer(request(pixels(), raw=[RAW]))
        assert (reply.model_version, best(reply)) == ("1", [9, 4])
        await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny"))
        index = (await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models
        assert [one.name for one in index] == []
        again = stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny"))
        assert (await again.code()).name == "NOT_FOUND"
        elsewhere = stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(repository_name="x", model_name="tiny"))
        assert (await elsewhere.code()).name == "UNIMPLEMENTED"


def too_many() -> Input:
    """A value that is no byte."""
    tensor = pixels(shape=[1, 1, 1, 1])
    tensor.contents.uint_contents.append(256)
    return tensor


def typed(datatype: str, **contents: Any) -> Input:
    """The input with these contents."""
    return pixels(datatype=datatype, contents=pb.InferTensorContents(**contents))


def mixed() -> Input:
    """Contents beside raw contents."""
    tensor = pixels()
    tensor.contents.uint_contents.append(1)
    return tensor


def many_values() -> Input:
    """Typed values of more bytes than are read outside of raw contents."""
    tensor = pixels()
    tensor.contents.uint_contents.extend([1] * (4 << 20))
    return tensor


RAW = TWO.tobytes()
PARAMETERS = Code.BAD_REQUEST, "65 parameters; send at most 64"
BAD: Sequence[tuple[pb.ModelInferRequest, Code, str]] = [
    (request(model_name="nobody", raw=[RAW]), Code.BAD_REQUEST, "raw_input_contents"),
    (request(pixels(), raw=[RAW], model_name="nobody"), Code.MODEL_NOT_FOUND, "nobody"),
    (request(pixels(), raw=[RAW], model_version="9"), Code.MODEL_NOT_FOUND, "9"),
    (request(pixels(), raw=[RAW], model_version="x"), Code.BAD_REQUEST, "version"),
    (request(), Code.BAD_REQUEST, "expected 1 input"),
    (request(pixels(), pixels(), raw=[RAW, RAW]), Code.BAD_REQUEST, "already exists"),
    (request(pixels(), raw=[RAW, RAW]), Code.BAD_REQUEST, "2 raw_input_contents for 1 inputs"),
    (request(pixels(name="other"), raw=[RAW]), Code.BAD_REQUEST, "unexpected input 'other'"),
    (request(pixels(datatype="FP32"), raw=[RAW]), Code.BAD_REQUEST, "FP32"),
    (request(pixels(datatype="FP32")), Code.BAD_REQUEST, "FP32"),
    (request(pixels(shape=[1, 32, 32, 3]), raw=[RAW]), Code.BAD_REQUEST, "got 6144 elements, expecting 3072"),
    (request(pixels(shape=[-2, 32, -32, 3]), raw=[RAW]), Code.BAD_REQUEST, "lengths"),
    (request(pixels(shape=[2, 16, 64, 3]), raw=[RAW]), Code.BAD_REQUEST, "send [-1, 32, 32, 3]"),
    (request(pixels()), Code.BAD_REQUEST, "got 0 elements"),
    (request(mixed(), raw=[RAW]), Code.BAD_REQUEST, "contents beside raw_input_contents"),
    (request(too_many()), Code.BAD_REQUEST, "0 to 255"),
    (request(typed("UINT8", uint_contents=[1] * 1_000_001)), Code.TOO_LARGE, "1,000,001 values of at most 1,000,000"),
    (request(typed("BYTES", bytes_contents=[b""] * 4097)), Code.BAD_REQUEST, "4,096 image files"),
    (request(files(), raw=[bytes(4_000_000)]), Code.BAD_REQUEST, "4,096 image files"),
    (request(pixels(shape=[1] * 100_000), raw=[RAW]), Code.BAD_REQUEST, "has 100000 lengths"),
    (request(*[pixels()] * 65), Code.BAD_REQUEST, "65 inputs; send at most 64"),
    (request(pixels(), raw=[RAW], outputs=[asking(1)] * 65), Code.BAD_REQUEST, "65 outputs; send at most 64"),
    (request(pixels(), raw=[RAW], parameters=dict.fromkeys(map(str, range(65)), pb.InferParameter())), *PARAMETERS),
    (request(files(), raw=[packed(b"a", b"b")[:-1]]), Code.BAD_REQUEST, "ends within element 1"),
    (request(files(), raw=[packed(png(1), b"bad")]), Code.BAD_IMAGE, "image"),
    (request(pixels(), raw=[RAW], outputs=[asking(0)]), Code.BAD_REQUEST, "classification is 0"),
    (request(pixels(), raw=[RAW], outputs=[Output(name="other")]), Code.BAD_REQUEST, "unexpected output"),
    (request(pixels(), raw=[RAW], outputs=[asking(1), asking(2)]), Code.BAD_REQUEST, "already exists"),
    (request(raw=[b""] * (3 << 20)), Code.TOO_LARGE, "6,291,462 bytes outside of the one tensor"),
    (request(many_values(), raw=[RAW]), Code.TOO_LARGE, "send the tensor there"),
    (request(files(1), raw=[packed(bytes(10_000_001))]), Code.TOO_LARGE, "10,000,"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
async def test_bad_requests(running: Running, number: int) -> None:
    """Each bad request has the status of its code and says what is wrong; the next good one is answered."""
    bad, code, words = BAD[number]
    stub = stub_of(running)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(bad)

    assert caught.value.code().name == TABLE[code].grpc
    assert words in (caught.value.details() or "")
    assert best(await stub.ModelInfer(request(pixels(), raw=[RAW]))) == [9, 4]


async def test_what_is_not_there(running: Running) -> None:
    """Unknown models and versions, other repositories and calls of other extensions are refused by their status."""
    unknown: Any = running.channel.unary_unary(f"/{SERVICE}/TraceSetting")
    stub = stub_of(running)
    for call, status in (
        (stub.ModelMetadata(pb.ModelMetadataRequest(name="nobody")), "NOT_FOUND"),
        (stub.ModelConfig(pb.ModelConfigRequest(name="tiny", version="9")), "NOT_FOUND"),
        (stub.ModelReady(pb.ModelReadyRequest(name="resnet50")), "NOT_FOUND"),
        (stub.ModelStatistics(pb.ModelStatisticsRequest(name="nobody")), "NOT_FOUND"),
        (stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="tiny")), "INVALID_ARGUMENT"),
        (stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="x")), "UNIMPLEMENTED"),
        (stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="x" * (1 << 20))), "INVALID_ARGUMENT"),
        (stub.ModelMetadata(pb.ModelMetadataRequest(name="x" * (1 << 20))), "INVALID_ARGUMENT"),
        (unknown(b""), "UNIMPLEMENTED"),
    ):
        assert (await call.code()).name == status


async def test_timeout(running: Running) -> None:
    """The parameter shortens the time of a call."""
    short = request(pixels(), raw=[RAW])
    short.parameters["timeout"].int64_param = 1
    short.parameters["priority"].uint64_param = 2
    assert (await stub_of(running).ModelInfer(short).code()).name == "DEADLINE_EXCEEDED"
