"""The REST endpoints of KServe's first protocol, below /v1."""

from typing import Annotated

from pydantic import BaseModel, FailFast
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.common.errors import BadRequest
from service.common.model_info import ModelState
from service.common.tasks import apart
from service.common.types import DEFAULT_TOP_K
from service.inference.dataplane import DataPlane
from service.inference.descriptions import exported, model_names
from service.inference.tensors import from_base64
from service.inference.topk import top_k
from service.rest.errors import json_response, not_allowed
from service.rest.image_request import ImageReader, read_body
from service.rest.schemas import LONG_BODY, ImageQuery, digits, validated

_MODELS = "/v1/models"
_PREDICT = ":predict"


class V1Instance(BaseModel):
    """An image file in base64."""

    b64: str


class V1Request(BaseModel):
    """Image files to classify."""

    instances: Annotated[tuple[V1Instance, ...], FailFast()]


class V1Endpoints:
    """ASGI application for every path below /v1. It raises TopfiveError."""

    def __init__(self, data_plane: DataPlane, reader: ImageReader) -> None:
        self._data_plane = data_plane
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"].removeprefix(scope["root_path"])
        name = path.removeprefix(_MODELS).removeprefix("/")
        predicts = name.endswith(_PREDICT)
        if not path.startswith(_MODELS) or "/" in name:
            response = json_response({"error": "Not Found"}, 404)
        elif scope["method"] != (method := "POST" if predicts else "GET"):
            response = not_allowed({"error": "Method Not Allowed"}, [method])
        elif predicts:
            response = await self._predict(Request(scope, receive), name.removesuffix(_PREDICT))
        elif name:
            detail = await exported(self._data_plane, name, None)
            response = json_response({"name": detail.name, "ready": detail.state is ModelState.READY})
        else:
            response = json_response({"models": await model_names(self._data_plane)})
        await response(scope, receive, send)

    async def _predict(self, request: Request, name: str) -> Response:
        with self._reader.share(request) as take:
            sent = await self._reader.read(request, ImageQuery(), take, content=read_body)
            with self._reader.metrics.refusals():
                images = await apart(len(sent.image) > LONG_BODY, lambda: _images(sent.image))
            answer = await self._data_plane.infer(images, name, None, sent.options.deadline)
        count = min(DEFAULT_TOP_K, len(answer.labels))
        rows = [top_k(row, answer.labels, count) for row in answer.probabilities]
        predictions = [
            [{"class_id": one.class_id, "label": one.label, "probability": digits(one.probability)} for one in row]
            for row in rows
        ]
        return json_response({"predictions": predictions})


def _images(body: bytes) -> list[bytes]:
    """The image files in the JSON of a request. Raises BadRequest."""
    try:
        return [from_base64(one.b64) for one in validated(V1Request, body).instances]
    except ValueError:
        raise BadRequest('an image is not base64; send {"instances": [{"b64": "..."}]}') from None
