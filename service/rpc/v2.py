"""The gRPC calls of the Open Inference Protocol, with Triton's extensions."""

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import asdict
from typing import Any

from google.protobuf.json_format import ParseDict

from proto.inference import grpc_service_pb2 as pb
from proto.inference.grpc_service_pb2_grpc import GRPCInferenceServiceServicer
from service.common.errors import BadRequest, TooLarge, TopfiveError, Unimplemented
from service.common.model_info import ModelState
from service.common.request_id import begin_request
from service.common.tasks import apart
from service.inference.dataplane import DataPlane, Inference
from service.inference.descriptions import (
    exported,
    model_config,
    model_metadata,
    read_version_policy,
    repository_index,
    server_metadata,
)
from service.inference.tensors import (
    FILES,
    LONG_REPLY,
    PIXELS,
    PROBABILITIES,
    InputTensor,
    check_file_count,
    output_tensor,
    read_images,
    read_outputs,
    read_timeout,
    read_version,
)
from service.rpc.errors import Context
from service.rpc.in_flight import RequestsInFlight

SERVICE: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


_MAX_FIELDS_BYTES = 4 << 20  # a message of empty fields takes up to 50 times its size, and Python that long to read
_MOST_FIELDS = 64  # inputs, outputs or parameters of a request: more are wrong anyway
_MOST_VALUES = 1_000_000  # of typed contents


def parse_request(content: bytes) -> pb.ModelInferRequest:
    """The request in a message. Raises DecodeError, and TooLarge for too many bytes outside of its raw tensor."""
    rest = len(content) - len(pb.RawInputContent.FromString(content).raw_input_content)
    if rest > _MAX_FIELDS_BYTES:
        raise TooLarge(
            f"the message has {rest:,} bytes outside of the one tensor in raw_input_contents, of at most "
            f"{_MAX_FIELDS_BYTES:,}; send the tensor there"
        )
    return pb.ModelInferRequest.FromString(content)


class InferenceServicer(GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService`. Its methods raise their errors, with which `MessageLimit` ends the call."""

    def __init__(self, data_plane: DataPlane, in_flight: RequestsInFlight) -> None:
        self._data_plane = data_plane
        self._in_flight = in_flight

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=_passes(self._data_plane.check_alive))

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=_passes(self._data_plane.check_ready))

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        detail = await exported(self._data_plane, request.name, read_version(request.version))
        return pb.ModelReadyResponse(ready=detail.state is ModelState.READY)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return ParseDict(server_metadata(self._data_plane), pb.ServerMetadataResponse())

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        detail = await exported(self._data_plane, request.name, read_version(request.version))
        return ParseDict(model_metadata(detail), pb.ModelMetadataResponse())

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        detail = await exported(self._data_plane, request.name, read_version(request.version))
        return ParseDict({"config": model_config(detail)}, pb.ModelConfigResponse())

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        reports = await self._data_plane.statistics(request.name or None, read_version(request.version))
        return ParseDict({"model_stats": [asdict(one) for one in reports]}, pb.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        index = repository_index(await self._data_plane.versions(), request.ready)
        return ParseDict({"models": index}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        await self._data_plane.load(request.model_name, read_version_policy(_values(request.parameters)))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        await self._data_plane.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        begin_request(request.id)
        with self._in_flight.accepted(request.ByteSize()):
            with self._in_flight.metrics.refusals():
                version, images = read_version(request.model_version), read_images(_inputs(request))
                _check_number("outputs", request.outputs)
                classes = read_outputs([(one.name, _values(one.parameters)) for one in request.outputs])
                timeout_s = read_timeout(_values(request.parameters))
            deadline = self._in_flight.deadline(context, timeout_s)
            inference = await self._data_plane.infer(images, request.model_name, version, deadline)
        long = inference.probabilities.size > LONG_REPLY
        return await apart(long, lambda: _response(request.id, classes, inference))


def _passes(check: Callable[[], None]) -> bool:
    """Whether the check raises no TopfiveError."""
    try:
        check()
    except TopfiveError:
        return False
    return True


def _check_repository(name: str) -> None:
    if name:
        raise Unimplemented("this server has one repository; send the request without repository_name")


def _values(parameters: Mapping[str, pb.InferParameter | pb.ModelRepositoryParameter]) -> dict[str, Any]:
    """The values of the parameters that have one. Raises BadRequest."""
    _check_number("parameters", parameters)
    kinds = {name: one.WhichOneof("parameter_choice") for name, one in parameters.items()}
    return {name: getattr(parameters[name], kind) for name, kind in kinds.items() if kind}


def _check_number(kind: str, fields: Sized) -> None:
    if len(fields) > _MOST_FIELDS:
        raise BadRequest(f"the request has {len(fields):,} {kind}; send at most {_MOST_FIELDS}")


def _inputs(request: pb.ModelInferRequest) -> Sequence[InputTensor]:
    """The inputs, from the raw contents or from those of the tensors. Raises BadRequest."""
    _check_number("inputs", request.inputs)
    raw: Sequence[bytes | None] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(f"there are {len(raw)} raw_input_contents for {len(request.inputs)} inputs; send one for each")
    found = []
    for one, content in zip(request.inputs, raw or [None] * len(request.inputs), strict=True):
        if content is not None and one.HasField("contents"):
            raise BadRequest(f"input {one.name[:60]!r} has contents beside raw_input_contents; send one of the two")
        found.append(InputTensor(one.name, one.datatype, one.shape, _typed(one) if content is None else content))
    return found


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> bytes | Sequence[bytes]:
    """The tensor in its contents, of the field for its datatype. Raises BadRequest and TooLarge."""
    if tensor.datatype == FILES:
        check_file_count(len(tensor.contents.bytes_contents))
        return list(tensor.contents.bytes_contents)
    if (count := len(tensor.contents.uint_contents)) > _MOST_VALUES:
        raise TooLarge(f"the contents have {count:,} values of at most {_MOST_VALUES:,}; send raw_input_contents")
    try:
        return bytes(tensor.contents.uint_contents) if tensor.datatype == PIXELS else b""
    except ValueError:
        raise BadRequest(f"a value of input {tensor.name[:60]!r} is no {PIXELS}; send 0 to 255") from None


def _response(identity: str, classes: int | None, inference: Inference) -> pb.ModelInferResponse:
    """The response, whose output is in raw form."""
    tensor = output_tensor(inference, classes)
    described = pb.ModelInferResponse.InferOutputTensor(
        name=PROBABILITIES, datatype=tensor.datatype, shape=tensor.shape
    )
    return pb.ModelInferResponse(
        model_name=inference.model,
        model_version=str(inference.version),
        id=identity,
        outputs=[described],
        raw_output_contents=[tensor.content],
    )
