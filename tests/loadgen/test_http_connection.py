"""HTTP of the load generator, against servers that answer, stall, hang up and break the protocol."""

import re
from pathlib import Path

import pytest

from loadgen.connection import OK, TIMEOUT, Connection, LoadTestError, RequestResult
from loadgen.http_connection import HttpConnection, ServerAddress
from loadgen.images import EncodedImage, read_images
from loadgen.target import HttpTarget, RequestFormat, ServerApi, image_request
from tests.fakes import reached
from tests.loadgen.http_server import HANG_UP, SILENCE, Request, Send, always, reply, serving_script

pytestmark = pytest.mark.anyio

IMAGE = EncodedImage("a.jpg", b"photo", None, "image/jpeg")


def request(address: ServerAddress, image: EncodedImage = IMAGE) -> bytes:
    """A raw image."""
    return image_request(RequestFormat(ServerApi.RAW), address, image)


async def send_to(*responses: Send) -> tuple[list[RequestResult], Connection, list[Request]]:
    """Send a request for each response, one after the other on one connection."""
    results: list[RequestResult] = []
    async with serving_script(lambda number: responses[number]) as server:
        address = ServerAddress.parse(server.url)
        connection = HttpConnection(address, [request(address)], lambda _connection, result: results.append(result))
        for count in range(1, len(responses) + 1):
            connection.send(0, 0.0)
            await reached(lambda count=count: len(results) == count)  # type: ignore[misc]
        await connection.aclose()
        return results, connection, server.requests


CHUNKED = Send(
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nServer-Ti",
        b"ming: decode;dur=1.5\r\n\r\n3\r\nabc\r\n",
        b"2\r\nde\r",
        b"\n0\r\n\r\n",
    )
)


async def test_responses_in_any_pieces() -> None:
    """Responses with a length, in chunks and in pieces are read whole, and one connection carries them all."""
    cut = Send(tuple(bytes([byte]) for byte in reply(b"abc").pieces[0]))
    announced = Send((b"HTTP/1.1 100 Continue\r\n\r\n", *reply(b"x").pieces))
    responses = [reply(b"abc"), CHUNKED, cut, announced, reply()]

    results, connection, requests = await send_to(*responses)

    assert [result.failure for result in results] == [OK] * 5
    assert [result.timing for result in results] == [b"", b"decode;dur=1.5", b"", b"", b""]
    assert [result.body for result in results] == [b"abc", b"abcde", b"abc", b"x", b"{}"]
    assert [result.received for result in results] == [sum(map(len, send.pieces)) for send in responses]
    assert connection.connects == 1
    assert [one.body for one in requests] == [b"photo"] * 5


@pytest.mark.parametrize(
    "send",
    [
        Send(reply(b"{}", "200 OK", "Connection: close").pieces, close=True),
        Send((b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",), close=True),
        Send((b"HTTP/1.1 200 OK\r\n\r\nno ", b"length"), close=True),
    ],
    ids=["close", "http-1.0", "until-the-end"],
)
async def test_reconnects(send: Send) -> None:
    """A response that closes its connection succeeds, and the next request opens another connection."""
    results, connection, requests = await send_to(send, reply())

    assert [result.failure for result in results] == [OK, OK]
    assert results[0].body in (b"{}", b"no length")
    assert connection.connects == 2
    assert [one.connection for one in requests] == [0, 1]


async def test_kinds_of_errors() -> None:
    """A status, a redirect, an end without a response, half a response, and no HTTP are errors of their own kind."""
    results, connection, _ = await send_to(
        reply(b'{"code": "overloaded"}', "429 Too Many Requests"),
        reply(b"", "302 Found", "Location: http://elsewhere/"),
        HANG_UP,
        Send((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",), close=True),
        Send((b"220 smtp.example.org ESMTP\r\n",)),
        reply(),
    )

    kinds = ["status 429", "status 302", "connection closed", "connection closed", "bad answer", OK]
    assert [result.failure for result in results] == kinds
    assert results[0].text == '{"code": "overloaded"}'
    assert results[1].text == "redirect to http://elsewhere/"
    assert "220 smtp.example.org" in results[4].text
    assert connection.connects == 4


async def test_timeout() -> None:
    """A request that times out has one result; its late response is not the result of the next request."""
    results: list[RequestResult] = []
    async with serving_script(lambda number: reply(b"second") if number else SILENCE) as server:
        address = ServerAddress.parse(server.url)
        connection = HttpConnection(address, [request(address)], lambda _connection, result: results.append(result))
        connection.send(0, 0.0)
        await reached(lambda: len(server.requests) == 1)
        connection.time_out()
        connection.send(0, 0.0)
        await reached(lambda: len(results) == 2)
        await connection.aclose()

    assert [result.failure for result in results] == [TIMEOUT, OK]
    assert connection.connects == 2


async def test_refused() -> None:
    """A request to a port without a server fails, and a check names the address."""
    async with serving_script(always(reply())) as server:
        target = HttpTarget([server.url], request, [IMAGE])
    results: list[RequestResult] = []
    connection = target.open_connection(0, lambda _connection, result: results.append(result))
    connection.send(0, 0.0)
    await reached(lambda: bool(results))

    assert results[0].failure == "connection refused"
    assert connection.connects == 0
    with pytest.raises(LoadTestError, match=f"^{server.url} refuses connections"):
        await target.check(0)


@pytest.mark.parametrize(
    ("send", "text"),
    [
        (HANG_UP, "before the whole answer"),
        (Send((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",), close=True), "before the whole answer"),
        (Send((b"220 smtp\r\n",)), "gives no answer"),
        (SILENCE, "did not answer within 0.2 s"),
    ],
)
async def test_check_without_a_response(send: Send, text: str) -> None:
    """A check names the address and the fault: half a response, another protocol or silence."""
    async with serving_script(always(send)) as server:
        with pytest.raises(LoadTestError, match=f"^{server.url} .*{text}"):
            await HttpTarget([server.url], request, [IMAGE]).check(0, 0.2)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (
            reply(b"no", "307 Temporary Redirect", "Location: http://other/predict"),
            r"redirects \(307\) to http://other/predict",
        ),
        (reply(b"<html>Hello"), "answers 200, but not as --api topfive would: <html>Hello"),
    ],
)
async def test_check_of_another_response(response: Send, text: str) -> None:
    """A check fails at a redirect, and at a good response that is not one of topfive."""
    async with serving_script(always(response)) as server:
        target = HttpTarget.of([server.url], RequestFormat(ServerApi.TOPFIVE), [IMAGE])
        with pytest.raises(LoadTestError, match=text):
            await target.check(0)


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("http://host:8000", "host:8000", "/"),
        ("host:8000/a?b=c", "host:8000", "/a?b=c"),
        ("https://host/x", "host", "/x"),
        ("https://host:444", "host:444", "/"),
        ("http://[::1]:80", "[::1]", "/"),
    ],
)
async def test_address(url: str, authority: str, path: str) -> None:
    """The Host header and the path come from the URL; http:// is optional."""
    address = ServerAddress.parse(url)

    assert (address.authority, address.path) == (authority, path)


async def test_no_address() -> None:
    """Another URL is an error that names it; a URL with a password is an error that does not repeat it."""
    for url in ("ftp://host", "http://", "http://host:port", "http://host:99999", "http://a..b", "http://[::1"):
        with pytest.raises(LoadTestError, match=re.escape(url)):
            ServerAddress.parse(url)
    with pytest.raises(LoadTestError, match="is not sent; remove everything up to the @") as caught:
        ServerAddress.parse("http://me:secret@host")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("form", "url", "path"),
    [
        (RequestFormat(ServerApi.TOPFIVE), "host", "/predict"),
        (RequestFormat(ServerApi.TOPFIVE, "ensemble:a+b"), "host", "/predict?model=ensemble:a+b"),
        (RequestFormat(ServerApi.MULTIPART, "a"), "host", "/predict?model=a"),
        (RequestFormat(ServerApi.MULTIPART, "a"), "host/classify?top_k=3", "/classify?top_k=3&model=a"),
        (RequestFormat(ServerApi.RAW), "host", "/"),
        (RequestFormat(ServerApi.RAW), "host/infer", "/infer"),
        (RequestFormat(ServerApi.RAW, path="/a b/ü"), "host", "/a%20b/%C3%BC"),
        (RequestFormat(ServerApi.RAW, path="/other"), "host/infer", "/other"),
    ],
)
async def test_path(form: RequestFormat, url: str, path: str) -> None:
    """A request goes to the path of the option, else of the URL, else of the API."""
    payload = image_request(form, ServerAddress.parse(url), IMAGE)

    assert payload.startswith(f"POST {path} HTTP/1.1\r\nHost: host\r\n".encode())


async def test_images(tmp_path: Path, photo: bytes) -> None:
    """Files and folders are read in order; without any, a photo of 500 x 375 and about 100 kB is generated."""
    (tmp_path / "b.jpeg").write_bytes(photo)
    notes, empty = tmp_path / "notes.txt", tmp_path / "empty"
    notes.write_text("no image")
    empty.mkdir()

    made, again, folder = read_images([])[0], read_images([])[0], read_images([tmp_path])

    assert (made.size, 90_000 < len(made.data) < 110_000) == ((500, 375), True)
    assert made.data == again.data
    assert [one.name for one in folder] == ["b.jpeg"]
    assert [one.group for one in read_images([notes, tmp_path])] == ["no image", folder[0].group]
    with pytest.raises(LoadTestError, match="holds no image"):
        read_images([notes, empty])
