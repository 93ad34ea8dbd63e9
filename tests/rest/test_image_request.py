"""The image of a request: forms in whatever chunks they come, and what is refused."""

import io
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request
from starlette.types import Message

from service.common.errors import BadRequest, TooLarge
from service.common.metrics import Metrics
from service.common.types import FORMATS, ImageLimits
from service.common.upload_budget import UploadBudget
from service.rest.image_request import ImageReader, read_image, requested_timeout
from service.rest.schemas import PredictQuery
from tests.fakes import ManualClock

pytestmark = pytest.mark.anyio

BOUNDARY = b"----x7"
END = b"--%s--\r\n" % BOUNDARY


def part(
    content: bytes, disposition: bytes = b'form-data; name="image"; filename="cat.jpg"', extra: bytes = b""
) -> bytes:
    """One part of a form, with the boundary before it."""
    return b"--%s\r\nContent-Disposition: %s\r\n%s\r\n%s\r\n" % (BOUNDARY, disposition, extra, content)


async def read(form: bytes, *cuts: int, boundary: bytes = BOUNDARY, max_bytes: int = 1000) -> bytes:
    """The image of a form that comes in chunks which end at `cuts`."""
    edges = [0, *sorted(cuts), len(form)]
    messages: list[Message] = [
        {"type": "http.request", "body": form[begin:end], "more_body": end < len(form)}
        for begin, end in pairwise(edges)
    ]

    async def receive() -> Message:
        return messages.pop(0)

    headers = [(b"content-type", b"multipart/form-data; boundary=" + boundary)]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
    return await read_image(Request(scope, receive), ImageLimits(max_bytes=max_bytes), lambda _size: None)


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"----x", b"x7", b"a", b"\r\n--", b"\x00"]), max_size=30),
    st.lists(st.integers(0, 200), max_size=6),
)
async def test_any_content(pieces: list[bytes], cuts: list[int]) -> None:
    """Any content without the boundary comes out as it went in, whatever the chunks are."""
    wanted = b"".join(pieces)
    if b"\r\n--" + BOUNDARY in b"\r\n" + wanted + b"\r\n":
        return
    form = part(wanted) + END

    assert await read(form, *(min(cut, len(form) - 1) for cut in cuts)) == wanted


@pytest.mark.parametrize(
    "form",
    [
        b"a preamble\r\nof two lines\r\n" + part(b"abc") + END,
        part(b"abc") + END + b"an epilogue\r\n--" + BOUNDARY + b"\r\n",
        part(b"abc") + END.rstrip(),
        part(b"abc", b'FORM-DATA; NAME=image; FILENAME=""') + END,
        part(b"abc", 'form-data; name="image"; filename="새.jpg"'.encode("cp949")) + END,
        part(b"abc", extra=b"Content-Type: image/jpeg\r\ncontent-transfer-encoding: BINARY\r\n") + END,
    ],
)
async def test_forms(form: bytes) -> None:
    """A form may have text around its parts, headers and any bytes in them, and may come byte by byte."""
    assert await read(form) == b"abc"
    assert await read(form, *range(1, len(form))) == b"abc"


@pytest.mark.parametrize(
    ("content", "disposition", "extra"),
    [
        (b"abc", b"form-data; name=image", b"Content-Type: image/jpeg\r\n"),
        (b"abc", b"form-data; name=image", b"Content-Type: Application/Octet-Stream\r\n"),
        (b"\xff\xd8\xff\xe0abc", b"form-data; name=image", b""),
        (b"\xff\xd8\xff\xe0abc", b"form-data; name=image", b"Content-Type: text/plain\r\n"),
        (b"RIFF\x24\0\0\0WEBP", b"form-data; name=image; filename*=UTF-8''%ec%83%88.webp", b""),
    ],
)
async def test_part_without_a_file_name(content: bytes, disposition: bytes, extra: bytes) -> None:
    """A part without a file name is the image if its type is that of a file, or its first bytes are no text."""
    assert await read(part(content, disposition, extra) + END) == content


@pytest.mark.parametrize("kind", FORMATS)
async def test_images_are_no_text(kind: str) -> None:
    """The first bytes of an image of any format that is served are no text."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, kind)
    image = file.getvalue()

    assert await read(part(image, b"form-data; name=image") + END, max_bytes=100_000) == image


@pytest.mark.parametrize("text", [b"cat.jpg", "@사진/고양이 ".encode() * 9, b"/9j/4AAQSkZJRg" * 20, b"", b"a\r\nb\n"])
async def test_text(text: bytes) -> None:
    """A part of text without a file name is refused: a name or base64 is no image."""
    with pytest.raises(BadRequest, match="is the @ missing"):
        await read(part(text, b"form-data; name=image") + END)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (b"", "does not occur"),
        (b"abc", "does not occur"),
        (part(b"abc"), "before its closing boundary"),
        (part(b"abc") + b"--" + BOUNDARY, "before its closing boundary"),
        (part(b"abc")[:20], "does not occur"),
        (part(b"abc") + b"--%sy\r\n" % BOUNDARY, "after boundary"),
        (part(b"abc", b"form-data") + END, "no field 'image'"),
        (b"--%s\r\nContent-Type: image/png\r\n\r\nabc\r\n" % BOUNDARY + END, "Content-Disposition"),
        (part(b"abc", extra=b"Content-Transfer-Encoding: base64\r\n") + END, "encoded as base64"),
        (part(b"abc", extra=b"X: %s\r\n" % (b"x" * 20_000)) + END, "header length"),
        (part(b"", b"form-data; name=a") * 25 + END, "segment count"),
        (part(b"abc", b"form-data; name=other; filename=a") + END, "no field 'image' [(]fields: other[)]"),
        (part(b"abc", 'form-data; name="사진"; filename=a'.encode()) + END, "fields: 사진"),
        (part(b"abc", b"form-data; name=image") + END, "is text, not a file"),
        (part(b"abc") * 2 + END, "has 2 fields 'image'"),
        (part(b"abc") + part(b"tiny", b"form-data; name=model") + END, "has the field 'model' beside 'image'"),
        (
            part(b"abc") + part(b"def", b"form-data; name=two; filename=a") + END,
            "stand in the address: /predict[?]model=",
        ),
    ],
)
async def test_refused_forms(form: bytes, words: str) -> None:
    """The refusal of what is not a whole form with one image says why."""
    with pytest.raises(BadRequest, match=words):
        await read(form)


async def test_limits() -> None:
    """An image over the limit is refused, and so is a form without a boundary or with one that is far too long."""
    assert await read(part(bytes(1000)) + END) == bytes(1000)
    with pytest.raises(TooLarge, match="1,001 bytes"):
        await read(part(bytes(1001)) + END)
    with pytest.raises(BadRequest, match="has 257 bytes; at most 256"):
        await read(b"", boundary=b"b" * 257)
    with pytest.raises(BadRequest, match="names no boundary"):
        await read(b"abc", boundary=b"")


@pytest.mark.parametrize("header", ["soon", "nan", "inf", "0", "-1", ""])
def test_bad_timeout(header: str) -> None:
    """A timeout that is no positive number is refused rather than ignored."""
    with pytest.raises(BadRequest, match="X-Request-Timeout is"):
        requested_timeout(header, 30.0)


@pytest.mark.parametrize(("header", "seconds"), [(b"3600", 30.0), (b"0.5", 0.5), (None, 30.0)])
async def test_timeout_is_capped(header: bytes | None, seconds: float) -> None:
    """A client gets at most the server's own limit, and that without a header."""
    clock = ManualClock()
    reader = ImageReader(ImageLimits(), UploadBudget(1000), 30.0, clock, Metrics())
    headers = [(b"content-type", b"image/jpeg"), *([(b"x-request-timeout", header)] if header else [])]

    async def receive() -> Message:
        return {"type": "http.request", "body": b"abc", "more_body": False}

    request = Request({"type": "http", "method": "POST", "query_string": b"", "headers": headers}, receive)
    with reader.share(request) as take:
        sent = await reader.read(request, reader.query(request, PredictQuery), take)
    assert sent.options.deadline == clock.now() + seconds
    assert sent.image == b"abc"
    assert clock.pending == 0


async def test_one_byte_at_a_time() -> None:
    """A body that comes byte by byte is one piece in the end, and each byte is counted once."""
    wanted, counted = bytes(range(250)) * 4, 0
    left = list(reversed(wanted))

    async def receive() -> Message:
        return {"type": "http.request", "body": bytes([left.pop()]), "more_body": bool(left)}

    def take(size_bytes: int) -> None:
        nonlocal counted
        counted += size_bytes

    headers = [(b"content-type", b"image/png")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
    assert await read_image(Request(scope, receive), ImageLimits(), take) == wanted
    assert counted == 1000
