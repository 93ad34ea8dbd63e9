"""The request that sends a photo to a server of any kind, and the photo that is measured with."""

import base64
import io
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from PIL import Image, ImageOps

from benchmarks.servers import Body, ServerSpec
from export.gate_images import PHOTOS
from loadgen.connection import RequestResult
from loadgen.http_connection import ServerAddress, fetch
from loadgen.images import EncodedImage
from loadgen.target import HttpTarget, RequestFormat, ServerApi, http_request, image_request

_WIDTH, _HEIGHT = 500, 375
_QUALITY = 97  # about 100 kB


@cache
def bench_photo() -> bytes:
    """A JPEG of 500 x 375 pixels and about 100 kB, made from a photo of the project; the same on every machine."""
    with Image.open(PHOTOS / "zebra.jpeg") as photo:
        fitted = ImageOps.fit(photo.convert("RGB"), (_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    fitted.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def jpeg(photo: bytes) -> EncodedImage:
    """A photo as the load generator sends it."""
    return EncodedImage("photo.jpeg", photo, None, "image/jpeg")


def photo_request(spec: ServerSpec, address: ServerAddress, photo: bytes) -> bytes:
    """The whole HTTP request that sends a photo to a server."""
    if spec.body in (Body.MULTIPART, Body.RAW):
        api = ServerApi.MULTIPART if spec.body is Body.MULTIPART else ServerApi.RAW
        return image_request(RequestFormat(api, path=spec.path), address, jpeg(photo))
    tensor: dict[str, Any] = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    if spec.body is Body.V2_JSON:
        tensor["data"] = [base64.b64encode(photo).decode()]
        headers = {"Content-Type": "application/json"}
        return http_request(address, spec.path, headers, json.dumps({"inputs": [tensor]}).encode())
    raw = len(photo).to_bytes(4, "little") + photo
    tensor["parameters"] = {"binary_data_size": len(raw)}
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    return http_request(address, spec.path, headers, header + raw)


def photo_target(spec: ServerSpec, urls: Sequence[str], photo: bytes) -> HttpTarget:
    """The copies of a server, which all get that photo."""
    return HttpTarget(urls, lambda address, image: photo_request(spec, address, image.data), [jpeg(photo)])


async def send_photo(spec: ServerSpec, url: str, photo: bytes, timeout_s: float) -> RequestResult:
    """The response to one photo, on a connection of its own. Raises LoadTestError where there is none."""
    address = ServerAddress.parse(url)
    return await fetch(address, photo_request(spec, address, photo), timeout_s)
