"""HTTP/1.1 on the wire: what a client sees that sends its bytes in its own way."""

import asyncio
from pathlib import Path

import pytest

from tests.conftest import png
from tests.fakes import FakeEngine, settle
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio


def request(body: bytes, *lines: bytes) -> bytes:
    """A POST of an image."""
    head = (
        b"POST /predict HTTP/1.1",
        b"Host: x",
        b"Content-Type: image/png",
        b"Content-Length: %d" % len(body),
        *lines,
    )
    return b"\r\n".join(head) + b"\r\n\r\n" + body


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Status line and body of the next one."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    return head.partition(b"\r\n")[0], await reader.readexactly(length)


async def connected(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of its own."""
    return await asyncio.open_connection("127.0.0.1", running.service.rest.port)


class Listener(asyncio.Protocol):
    """Keeps what comes as it came."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.came = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        self.came.set()


async def test_one_packet(artifacts: Path) -> None:
    """Head and body of an answer come together: a client is woken once."""
    async with serving(artifacts, FakeEngine()) as running:
        loop = asyncio.get_running_loop()
        transport, listener = await loop.create_connection(Listener, "127.0.0.1", running.service.rest.port)
        for _ in range(5):
            transport.write(request(png(3)))
            async with asyncio.timeout(10):
                await listener.came.wait()
            listener.came.clear()
        transport.close()

    assert len(listener.pieces) == 5
    assert all(piece.startswith(b"HTTP/1.1 200 ") and piece.endswith(b"}") for piece in listener.pieces)


async def test_one_after_the_other(artifacts: Path) -> None:
    """Requests that are sent without waiting are answered in their order, each with its own image."""
    async with serving(artifacts, FakeEngine()) as running:
        reader, writer = await connected(running)
        writer.write(b"".join(request(png(shade)) for shade in (11, 22, 33)))
        answers = [await answer(reader) for _ in range(3)]
        writer.close()

    assert [status for status, _ in answers] == [b"HTTP/1.1 200 OK"] * 3
    for shade, (_, body) in zip((11, 22, 33), answers, strict=True):
        assert b'"class_id":%d,' % shade in body


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
async def test_in_pieces(artifacts: Path, piece_bytes: int) -> None:
    """A body that comes in pieces of any size is whole in the end."""
    whole = request(png(44))
    async with serving(artifacts, FakeEngine()) as running:
        reader, writer = await connected(running)
        for begin in range(0, len(whole), piece_bytes):
            writer.write(whole[begin : begin + piece_bytes])
            await writer.drain()
        status, body = await answer(reader)
        writer.close()

    assert status == b"HTTP/1.1 200 OK"
    assert b'"class_id":44,' in body


async def test_a_large_body(artifacts: Path) -> None:
    """A body of many reads reaches the decoder as it was sent, and the connection goes on."""
    image = png(55) + bytes(5_000_000)
    async with serving(artifacts, FakeEngine()) as running:
        reader, writer = await connected(running)
        for _ in range(2):
            writer.write(request(image))
            status, body = await answer(reader)
            assert status == b"HTTP/1.1 200 OK"
            assert b'"class_id":55,' in body
        writer.close()


async def test_expect_continue(artifacts: Path) -> None:
    """A client that asks whether to send its body is told to at once, and gets its answer afterwards."""
    async with serving(artifacts, FakeEngine()) as running:
        reader, writer = await connected(running)
        whole = request(png(66), b"Expect: 100-continue")
        head, _, image = whole.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        async with asyncio.timeout(10):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(image)
        status, body = await answer(reader)
        writer.close()

    assert status == b"HTTP/1.1 200 OK"
    assert b'"class_id":66,' in body


async def test_an_offer_in_two_packets(artifacts: Path) -> None:
    """Wherever a packet ends in a head that offers to change to HTTP/2, the image after it is not lost."""
    whole = request(png(7), b"Connection: Upgrade", b"Upgrade: h2c")
    head_bytes = whole.index(b"\r\n\r\n") + 4
    statuses = set()
    async with serving(artifacts, FakeEngine()) as running:
        reader, writer = await connected(running)
        for cut in range(1, head_bytes + 1):
            for piece in (whole[:cut], whole[cut:]):
                writer.write(piece)
                await settle()  # the server reads what there is
            async with asyncio.timeout(10):
                statuses.add((await answer(reader))[0])
        writer.close()

    assert statuses == {b"HTTP/1.1 200 OK"}


async def test_a_head_byte_by_byte(artifacts: Path) -> None:
    """A head that comes one byte at a time ends where it ends, whatever its bytes might be the start of."""
    whole = b"\r\n" + request(png(7), b"Up: x", b"Connection: Upgrade", b"Upgrade: h2c")
    async with serving(artifacts, FakeEngine()) as running:
        reader, writer = await connected(running)
        for number in range(len(whole)):
            writer.write(whole[number : number + 1])
            await settle()
        async with asyncio.timeout(10):
            status, _ = await answer(reader)
        writer.close()

    assert status == b"HTTP/1.1 200 OK"
