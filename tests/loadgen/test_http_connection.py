"""HTTP of the load generator, against servers that answer, stall, hang up and break the protocol."""

import re
from pathlib import Path

import pytest

from loadgen.connection import LoadTestError, Response
from loadgen.http_connection import HttpAddress, HttpConnection, multipart_request, raw_request
from loadgen.images import EncodedImage, read_images
from tests.loadgen.http_server import HANG_UP, SILENCE, Request, Send, always, reply, serving_script

pytestmark = pytest.mark.anyio

IMAGE = EncodedImage(b"photo")


def connection_to(url: str) -> HttpConnection:
    """A connection that sends the raw image."""
    address = HttpAddress.parse(url)
    return HttpConnection(address, [raw_request(address, IMAGE)])


async def send_to(*sends: Send) -> tuple[list[Response], list[Request]]:
    """Send a request for each of them, one after the other on one connection; what came back, and what the server got.

    A timeout is 0.3 s.
    """
    async with serving_script(lambda number: sends[number]) as server:
        connection = connection_to(server.url)
        responses = [await connection.send(0, 0.3) for _ in sends]
        await connection.aclose()
        return responses, server.requests


CHUNKED = Send(
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX", b": y\r\n\r\n3\r\nabc\r\n", b"2\r\nde\r", b"\n0\r\n\r\n")
)


async def test_responses_in_any_pieces() -> None:
    """Responses with a length, in chunks and in pieces are read whole, and one connection carries them all."""
    cut = Send(tuple(bytes([byte]) for byte in reply(b"abc").pieces[0]))
    announced = Send((b"HTTP/1.1 100 Continue\r\n\r\n", *reply(b"x").pieces))
    responses, requests = await send_to(reply(b"abc"), CHUNKED, cut, announced, reply())

    assert responses == [Response("", body) for body in (b"abc", b"abcde", b"abc", b"x", b"{}")]
    assert [(one.connection, one.path, one.body) for one in requests] == [(0, "/predict", b"photo")] * 5


@pytest.mark.parametrize(
    "send",
    [
        Send(reply(b"{}", "200 OK", "Connection: close").pieces, close=True),
        Send((b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",), close=True),
    ],
    ids=["close", "http-1.0"],
)
async def test_reconnects(send: Send) -> None:
    """A response that closes its connection succeeds, and the next request opens another connection."""
    responses, requests = await send_to(send, reply())

    assert [response.failure for response in responses] == ["", ""]
    assert [one.connection for one in requests] == [0, 1]


async def test_kinds_of_errors() -> None:
    """A status, an end without a response, half a response, no HTTP and silence are errors of their own kind.

    A late response is not that of the next request.
    """
    responses, requests = await send_to(
        reply(b'{"code": "overloaded"}', "429 Too Many Requests"),
        reply(b"", "302 Found", "Location: http://elsewhere/"),
        HANG_UP,
        Send((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",), close=True),
        Send((b"220 smtp.example.org ESMTP\r\n",)),
        SILENCE,
        reply(b"last"),
    )

    kinds = ["status 429", "status 302", "connection closed", "connection closed", "bad answer", "timeout", ""]
    assert [response.failure for response in responses] == kinds
    assert responses[0].text == '{"code": "overloaded"}'
    assert "220 smtp.example.org" in responses[4].text
    assert responses[-1].body == b"last"
    assert [one.connection for one in requests] == [0, 0, 0, 1, 2, 3, 4]


async def test_refused() -> None:
    """A request to a port without a server fails."""
    async with serving_script(always(reply())) as server:
        connection = connection_to(server.url)

    assert (await connection.send(0, 1)).failure == "connection refused"


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("http://host:8000", "host:8000", "/predict?model=a:1"),
        ("host:8000/a?b=c", "host:8000", "/a?b=c&model=a:1"),
        ("https://host/a b/ü", "host", "/a%20b/%C3%BC?model=a:1"),
        ("http://[::1]:80/", "[::1]:80", "/predict?model=a:1"),
    ],
)
async def test_address(url: str, authority: str, path: str) -> None:
    """The Host header and the path come from the URL, and the model goes into the query; http:// is optional."""
    address = HttpAddress.parse(url, "a:1")

    assert (address.authority, address.path, address.tls) == (authority, path, url.startswith("https"))


async def test_no_address() -> None:
    """Another URL is an error that names it; a URL with a password is an error that does not repeat it."""
    for url in ("ftp://host", "http://host:port", "http://host:99999", "http://a..b", "http://[::1"):
        with pytest.raises(LoadTestError, match=re.escape(url)):
            HttpAddress.parse(url)
    for url in ("http://", "http://me:secret@host"):
        with pytest.raises(LoadTestError) as caught:
            HttpAddress.parse(url)
        assert "secret" not in str(caught.value)


async def test_form() -> None:
    """A form has the image as its field, and its length is that of the body."""
    head, _, body = multipart_request(HttpAddress.parse("host"), IMAGE).partition(b"\r\n\r\n")

    assert b"Content-Length: %d" % len(body) in head.split(b"\r\n")
    assert b'name="image"' in body
    assert b"Content-Type: image/jpeg\r\n\r\nphoto\r\n--" in body


async def test_images(tmp_path: Path, photo: bytes) -> None:
    """Files and folders are read in order; without any, a photo of about 100 kB is generated."""
    (tmp_path / "b.jpeg").write_bytes(photo)
    notes, empty = tmp_path / "notes.txt", tmp_path / "empty"
    notes.write_text("no image")
    empty.mkdir()

    (made,) = read_images([])
    assert 90_000 < len(made.data) < 110_000
    assert read_images([tmp_path]) == [EncodedImage(photo, "image/jpeg")]
    assert [one.content_type for one in read_images([notes, tmp_path])] == ["text/plain", "image/jpeg"]
    with pytest.raises(LoadTestError, match="holds no image"):
        read_images([empty])
