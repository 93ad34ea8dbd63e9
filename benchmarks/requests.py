"""The request that sends a photo to a server of any kind, and the photo that is measured with."""

import io
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageOps

from benchmarks.servers import Body, ServerSpec
from export.gate_images import PHOTOS
from loadgen.connection import Connect, Response
from loadgen.http_connection import HttpAddress, HttpConnection, multipart_request, raw_request
from loadgen.images import EncodedImage
from loadgen.tensors import Tensor, binary_request, json_request

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


def photo_request(spec: ServerSpec, address: HttpAddress, photo: bytes) -> bytes:
    """The whole HTTP request that sends a photo to a server."""
    if spec.body is Body.MULTIPART:
        return multipart_request(address, EncodedImage(photo))
    if spec.body is Body.RAW:
        return raw_request(address, EncodedImage(photo))
    request = json_request if spec.body is Body.V2_JSON else binary_request
    return request(address, Tensor.of_image(EncodedImage(photo)))


def connect_to(spec: ServerSpec, urls: Sequence[str], photo: bytes) -> Connect:
    """Connections that send that photo, spread evenly over the copies of a server."""
    addresses = [HttpAddress.parse(f"{url}{spec.path}") for url in urls]
    requests = [photo_request(spec, address, photo) for address in addresses]
    return lambda number: HttpConnection(addresses[number % len(urls)], [requests[number % len(urls)]])


async def send_photo(spec: ServerSpec, url: str, photo: bytes, timeout_s: float) -> Response:
    """The response to one photo, on a connection of its own."""
    connection = connect_to(spec, [url], photo)(0)
    response = await connection.send(0, timeout_s)
    await connection.aclose()
    return response
