"""HTTP/1.1 on the wire: what a client sees that sends its bytes in its own way."""

import asyncio

import pytest

from service.rest import http_protocol
from tests.conftest import png
from tests.fakes import settle
from tests.serving import PNG, Running

pytestmark = pytest.mark.anyio

HTTP2 = b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ"


def request(body: bytes, *lines: bytes) -> bytes:
    """A POST of an image."""
    head = (b"POST /predict HTTP/1.1", b"Host: x", b"Content-Type: image/png", b"Content-Length: %d" % len(body))
    return b"\r\n".join((*head, *lines)) + b"\r\n\r\n" + body


async def check_answer(reader: asyncio.StreamReader, shade: int) -> None:
    """The next answer is that of an image of this shade."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"class_id":%d,' % shade in body


async def test_one_packet(running: Running) -> None:
    """Head and body of an answer come together, so that a client is woken once."""
    reader, writer = await running.connect()
    for _ in range(5):
        writer.write(request(png(3)))
        async with asyncio.timeout(10):
            piece = await reader.read(100_000)
        assert piece.startswith(b"HTTP/1.1 200 ")
        assert piece.endswith(b"}")
    writer.close()


async def test_one_after_the_other(running: Running) -> None:
    """Requests that a client sends without waiting are answered in their order, each with its own image."""
    reader, writer = await running.connect()
    writer.write(b"".join(request(png(shade)) for shade in (11, 22, 33)))
    for shade in (11, 22, 33):
        await check_answer(reader, shade)
    writer.close()


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
@pytest.mark.parametrize("lines", [(), (b"Up: x", *HTTP2)], ids=["plain", "http2"])
async def test_in_pieces(running: Running, lines: tuple[bytes, ...], piece_bytes: int) -> None:
    """A request that comes in pieces of any size is whole in the end, whatever its bytes might be the start of."""
    whole = b"\r\n" + request(png(44), *lines)
    reader, writer = await running.connect()
    for begin in range(0, len(whole), piece_bytes):
        writer.write(whole[begin : begin + piece_bytes])
        await settle()  # the server reads what there is
    await check_answer(reader, 44)
    writer.close()


async def test_an_offer_of_http2(running: Running) -> None:
    """A client that offers to change to HTTP/2 is answered in HTTP/1.1, wherever the first packet ends."""
    whole = request(png(7), *HTTP2)
    reader, writer = await running.connect()
    for cut in (*range(1, whole.index(b"\r\n\r\n") + 5), len(whole)):
        for piece in (whole[:cut], whole[cut:]):
            writer.write(piece)
            await settle()
        await check_answer(reader, 7)
    writer.close()


async def test_expect_continue(running: Running) -> None:
    """A client that asks whether to send its body is told to at once, and gets its answer afterwards."""
    reader, writer = await running.connect()
    head, blank, image = request(png(66), b"Expect: 100-continue").partition(b"\r\n\r\n")
    writer.write(head + blank)
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(image)
    await check_answer(reader, 66)
    writer.close()


async def test_endless_head(running: Running) -> None:
    """The server answers 431 to a request whose head does not end, and none to long heads and large bodies."""
    reader, writer = await running.connect()
    writer.write(b"GET /livez HTTP/1.1\r\n" + b"a:\r\n" * 20_000)
    refused = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    taken = await running.http.post("/predict", content=bytes(300_000), headers=PNG)
    long = [(await running.http.get("/livez", headers={"x-long": "y" * 30_000})).status_code for _ in range(5)]

    assert refused.startswith(b"HTTP/1.1 431 ")
    assert taken.status_code == 422
    assert long == [200] * 5


@pytest.mark.parametrize("start", [b"", b"GET /livez HTTP/1.1\r\nHos"])
async def test_silent_connection(running: Running, start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server closes a connection that sends no whole head in time."""
    monkeypatch.setattr(http_protocol, "HEAD", ("sent no request", 0.05))
    reader, writer = await running.connect()
    writer.write(start)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
