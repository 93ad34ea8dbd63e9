"""The REST endpoints of the Open Inference Protocol, below /v2, with Triton's extensions."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, FailFast, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.common.errors import BadRequest, NotReady, Overloaded, TopfiveError
from service.common.model_info import ModelState
from service.common.tasks import apart
from service.inference.dataplane import DataPlane, Images, Inference
from service.inference.descriptions import (
    exported,
    model_config,
    model_metadata,
    model_names,
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
    from_base64,
    output_tensor,
    read_images,
    read_outputs,
    read_timeout,
    read_version,
)
from service.rest.errors import json_response, not_allowed
from service.rest.image_request import ImageReader, drop_small_body, read_body
from service.rest.schemas import LONG_BODY, ImageQuery, validated

M = TypeVar("M", bound=BaseModel)

ROOT = "/v2"

_MODEL = re.compile(rf"{ROOT}/models/([^/]+)(?:/versions/([0-9]+))?(?:/(infer|ready|config|stats))?")
_REPOSITORY = re.compile(rf"{ROOT}/repository/models/([^/]+)/(load|unload)")
_NOT_ALLOWED = {"error": "Method Not Allowed"}
_JSON_SIZE = "inference-header-content-length"

_MOST_TENSORS, _MOST_LENGTHS = 16, 8  # more are wrong anyway
_LONGEST_TEXT = 60  # of a client's own in an error message


def _checked(parameters: dict[str, Any]) -> dict[str, Any]:
    if not set(map(type, parameters.values())) <= {str, bool, int, float}:
        raise ValueError("send strings, numbers and booleans")
    return parameters


_Parameters = Annotated[dict[str, Any], AfterValidator(_checked)]  # a union would report each wrong value four times
_Endpoint = Callable[[Request], Awaitable[Response]]
_ModelEndpoint = Callable[[Request, str, int | None], Awaitable[Response]]


class InferInput(BaseModel):
    """An input in JSON. `data` is flat or nested; elements of BYTES are in base64, because JSON has only text."""

    name: str
    shape: Annotated[tuple[Annotated[int, Field(lt=1 << 63)], ...], Field(max_length=_MOST_LENGTHS), FailFast()]
    datatype: str
    parameters: _Parameters = {}
    data: Any = None


class InferOutput(BaseModel):
    """An output that is asked for."""

    name: str
    parameters: _Parameters = {}


class InferRequest(BaseModel):
    """The JSON part of a request for inference."""

    id: str = ""
    parameters: _Parameters = {}
    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=_MOST_TENSORS)]
    outputs: Annotated[list[InferOutput], Field(max_length=_MOST_TENSORS)] = []


class _IndexRequest(BaseModel):
    ready: bool = False


class _ControlRequest(BaseModel):
    parameters: _Parameters = {}


class V2Endpoints:
    """ASGI application for every path at or below /v2. It raises TopfiveError."""

    def __init__(self, data_plane: DataPlane, reader: ImageReader) -> None:
        self._data_plane = data_plane
        self._reader = reader
        self._endpoints: dict[tuple[str, str], _Endpoint] = {
            ("GET", ROOT): self._server,
            ("GET", f"{ROOT}/health/live"): self._live,
            ("GET", f"{ROOT}/health/ready"): self._ready,
            ("GET", f"{ROOT}/models"): self._names,
            ("GET", f"{ROOT}/models/stats"): self._all_statistics,
            ("POST", f"{ROOT}/repository/index"): self._index,
        }
        self._of_models: dict[tuple[str, str | None], _ModelEndpoint] = {
            ("GET", None): self._metadata,
            ("GET", "ready"): self._model_ready,
            ("GET", "config"): self._config,
            ("GET", "stats"): self._statistics,
            ("POST", "infer"): self._infer,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"].removeprefix(scope["root_path"]).rstrip("/"), scope["method"]
        request = Request(scope, receive)
        if endpoint := self._endpoints.get((method, path)):
            response = await endpoint(request)
        elif methods := [one for one, known in self._endpoints if known == path]:
            response = not_allowed(_NOT_ALLOWED, methods)
        elif (found := _REPOSITORY.fullmatch(path)) and method == "POST":
            response = await self._control(request, found[1], found[2])
        elif found:
            response = not_allowed(_NOT_ALLOWED, ["POST"])
        elif (found := _MODEL.fullmatch(path)) is None:
            response = json_response({"error": "Not Found"}, 404)
        elif of_model := self._of_models.get((method, found[3])):
            response = await of_model(request, found[1], read_version(found[2] or ""))
        else:
            response = not_allowed(_NOT_ALLOWED, [one for one, action in self._of_models if action == found[3]])
        await response(scope, receive, send)

    async def _server(self, _request: Request) -> Response:
        return json_response(server_metadata(self._data_plane))

    async def _live(self, _request: Request) -> Response:
        self._data_plane.check_alive()
        return json_response({"live": True})

    async def _ready(self, _request: Request) -> Response:
        try:
            self._data_plane.check_ready()
        except TopfiveError:  # probes ask every few seconds; /readyz has the reason
            return json_response({"ready": False}, 503)
        return json_response({"ready": True})

    async def _names(self, _request: Request) -> Response:
        return json_response({"models": await model_names(self._data_plane)})

    async def _index(self, request: Request) -> Response:
        wanted = await self._asked(request, _IndexRequest)
        return json_response(repository_index(await self._data_plane.versions(), wanted.ready))

    async def _control(self, request: Request, name: str, action: str) -> Response:
        wanted = await self._asked(request, _ControlRequest)
        if action == "load":
            await self._data_plane.load(name, read_version_policy(wanted.parameters))
        else:
            await self._data_plane.unload(name)
        return Response()

    async def _asked(self, request: Request, kind: type[M]) -> M:
        """The body of a request that has no tensors, and may have none."""
        with self._reader.share(request) as take:
            sent = await self._reader.read(request, ImageQuery(), take, content=read_body)
            return validated(kind, sent.image or b"{}")

    async def _all_statistics(self, _request: Request) -> Response:
        return await self._statistics(_request, None, None)

    async def _statistics(self, _request: Request, name: str | None, version: int | None) -> Response:
        reports = await self._data_plane.statistics(name, version)
        return json_response({"model_stats": [{**asdict(one), "response_stats": {}} for one in reports]})

    async def _metadata(self, _request: Request, name: str, version: int | None) -> Response:
        return json_response(model_metadata(await exported(self._data_plane, name, version)))

    async def _config(self, _request: Request, name: str, version: int | None) -> Response:
        return json_response(model_config(await exported(self._data_plane, name, version)))

    async def _model_ready(self, _request: Request, name: str, version: int | None) -> Response:
        detail = await exported(self._data_plane, name, version)
        if detail.state is not ModelState.READY:
            raise NotReady(f"{detail.name} is not ready, but {detail.state}")
        return json_response({"name": detail.name, "ready": True})

    async def _infer(self, request: Request, name: str, version: int | None) -> Response:
        try:
            self._data_plane.check_capacity(name, 1, version)
        except Overloaded:
            await drop_small_body(request)
            raise
        with self._reader.share(request) as take:
            sent = await self._reader.read(request, ImageQuery(), take, content=read_body)
            with self._reader.metrics.refusals():
                long = len(sent.image) > LONG_BODY
                images, wanted, classes = await apart(long, lambda: _read(request, sent.image))
                timeout_s = read_timeout(wanted.parameters)
            deadline = min(sent.options.deadline, self._reader.clock.now() + timeout_s)
            inference = await self._data_plane.infer(images, name, version, deadline)
        long = inference.probabilities.size > LONG_REPLY
        return await apart(long, lambda: _replied(wanted, classes, inference))


def _read(request: Request, body: bytes) -> tuple[Images, InferRequest, int | None]:
    """The images of a request, the JSON part, and how many classes it asks for. Raises BadRequest and TooLarge.

    Without a header with the size of the JSON part the body is JSON. If the size is 0, the body is an image file.
    """
    given = request.headers.get(_JSON_SIZE, str(len(body)))
    if not (given.isdecimal() and len(given) < 19 and int(given) <= len(body)):
        raise BadRequest(f"inference header size should be in range (0, {len(body)}), got: {given[:18]}")
    size = int(given)
    if _JSON_SIZE in request.headers and not size:
        wanted = InferRequest.model_construct(parameters={"binary_data_output": True}, outputs=[])
        return [body], wanted, None
    wanted, tensors, at = validated(InferRequest, body[:size]), [], size
    view = memoryview(body)
    for one in wanted.inputs:
        binary = one.parameters.get("binary_data_size")
        if (binary is None) is (one.data is None):
            raise BadRequest("Input must set only one of the following fields: 'data' or 'binary_data_size'")
        if binary is not None and not (type(binary) is int and 0 <= binary <= len(body) - at):
            shown = f"of input {one.name[:_LONGEST_TEXT]!r} is {str(binary)[:_LONGEST_TEXT]}"
            raise BadRequest(f"binary_data_size {shown}, and {len(body) - at} bytes are left")
        content = _content(one) if binary is None else view[at : at + int(binary)]
        at += int(binary or 0)
        tensors.append(InputTensor(one.name, one.datatype, one.shape, content))
    if at < len(body):
        raise BadRequest(f"unexpected additional input data: {len(body) - at} bytes belong to no input")
    return read_images(tensors), wanted, read_outputs([(one.name, one.parameters) for one in wanted.outputs])


def _content(tensor: InferInput) -> bytes | Sequence[bytes]:
    """The tensor whose `data` is in JSON. Raises BadRequest."""
    try:
        data = tensor.data
        while data and isinstance(data[0], list):
            data = list(chain.from_iterable(data))
        if tensor.datatype == PIXELS and set(map(type, data)) <= {int}:
            return bytes(data)
        if tensor.datatype == FILES and set(map(type, data)) <= {str}:
            check_file_count(len(data))
            return [from_base64(one) for one in data]
    except (KeyError, TypeError, ValueError):  # no list, or not of lists all the way, or values that do not fit
        data = None
    if tensor.datatype in (PIXELS, FILES):
        fitting = "whole numbers from 0 to 255" if tensor.datatype == PIXELS else "strings in base64"
        raise BadRequest(
            f"the data of input {tensor.name[:_LONGEST_TEXT]!r} does not fit {tensor.datatype}; send {fitting}"
        )
    return b""  # of a datatype that no model takes


def _replied(wanted: InferRequest, classes: int | None, inference: Inference) -> Response:
    """The response with the output, in JSON or in binary."""
    parameters = wanted.outputs[0].parameters if wanted.outputs else {}
    binary = parameters.get("binary_data", wanted.parameters.get("binary_data_output", False)) is True
    tensor = output_tensor(inference, classes)
    content = tensor.content if binary else b""
    data = {"parameters": {"binary_data_size": len(content)}} if binary else {"data": tensor.values}
    reply = {
        **({"id": wanted.id} if wanted.id else {}),
        "model_name": inference.model,
        "model_version": str(inference.version),
        "outputs": [{"name": PROBABILITIES, "datatype": tensor.datatype, "shape": tensor.shape, **data}],
    }
    head = to_json(reply)
    if not binary:
        return Response(head, media_type="application/json")
    return Response(head + content, headers={_JSON_SIZE: str(len(head))}, media_type="application/octet-stream")
