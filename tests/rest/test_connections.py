"""What one connection may cost: its timer, its bytes and its requests, on a scripted transport in virtual time."""

import asyncio
import gc
import socket
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from service.rest import http_protocol
from service.rest.http_protocol import MAX_PIPELINED, BoundedHeadProtocol
from service.rest.server import RestServer, listen
from tests.fakes import reached, settle
from tests.virtual_time import in_virtual_time

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: x\r\n"
KEEP_ALIVE_S = 75


class Wire(asyncio.Transport):
    """A transport that records what is written. `gone` is what its socket tells once the client has left."""

    def __init__(self, protocol: BoundedHeadProtocol) -> None:
        super().__init__({"socket": self})
        self.protocol = protocol
        self.sent = b""
        self.gone = self.ended = self.reading_paused = False
        self.closed_s: float | None = None
        self.began_s = asyncio.get_running_loop().time()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed_s is not None

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def getsockname(self) -> tuple[str, int]:
        return "10.0.0.1", 80

    def getpeername(self) -> tuple[str, int]:
        return "10.0.0.2", 1234

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return int(self.gone)

    def close(self) -> None:
        if self.closed_s is None:
            self.closed_s = asyncio.get_running_loop().time() - self.began_s
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close


class App:
    """Answers 200 once `gate` is set and, where `reads`, the body is there. Counts what it sees."""

    def __init__(self, *, reads: bool = False) -> None:
        self.reads = reads
        self.watches = False  # for a client that leaves before its answer
        self.gate = asyncio.Event()
        self.gate.set()
        self.bodies: list[bytes] = []
        self.scopes: list[Scope] = []
        self.disconnected = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body, more = b"", self.reads
        while more:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected += 1
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        if self.watches and (await receive())["type"] == "http.disconnect":
            self.disconnected += 1
            return
        await self.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def connect(app: App, state: ServerState | None = None, limit: int | None = None) -> tuple[BoundedHeadProtocol, Wire]:
    """A connection to that application, on a wire."""
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, limit_concurrency=limit)
    config.timeout_keep_alive = KEEP_ALIVE_S
    protocol = BoundedHeadProtocol(config, state or ServerState(), {}, asyncio.get_running_loop())
    wire = Wire(protocol)
    protocol.connection_made(wire)
    return protocol, wire


async def closed_s(wire: Wire) -> float | None:
    """When the server closed that connection, in seconds since it was made; None where it never does."""
    await asyncio.sleep(1000)
    return None if wire.closed_s is None else round(wire.closed_s, 1)


@pytest.mark.parametrize(
    ("pieces", "reads", "seconds"),
    [
        ((), False, 20),
        ((b"GET / HT",), False, 20),
        ((b"\r\n",), False, 20),
        ((GET,), False, KEEP_ALIVE_S),
        ((GET, b"\r\n", b"\r\n"), False, KEEP_ALIVE_S + 2),
        ((GET, b"\r\n", b"GET /x"), False, 2 + 20),
        ((POST + b"Content-Length: 100\r\n\r\n",), False, 5),
        ((POST + b"Content-Length: 100\r\n\r\n", b"A"), False, 5),
        ((POST + b"Content-Length: 100\r\n\r\nA",), True, 10 + 5),
        ((POST + b"Content-Length: 20000\r\n\r\n" + bytes(19_999),), True, 10 + 10 + 5),
        ((POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n"), True, 10 + 5),
    ],
)
def test_timer(pieces: tuple[bytes, ...], reads: bool, seconds: float) -> None:
    """A connection is closed some time after the client stopped, wherever that is; pieces come every second."""

    @in_virtual_time
    async def run() -> None:
        protocol, wire = connect(App(reads=reads))
        for piece in pieces:
            protocol.data_received(piece)
            await asyncio.sleep(1)
        assert seconds - len(pieces) <= (await closed_s(wire) or 0) <= seconds + len(pieces)
        assert protocol.timeout_keep_alive_task is None

    run()


@in_virtual_time
async def test_one_timer() -> None:
    """A connection that waits for its client has one timer; none is left after a reset."""
    app = App()
    protocol, wire = connect(app)
    loop: Any = asyncio.get_running_loop()

    def timers() -> int:
        return sum(not timer.cancelled() for timer in loop._scheduled)

    counted = [timers()]
    for piece in (b"GET /x HTTP/1.1\r\n", b"Host: x\r\n\r\n", b"\r\n", GET * 3, b"GET"):
        protocol.data_received(piece)
        await settle()
        counted.append(timers())
    protocol.connection_lost(ConnectionResetError())

    assert counted == [1] * 6
    assert timers() == 0
    assert wire.sent.count(b"200 OK") == 4

    app.gate.clear()
    protocol, wire = connect(app)
    protocol.data_received(GET * 2)
    await settle()
    wire.close()
    await settle()
    app.gate.set()
    await settle()
    assert timers() == 0


@in_virtual_time
async def test_body_rate() -> None:
    """A body that comes fast enough may take any time, and so may one that the server does not take."""
    app = App(reads=True)
    protocol, wire = connect(app)
    protocol.data_received(POST + b"Content-Length: 1000000\r\n\r\n")
    for _ in range(100):
        protocol.data_received(bytes(10_000))
        await asyncio.sleep(4.5)
    assert app.bodies == [bytes(1_000_000)]

    app.reads = False
    app.gate.clear()
    protocol.data_received(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(300_000))
    assert wire.reading_paused
    await asyncio.sleep(500)
    assert not wire.is_closing()

    app.gate.set()
    assert await closed_s(wire) is not None


@in_virtual_time
async def test_slow_body() -> None:
    """A client whose body comes too slowly is told 408, and its request ends."""
    app = App(reads=True)
    protocol, wire = connect(app)
    protocol.data_received(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(100_000))
    for _ in range(12):
        protocol.data_received(b"x")
        await asyncio.sleep(2)

    assert wire.sent.startswith(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n")
    assert (wire.ended, app.disconnected) == (True, 1)
    assert await closed_s(wire) == 10 + 10 + 5


@in_virtual_time
async def test_answer_is_not_taken() -> None:
    """A client that does not take its answer is cut off; one that takes it slowly is not."""
    protocol, wire = connect(App())
    protocol.data_received(GET)
    for _ in range(10):
        protocol.pause_writing()
        await asyncio.sleep(15)
        protocol.resume_writing()
        await asyncio.sleep(15)
    assert not wire.is_closing()

    protocol.pause_writing()
    assert await closed_s(wire) == 10 * 30 + 20


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"])
@in_virtual_time
async def test_early_answer(expects: bytes) -> None:
    """An answer before the whole body says that the connection closes; what else comes is dropped, then it closes."""
    app = App()
    protocol, wire = connect(app)
    protocol.data_received(POST + expects + b"Content-Length: 100\r\n\r\n" + b"A" * 10)
    await settle()
    protocol.data_received(b"A" * 90 + GET)
    await settle()

    assert wire.sent == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    assert (wire.ended, wire.is_closing(), len(app.scopes)) == (True, False, 1)
    assert not protocol.eof_received()
    assert await closed_s(wire) == 5


@in_virtual_time
async def test_whole_request() -> None:
    """An answer to a whole request keeps the connection, also where its body was not read."""
    protocol, wire = connect(App())
    protocol.data_received(POST + b"Content-Length: 3\r\n\r\nAAA")
    await settle()
    protocol.data_received(GET)
    await settle()

    assert wire.sent == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" * 2


@in_virtual_time
async def test_pipelined() -> None:
    """So many requests of a connection may wait; all that were accepted are answered before it closes."""
    app = App()
    app.gate.clear()
    protocol, wire = connect(app)
    protocol.data_received(GET * 13_000)
    await settle()
    waiting = len(protocol.pipeline)
    for _ in range(100):
        protocol.data_received(GET * 1000)
    app.gate.set()
    await asyncio.sleep(1)

    assert waiting == MAX_PIPELINED
    assert wire.sent.count(b"200 OK") == len(app.scopes) == 1 + MAX_PIPELINED
    assert wire.sent.count(b"connection: close") == 1
    assert wire.ended


@pytest.mark.parametrize(
    ("start", "block"),
    [
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"aa: bb\r\n"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
        (b"", b"\r\n"),
        (b"GET /x HTTP/1.1\r\n", b"a: b\r\n"),
    ],
    ids=["trailers", "extension", "blank lines", "head"],
)
def test_endless(start: bytes, block: bytes) -> None:
    """What nothing reads is bounded as a head is."""

    @in_virtual_time
    async def run() -> None:
        app = App(reads=True)
        protocol, wire = connect(app)
        protocol.data_received(start)
        taken = 0
        while not wire.sent and taken < 1 << 20:
            protocol.data_received(block * (1024 // len(block)))
            taken += 1024
            await settle()

        assert taken <= http_protocol.MAX_HEAD_BYTES + 2048
        assert wire.sent.startswith(b"HTTP/1.1 431 ")
        assert all(len(scope["headers"]) == 2 for scope in app.scopes)

    run()


@in_virtual_time
async def test_refused_with_a_body() -> None:
    """What comes with a head that is refused, however much, does not add a second answer to its 400."""
    protocol, wire = connect(App())
    protocol.data_received(POST + b"bad header\r\nContent-Length: 100000\r\n\r\n" + b"A" * 100_000)
    await settle()

    assert wire.sent.startswith(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n")
    assert (wire.sent.count(b"HTTP/1.1"), wire.ended) == (1, True)


@in_virtual_time
async def test_refused_body() -> None:
    """A body that cannot be read ends its request, with 400 and nothing after it, also where the client asked first."""
    app = App(reads=True)
    protocol, wire = connect(app)
    protocol.data_received(POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
    await settle()

    assert wire.sent.startswith(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n")
    assert (wire.sent.count(b"HTTP/1.1"), wire.ended, app.disconnected) == (1, True, 1)


@in_virtual_time
async def test_trailers() -> None:
    """Headers after a body are not taken for headers of the request."""
    app = App(reads=True)
    protocol, _ = connect(app)
    protocol.data_received(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Forged: yes\r\n\r\n")
    await settle()

    assert app.bodies == [b"a"]
    assert [name for name, _ in app.scopes[0]["headers"]] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /x HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET /x HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /x HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", b"400"),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /x HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 199 + b"\r\n", b"200"),
        (b"GET /x HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
    ],
)
def test_heads(request_bytes: bytes, status: bytes) -> None:
    """A request names its host once, opens no tunnel, and has so many headers at most."""

    @in_virtual_time
    async def run() -> None:
        protocol, wire = connect(App())
        protocol.data_received(request_bytes)
        await settle()
        assert wire.sent.startswith(b"HTTP/1.1 %s " % status)
        assert wire.ended == (status != b"200")

    run()


@in_virtual_time
async def test_refused_after_others() -> None:
    """Requests before one that cannot be read are answered, in their order, and then the connection closes."""
    app = App()
    app.gate.clear()
    protocol, wire = connect(app)
    protocol.data_received(GET + GET + b"nonsense\r\n\r\n")
    await settle()
    assert wire.sent == b""
    app.gate.set()
    await settle()

    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"
    assert wire.sent == answer + b"\r\nok" + answer + b"connection: close\r\n\r\nok"
    assert wire.ended


@in_virtual_time
async def test_half_close() -> None:
    """A client that closes its sending side after whole requests gets all of its answers, byte for byte."""
    app = App(reads=True)
    app.gate.clear()
    protocol, wire = connect(app)
    protocol.data_received(GET + POST + b"Content-Length: 3\r\n\r\nabc")
    await settle()
    assert protocol.eof_received()
    await asyncio.sleep(100)
    assert wire.sent == b"HTTP/1.1 "
    app.gate.set()
    await settle()

    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"
    assert wire.sent == answer + b"\r\nok" + answer + b"connection: close\r\n\r\nok"
    assert wire.is_closing()


@in_virtual_time
async def test_gone() -> None:
    """A client that has left altogether is noticed although it looks like one that closed its sending side."""
    app = App(reads=True)
    protocol, wire = connect(app)
    protocol.data_received(POST + b"Content-Length: 3\r\n\r\nab")
    await settle()
    assert not protocol.eof_received()  # the loop closes the connection

    app.gate.clear()
    protocol, wire = connect(app)
    protocol.data_received(POST + b"Content-Length: 3\r\n\r\nabc")
    await settle()
    assert protocol.eof_received()
    await asyncio.sleep(10)
    assert not wire.is_closing()
    wire.gone = True
    await asyncio.sleep(0.2)
    assert wire.is_closing()
    assert protocol.cycle.disconnected


@in_virtual_time
async def test_bound_on_connections() -> None:
    """Connections beyond the bound are closed at once, and those within it are answered."""
    state, app = ServerState(), App()
    wires = [connect(app, state, 4) for _ in range(6)]
    await settle()
    for protocol, wire in wires[:3]:
        protocol.data_received(GET)
        await settle()
        assert wire.sent.startswith(b"HTTP/1.1 200 ")

    assert [wire.is_closing() for _, wire in wires] == [False] * 3 + [True] * 3
    assert len(state.connections) == 3
    wires[0][0].connection_lost(None)
    assert not connect(app, state, 4)[1].is_closing()


@in_virtual_time
async def test_one_byte_chunks() -> None:
    """A body in one-byte chunks grows in place: what is there is not copied at each chunk."""
    app = App()
    app.gate.clear()
    protocol, wire = connect(app)
    protocol.data_received(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1\r\nx\r\n")
    first: object = protocol.cycle.body
    for _ in range(10):
        protocol.data_received(b"1\r\nx\r\n" * 1000)

    assert protocol.cycle.body is first
    assert first == b"x" * 10_002
    assert not wire.reading_paused


@in_virtual_time
async def test_no_cycle() -> None:
    """A connection that is over is freed without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        protocol, wire = connect(App(reads=True))
        protocol.data_received(POST + b"Content-Length: 3\r\n\r\nabc")
        await settle()
        left = weakref.ref(protocol)
        protocol.shutdown()
        await settle()
        del protocol, wire.protocol
        assert left() is None
    finally:
        gc.enable()


@in_virtual_time
async def test_stop() -> None:
    """At the stop an idle connection closes, a lingering one too, and a request that still comes is the last one."""
    app = App(reads=True)
    idle, lingering, sending = connect(app), connect(app), connect(app)
    idle[0].data_received(GET)
    app.reads = False
    lingering[0].data_received(POST + b"Content-Length: 3\r\n\r\n")
    await settle()
    app.reads = True
    sending[0].data_received(POST + b"Content-Length: 3\r\n\r\n")
    await settle()
    for protocol, _ in (idle, lingering, sending):
        protocol.shutdown()
    assert [wire.is_closing() for _, wire in (idle, lingering, sending)] == [True, True, False]
    sending[0].data_received(b"abc")
    await settle()
    assert sending[1].is_closing()
    assert sending[1].sent.endswith(b"connection: close\r\n\r\nok")


@pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_real_sockets(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """On both event loops a half-closed request is answered, a client that left is noticed, and no answer is reset."""

    async def run() -> None:
        app = App(reads=True)
        listener = listen("127.0.0.1", 0)
        server = RestServer(app, listener, KEEP_ALIVE_S)
        await server.start()

        async def send(data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            return reader, writer

        app.gate.clear()
        reader, writer = await send(POST + b"Content-Length: 3\r\n\r\nabc")
        writer.write_eof()
        await reached(lambda: len(app.bodies) == 1)
        app.gate.set()
        whole = await reader.read()
        writer.close()

        app.gate.clear()
        app.watches = True
        _, writer = await send(POST + b"Content-Length: 3\r\n\r\nabc")
        await reached(lambda: len(app.bodies) == 2)
        writer.close()
        await reached(lambda: app.disconnected == 1)
        app.gate.set()

        app.reads = app.watches = False
        reader, writer = await send(POST + b"Content-Length: 5000000\r\n\r\n" + bytes(5_000_000) + GET)
        early = await reader.read()
        writer.close()
        await server.stop()

        assert (whole[:15], whole[-2:]) == (b"HTTP/1.1 200 OK", b"ok")
        assert (early.count(b"HTTP/1.1"), early.count(b"connection: close"), early[-2:]) == (1, 1, b"ok")

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
