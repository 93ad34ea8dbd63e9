"""The REST endpoints of TorchServe for inference, only with --torchserve-compatible."""

import re
from io import BytesIO

from multipart import MultipartError, MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.common.errors import BadRequest, TopfiveError
from service.common.tasks import apart
from service.common.types import Classification, ImageLimits
from service.inference.dataplane import DataPlane
from service.inference.tensors import read_version
from service.rest.errors import json_response, not_allowed, torchserve_error
from service.rest.image_request import ImageReader, Take, read_body
from service.rest.schemas import LONG_BODY, ImageQuery, digits

_PREDICTIONS = re.compile(r"/predictions/([^/]+)(?:/([^/]+))?")
_METHODS = ("POST", "PUT")
_FIELDS = ("data", "body")


class TorchServeEndpoints:
    """ASGI application for /ping and every path below /predictions. It raises TopfiveError."""

    def __init__(self, data_plane: DataPlane, reader: ImageReader) -> None:
        self._data_plane = data_plane
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"].removeprefix(scope["root_path"])
        if path == "/ping":
            response = self._ping()
        elif (found := _PREDICTIONS.fullmatch(path)) is None:
            response = json_response(torchserve_error(404, "Requested resource is not found"), 404)
        elif scope["method"] not in _METHODS:
            response = not_allowed(torchserve_error(405, "Requested method is not allowed"), _METHODS)
        else:
            answer = await self._predict(Request(scope, receive), found[1], read_version(found[2] or ""))
            response = json_response({one.label: digits(one.probability) for one in answer.predictions})
        await response(scope, receive, send)

    def _ping(self) -> Response:
        try:
            self._data_plane.check_ready()
        except TopfiveError:
            return json_response({"status": "Unhealthy"}, 500)
        return json_response({"status": "Healthy"})

    async def _predict(self, request: Request, name: str, version: int | None) -> Classification:
        with self._reader.share(request) as take:
            sent = await self._reader.read(request, ImageQuery(), take, version, _read_image)
            return await self._data_plane.classify(sent.image, name, sent.options)


async def _read_image(request: Request, limits: ImageLimits, take: Take) -> bytes:
    """The body, or of a form the field `data` or `body`. Raises BadRequest."""
    body = await read_body(request, limits, take)
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    if kind != "multipart/form-data":
        return body
    return await apart(len(body) > LONG_BODY, lambda: _image(body, parameters.get("boundary", "")))


def _image(form: bytes, boundary: str) -> bytes:
    """The field of a form that has the image. Raises BadRequest."""
    try:
        parts = MultipartParser(BytesIO(form), boundary, memory_limit=len(form) + 1)
        return next(bytes(part.raw) for part in parts if part.name in _FIELDS)
    except (MultipartError, StopIteration, ValueError):
        raise BadRequest("the form has no image; send it as: curl -T cat.jpg, or -F data=@cat.jpg") from None
