"""The HTTP of the load generator against servers that answer, stall, close and break the protocol as scripted."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadgen.connection import OK, TIMEOUT, Line, LoadError, Outcome
from loadgen.http_client import ask as ask_once
from loadgen.http_connection import Address, HttpLine
from loadgen.images import Photo, read
from loadgen.requests import Api, Form, image_request
from tests.fakes import reached
from tests.load_server import HANG_UP, SILENCE, Asked, Say, Script, reply, scripted

pytestmark = pytest.mark.anyio


class Tell:
    """Receives outcomes and wakes who waits for them."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._came = asyncio.Event()

    def __call__(self, line: Line, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._came.set()

    async def next(self) -> Outcome:
        """The next outcome."""
        await asyncio.wait_for(self._came.wait(), 10)
        self._came.clear()
        return self.outcomes[-1]


async def ask(script: Script, times: int) -> tuple[list[Outcome], Line, list[Asked]]:
    """Ask one scripted server so often on one line."""
    async with scripted(script) as server:
        tell = Tell()
        address = Address.parse(server.url)
        payload = image_request(Form(Api.RAW), address, Photo("a.jpg", b"photo", None, "image/jpeg"))
        line = HttpLine(address, [payload], tell)
        for _ in range(times):
            line.send(0, 0.0)
            await tell.next()
        await line.aclose()
        return tell.outcomes, line, server.asked


def following(answers: Sequence[Say]) -> Script:
    """Those answers, one after the other."""
    return lambda number, _asked: answers[number]


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

CHUNKED = Say(
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nServer-Ti",
        b"ming: decode;dur=1.5\r\n\r\n3\r\nabc\r\n",
        b"2\r\nde\r",
        b"\n0\r\n\r\n",
    )
)


async def test_answers_in_any_pieces() -> None:
    """Answers with a length, in chunks and in pieces are counted whole, and one connection carries them all."""
    cut = Say(tuple(bytes([byte]) for byte in reply(b"abc").pieces[0]))

    outcomes, line, asked = await ask(following([reply(b"abc"), CHUNKED, cut, reply(b"x")]), 4)

    assert [outcome.failure for outcome in outcomes] == [OK] * 4
    assert [outcome.timing for outcome in outcomes] == [b"", b"decode;dur=1.5", b"", b""]
    assert [outcome.received for outcome in outcomes] == [
        sum(len(piece) for piece in say.pieces) for say in (reply(b"abc"), CHUNKED, cut, reply(b"x"))
    ]
    assert line.connects == 1
    assert [one.body for one in asked] == [b"photo"] * 4


async def test_continue_is_no_answer() -> None:
    """100 Continue announces the answer and is not one."""
    announced = Say((b"HTTP/1.1 100 Continue\r\n\r\n", *reply().pieces))

    outcomes, line, _ = await ask(following([announced, reply()]), 2)

    assert [outcome.failure for outcome in outcomes] == [OK, OK]
    assert line.connects == 1


@pytest.mark.parametrize(
    "say",
    [
        Say(reply(b"{}", "200 OK", "Connection: close").pieces, close=True),
        Say((b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",), close=True),
        Say((b"HTTP/1.1 200 OK\r\n\r\nno length",), close=True),
    ],
    ids=["close", "http-1.0", "until-the-end"],
)
async def test_a_connection_that_ends_is_made_again(say: Say) -> None:
    """A good answer that ends its connection is good, and the next request goes over a new one."""
    outcomes, line, asked = await ask(following([say, reply()]), 2)

    assert [outcome.failure for outcome in outcomes] == [OK, OK]
    assert line.connects == 2
    assert [one.connection for one in asked] == [0, 1]


async def test_errors_are_told_apart() -> None:
    """A status, a redirect, an end without an answer, half an answer, and no HTTP are errors of their own kind."""
    answers = [
        reply(b'{"code": "overloaded"}', "429 Too Many Requests"),
        reply(b"", "302 Found", "Location: http://elsewhere/"),
        HANG_UP,
        Say((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",), close=True),
        Say((b"220 smtp.example.org ESMTP\r\n",)),
        reply(),
    ]

    outcomes, line, asked = await ask(following(answers), 6)

    assert [outcome.failure for outcome in outcomes] == [
        "status 429",
        "status 302",
        "connection closed",
        "connection closed",
        "bad answer",
        OK,
    ]
    assert outcomes[0].said == '{"code": "overloaded"}'
    assert outcomes[1].said == "redirect to http://elsewhere/"
    assert "220 smtp.example.org" in outcomes[4].said
    assert line.connects == 4
    assert len(asked) == 6


async def test_giving_up() -> None:
    """A request that is given up is a timeout, once, and a late answer to it is not taken for the next one's."""
    async with scripted(following([SILENCE, reply(b"second")])) as server:
        tell = Tell()
        line = HttpLine(Address.parse(server.url), [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], tell)
        line.send(0, 0.0)
        await reached(lambda: len(server.asked) == 1)
        line.give_up()
        line.send(0, 0.0)
        await reached(lambda: len(tell.outcomes) == 2)
        await line.aclose()

    assert [outcome.failure for outcome in tell.outcomes] == [TIMEOUT, OK]
    assert line.connects == 2


@pytest.mark.parametrize(
    ("say", "status", "body"),
    [
        (reply(b"abc", "418 I'm a teapot"), 418, b"abc"),
        (CHUNKED, 200, b"abcde"),
        (Say((b"HTTP/1.1 100 Continue\r\n\r\n", *reply(b"x").pieces)), 200, b"x"),
        (Say((b"HTTP/1.1 200 OK\r\n\r\nno ", b"length"), close=True), 200, b"no length"),
    ],
)
async def test_asking_once(say: Say, status: int, body: bytes) -> None:
    """Outside a measurement the whole answer is read, however it is framed."""
    async with scripted(following([say])) as server:
        answer = await ask_once(Address.parse(server.url), GET, 5)

    assert (answer.status, answer.body) == (status, body)


@pytest.mark.parametrize(
    ("say", "said"),
    [
        (HANG_UP, "before the whole answer"),
        (Say((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",), close=True), "before the whole answer"),
        (Say((b"220 smtp\r\n",)), "gives no answer"),
        (SILENCE, "did not answer within 0.2 s"),
    ],
)
async def test_asking_in_vain(say: Say, said: str) -> None:
    """Half an answer, another protocol or silence are said, with the address."""
    async with scripted(following([say])) as server:
        with pytest.raises(LoadError, match=f"^{server.url} .*{said}"):
            await ask_once(Address.parse(server.url), GET, 0.2)


async def test_refused() -> None:
    """Where nobody listens, that is the error."""
    async with scripted(following([])) as server:
        address = Address.parse(server.url)
    tell = Tell()
    line = HttpLine(address, [b"GET / HTTP/1.1\r\n\r\n"], tell)

    line.send(0, 0.0)

    assert (await tell.next()).failure == "connection refused"
    assert line.connects == 0
    await line.aclose()


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
async def test_addresses(url: str, authority: str, path: str) -> None:
    """Host header and path come from the URL; http:// may be left out."""
    address = Address.parse(url)

    assert (address.authority, address.path) == (authority, path)


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http://host:port", "http://host:99999", "http://a..b", "http://[::1"]
)
async def test_no_address(url: str) -> None:
    """What is no address is refused by name."""
    with pytest.raises(LoadError, match=re.escape(url)):
        Address.parse(url)


async def test_a_password_is_not_left_out_unsaid() -> None:
    """A name and a password in the address would not be sent, so they are refused, and not repeated."""
    with pytest.raises(LoadError, match="are not sent; leave them out") as caught:
        Address.parse("http://me:secret@host")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("form", "url", "path"),
    [
        (Form(Api.TOPFIVE), "host", "/predict"),
        (Form(Api.TOPFIVE, "ensemble:a+b"), "host", "/predict?model=ensemble:a+b"),
        (Form(Api.MULTIPART, "a"), "host", "/predict?model=a"),
        (Form(Api.MULTIPART, "a"), "host/classify?top_k=3", "/classify?top_k=3&model=a"),
        (Form(Api.RAW), "host", "/"),
        (Form(Api.RAW), "host/infer", "/infer"),
        (Form(Api.RAW, path="/a b/ü"), "host", "/a%20b/%C3%BC"),
        (Form(Api.RAW, path="/other"), "host/infer", "/other"),
    ],
)
async def test_paths(form: Form, url: str, path: str) -> None:
    """A request goes where the option says, else the URL, else the API."""
    payload = image_request(form, Address.parse(url), Photo("a.jpg", b"photo", None, "image/jpeg"))

    assert payload.startswith(f"POST {path} HTTP/1.1\r\nHost: host\r\n".encode())


async def test_images(tmp_path: Path, photo: bytes) -> None:
    """Files and folders are read in order with their sizes; without any one is made, of 500 x 375 and about 100 kB."""
    (tmp_path / "b.jpeg").write_bytes(photo)
    (tmp_path / "notes.txt").write_text("no image")

    made = read([])[0]

    assert (made.size, 90_000 < len(made.data) < 110_000) == ((500, 375), True)
    assert made.data == read([])[0].data
    assert [one.name for one in read([tmp_path])] == ["b.jpeg"]
    assert [one.group for one in read([tmp_path / "notes.txt", tmp_path])] == ["no image", read([tmp_path])[0].group]
    with pytest.raises(LoadError, match="holds no image"):
        read([tmp_path / "notes.txt", make_empty(tmp_path)])


def make_empty(folder: Path) -> Path:
    """An empty folder."""
    empty = folder / "empty"
    empty.mkdir()
    return empty
