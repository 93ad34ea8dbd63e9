"""Mutates images, forms and artifacts, and reads them: each gives an answer or an error of the table, at little cost.

The mutations are seeded. `corpus/` holds files that were costly or failed once; they are mutated too.
"""

import asyncio
import json
import random
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from models.artifact.artifact import GRAPH, LABELS, MANIFEST, ArtifactError, load, sha256
from service.common.errors import BadImage, BadRequest, TooLarge, UnsupportedMediaType
from service.common.types import ImageLimits
from service.preprocessing.decode import decode_image
from service.rest.image_request import read_image

CORPUS = Path(__file__).parent / "corpus"
MAX_CPU_S, MAX_PEAK_BYTES = 1.0, 700 << 20

_NUMBERS = [0, 1, 2, 3, 7, 8, 16, 64, 127, 128, 255, 256, 1000, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF]
_CHUNK = re.compile(rb"IHDR|PLTE|tRNS|IDAT|eXIf|IEND")
_BOUNDARY = b"----x7"

Read = Callable[[bytes], None]
"""Reads an input. Raises an error only if the input found a fault."""


def mutated(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The data with a few changes: numbers, bits, and parts that are left out, repeated, moved or another file's."""
    out = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
        at = draw.randrange(len(out) + 1) if draw.random() < 0.5 else draw.randrange(min(len(out), 400) + 1)
        size = draw.choice([1, 2, 4, 8, draw.randrange(1, 100)])
        match draw.randrange(7):
            case 0 if at < len(out):
                out[at] ^= 1 << draw.randrange(8)
            case 1:
                width, order = draw.choice("BHIQ"), draw.choice("<>")
                number = struct.pack(order + width, draw.choice(_NUMBERS) & (1 << 8 * struct.calcsize(width)) - 1)
                out[at : at + len(number)] = number
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = out[at : at + size] * draw.choice([1, 2, 50])
            case 4:
                other = draw.choice(others)
                start = draw.randrange(len(other) + 1)
                out[at : at + size] = other[start : start + size]
            case 5:
                out[at : at + size] = draw.randbytes(size)
            case _ if draw.random() < 0.2:
                del out[at:]
    return summed(bytes(out)) if data.startswith(b"\x89PNG") and draw.random() < 0.7 else bytes(out)


def summed(png: bytes) -> bytes:
    """The PNG with right checksums, so that what is in its chunks is read."""
    out = bytearray(png)
    for found in _CHUNK.finditer(png):
        (size,) = struct.unpack(">I", png[found.start() - 4 : found.start()].rjust(4, b"\0"))
        end = found.end() + size
        if end + 4 <= len(out):
            out[end : end + 4] = struct.pack(">I", zlib.crc32(out[found.start() : end]))
    return bytes(out)


def read_photo(data: bytes) -> None:
    """Decode the image, whole and reduced."""
    for needed in (None, 16):
        with suppress(BadImage, TooLarge):
            assert decode_image(data, ImageLimits(), needed).pixels.shape[2] == 3


def forms(images: list[bytes]) -> list[bytes]:
    """Forms with an image in each way that clients write them."""
    heads = (
        b'form-data; name="image"; filename="cat.jpg"\r\nContent-Type: image/jpeg',
        b"form-data; name=image; filename*=UTF-8''%EC%83%88.jpg",
        b'form-data; name="image"\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary',
    )
    return [
        b"--%s\r\nContent-Disposition: %s\r\n\r\n%s\r\n--%s--\r\n" % (_BOUNDARY, head, image, _BOUNDARY)
        for head, image in zip(heads, images, strict=False)
    ]


def read_form(form: bytes) -> None:
    """Read the form in chunks whose ends depend on its bytes."""
    step = 1 + zlib.crc32(form) % 97
    messages: list[Message] = [
        {"type": "http.request", "body": form[at : at + step], "more_body": True} for at in range(0, len(form), step)
    ]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        return messages.pop(0)

    kind = b"multipart/form-data; boundary=" + _BOUNDARY
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"content-type", kind)],
    }
    with suppress(BadRequest, TooLarge, UnsupportedMediaType, ClientDisconnect):
        asyncio.run(read_image(Request(scope, receive), ImageLimits(max_bytes=10_000), lambda _size: None))


def artifact_reader(folder: Path) -> Read:
    """A function that puts mutated bytes in place of the manifest or the labels of the artifact `net` and loads it."""
    version = folder / "net" / "1"
    manifest, labels = (version / MANIFEST).read_bytes(), (version / LABELS).read_bytes()

    def read(data: bytes) -> None:
        try:
            if data[:1] == b"{":
                (version / MANIFEST).write_bytes(data)
            else:
                (version / LABELS).write_bytes(data)
                content = json.loads(manifest)
                content["files"][LABELS] = sha256(version / LABELS)
                (version / MANIFEST).write_text(json.dumps(content))
            with suppress(ArtifactError):
                assert load(folder, "net").manifest.files[GRAPH]
        finally:
            (version / MANIFEST).write_bytes(manifest)
            (version / LABELS).write_bytes(labels)

    return read


def faults(read: Read, seeds: list[bytes], draw: random.Random, current: Path) -> Iterator[tuple[bytes, str] | None]:
    """Read one mutated seed after another, without end: None for each that is right, or the input and its fault.

    `current` holds the input that is being read, for one that ends the process.
    """
    process = psutil.Process()
    at_start = process.memory_info().rss
    while True:
        data = mutated(draw, draw.choice(seeds), seeds)
        current.write_bytes(data)
        began, fault = time.thread_time(), ""
        try:
            read(data)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if (took_s := time.thread_time() - began) > MAX_CPU_S:
            fault = f"{took_s:.1f} s of CPU"
        if (held := process.memory_info().rss - at_start) > MAX_PEAK_BYTES:
            fault = f"{held >> 20} MiB are held"
        yield (data, fault) if fault else None
