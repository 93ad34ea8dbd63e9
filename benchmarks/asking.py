"""One request to a server of any kind, and the classes that its answer names."""

import base64
import http.client
import io
import json
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from PIL import Image, ImageOps

from benchmarks.subjects import Body, Subject
from export.gate_images import PHOTOS

_BOUNDARY = "topfive-benchmark-5b0c1f"
_WIDTH, _HEIGHT = 500, 375
_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Packed:
    """A body and its type."""

    data: bytes
    content_type: str


class AnswerError(Exception):
    """A server did not answer, or not with five classes."""


@cache
def bench_photo() -> bytes:
    """A JPEG of 500 x 375 pixels and about 100 kB, made of a photo of the project; the same on every machine."""
    with Image.open(PHOTOS / "zebra.jpeg") as photo:
        fitted = ImageOps.fit(photo.convert("RGB"), (_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    return min((_jpeg(fitted, quality) for quality in range(70, 100)), key=lambda data: abs(len(data) - _BYTES))


def resized_photo(megapixels: float) -> bytes:
    """The same photo with so many pixels, 4:3."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    with Image.open(io.BytesIO(bench_photo())) as photo:
        return _jpeg(photo.resize((round(height * 4 / 3), height), Image.Resampling.BICUBIC), 90)


def _jpeg(photo: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return file.getvalue()


def pack(subject: Subject, photo: bytes) -> Packed:
    """The body of a request with that photo."""
    if subject.body is Body.RAW:
        return Packed(photo, "image/jpeg")
    if subject.body is Body.MULTIPART:
        part = f'Content-Disposition: form-data; name="{subject.form_field}"; filename="photo.jpeg"'
        head = f"--{_BOUNDARY}\r\n{part}\r\nContent-Type: image/jpeg\r\n\r\n"
        end = f"\r\n--{_BOUNDARY}--\r\n"
        return Packed(head.encode() + photo + end.encode(), f"multipart/form-data; boundary={_BOUNDARY}")
    tensor: dict[str, Any] = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    if subject.body is Body.V2_JSON:
        tensor["data"] = [base64.b64encode(photo).decode()]
        return Packed(json.dumps({"inputs": [tensor]}).encode(), "application/json")
    raw = len(photo).to_bytes(4, "little") + photo
    tensor["parameters"] = {"binary_data_size": len(raw)}
    header = json.dumps({"inputs": [tensor]}).encode()
    return Packed(header + raw, f"application/octet-stream; length={len(header)}")


def headers(packed: Packed) -> dict[str, str]:
    """Those of the request; the length of V2's JSON part is one of them."""
    kind, _, parameters = packed.content_type.partition("; length=")
    found = {"Content-Type": kind}
    if parameters:
        found["Inference-Header-Content-Length"] = parameters
    return found


def ask(address: str, subject: Subject, photo: bytes, timeout_s: float) -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own. Raises OSError or HTTPException."""
    packed = pack(subject, photo)
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=timeout_s)
    try:
        connection.request("POST", subject.path, packed.data, headers(packed))
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def five(body: bytes) -> list[tuple[int, float]]:
    """Class and probability of each answer, best first, of any of the servers here. Raises AnswerError."""
    try:
        reply = json.loads(body)
        if isinstance(reply, dict) and "outputs" in reply:
            reply = json.loads(reply["outputs"][0]["data"][0])
        if isinstance(reply, dict):
            return [(int(row["class_id"]), float(row["probability"])) for row in reply["predictions"]]
        if reply and isinstance(reply[0], list):  # of a server whose endpoints take lists of photos
            reply = reply[0]
        return [(int(row["class"]), float(row["probability"])) for row in reply]
    except (ValueError, LookupError, TypeError) as error:
        raise AnswerError(f"no five classes in the answer {body[:200]!r}") from error
