"""Calls to inference servers: which server answers, what is sent again and what is not, and the time of a call."""

import asyncio
from collections import Counter
from collections.abc import Collection
from contextlib import suppress

import grpc
import pytest

from service.common.errors import (
    BadImage,
    DeadlineExceeded,
    EngineError,
    NotReady,
    Overloaded,
    ShuttingDown,
    TooLarge,
    TopfiveError,
)
from service.gateway.replicas import Target, parse_targets
from tests.fakes import reached
from tests.gateway.inference_servers import Context, Inference, Step, connected, plane_of, refusing

pytestmark = pytest.mark.anyio

STATUS = grpc.StatusCode
LOST = refusing(STATUS.UNAVAILABLE, "Socket closed")
STOPPING = refusing(STATUS.UNAVAILABLE, "stopping", ("topfive-code", "shutting_down"))
DAMAGED = refusing(STATUS.UNAVAILABLE, "tiny is damaged", ("topfive-code", "not_ready"))
FULL = refusing(STATUS.RESOURCE_EXHAUSTED, "full", ("topfive-code", "overloaded"), ("grpc-retry-pushback-ms", "2500"))


async def test_servers_share_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls go to every server in turn, directly, whatever proxy the environment names for the way out."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with connected(*map(Inference, "abc")) as plane:
        answered = Counter([await plane.label() for _ in range(30)])

    assert answered == {"a": 10, "b": 10, "c": 10}


RETRIED = [
    pytest.param(LOST, "not_ready", NotReady, id="lost"),
    pytest.param(STOPPING, "shutting_down", ShuttingDown, id="stopping"),
    pytest.param(DAMAGED, "not_ready", NotReady, id="damaged"),
    pytest.param(FULL, "overloaded", Overloaded, id="full"),
]


@pytest.mark.parametrize(("step", "code", "kind"), RETRIED)
async def test_another_server_answers(step: Step, code: str, kind: type[TopfiveError]) -> None:
    """A call whose connection broke, or that its server refuses, is answered by another server, with all of 5 MB."""
    one, other = Inference("one"), Inference("other")
    async with connected(one, other) as plane:
        one.script = other.script = [step]
        answer = await plane.classify(bytes(5_000_000))

    assert answer.predictions[0].class_id == 5_000_000
    assert (one.calls, other.calls) == (1, 1)
    assert plane.retried(code) == 1


@pytest.mark.parametrize(("step", "code", "kind"), RETRIED)
async def test_two_servers_are_called_at_most(step: Step, code: str, kind: type[TopfiveError]) -> None:
    """A call that two servers refuse is refused, however many others there are."""
    servers = list(map(Inference, "abc"))
    async with connected(*servers) as plane:
        for server in servers:
            server.script = [step]
        with pytest.raises(kind) as caught:
            await plane.classify()

    assert type(caught.value) is kind
    assert sorted(server.calls for server in servers) == [0, 1, 1]
    assert plane.retried(code) == 1
    if isinstance(caught.value, Overloaded):
        assert (caught.value.detail, caught.value.retry_after_s) == ("full", 2.5)


async def test_a_full_server_refuses_again() -> None:
    """A call that gRPC sends to the same full server again goes on to another one that has room."""
    full, free = Inference("full"), Inference("free")
    step = refusing(STATUS.RESOURCE_EXHAUSTED, "full", ("topfive-code", "overloaded"), ("topfive-server", "a"))
    async with connected(full, free) as plane:
        full.script = [step] * 100
        labels = await asyncio.gather(*(plane.label() for _ in range(40)))
        free.script = [step] * 100  # as if it were the same server
        with pytest.raises(Overloaded):
            await plane.label()

    assert set(labels) == {"free"}
    assert full.calls > 10


async def test_an_image_that_kills() -> None:
    """An image that ends the process of its server ends two of four, and the others serve on."""
    servers = list(map(Inference, "abcd"))
    async with connected(*servers) as plane:
        with pytest.raises(NotReady):
            await plane.classify(b"poison")
        alive = {server.label for server in servers if server.alive}
        answered = {await plane.label() for _ in range(8)}

    assert len(alive) == 2
    assert answered == alive
    assert sum(server.calls for server in servers) == 2 + 8


@pytest.mark.parametrize(
    ("status", "code", "kind", "detail"),
    [
        (STATUS.INVALID_ARGUMENT, "bad_image", BadImage, "why it is so"),
        (STATUS.DEADLINE_EXCEEDED, "deadline_exceeded", DeadlineExceeded, "why it is so"),
        (STATUS.INTERNAL, "internal", EngineError, "why it is so"),
        (STATUS.INTERNAL, "of a later version", EngineError, "of a later version: why it is so"),
        (STATUS.INTERNAL, "", EngineError, "the inference server failed with INTERNAL: why it is so"),
        (STATUS.UNIMPLEMENTED, "", EngineError, "the inference server failed with UNIMPLEMENTED: why it is so"),
        (STATUS.DEADLINE_EXCEEDED, "", DeadlineExceeded, DeadlineExceeded().detail),
        (STATUS.RESOURCE_EXHAUSTED, "", TooLarge, "the inference server does not take the image: why it is so"),
    ],
)
async def test_not_sent_again(status: grpc.StatusCode, code: str, kind: type[TopfiveError], detail: str) -> None:
    """The gateway passes every other error on as what it is, in its own words, after one call."""
    one, other = Inference("one"), Inference("other")
    step = refusing(status, "why it is so", *([("topfive-code", code)] if code else []))
    async with connected(one, other) as plane:
        one.script, other.script = [step], [step]
        with pytest.raises(kind) as caught:
            await plane.classify()

    assert (type(caught.value), caught.value.detail) == (kind, detail)
    assert one.calls + other.calls == 1


async def test_a_server_returns() -> None:
    """A call that finds no server waits for one, and is answered as soon as it has started again."""
    server = Inference("back")
    async with connected(server) as plane:
        with pytest.raises(NotReady):
            await plane.classify(b"poison", within_s=1)
        call = asyncio.create_task(plane.label(within_s=20))
        async with server.listening():
            assert await call == "back"


async def test_a_server_that_is_not_ready() -> None:
    """A server that says it is not ready gets no call until it is ready again."""
    one, other = Inference("one"), Inference("other")
    async with connected(one, other) as plane:
        await other.set_ready(False)
        await plane.until_called(one)
        await one.set_ready(False)
        with suppress(NotReady):
            while True:
                await plane.classify(within_s=0.3)
        for server in (one, other):
            server.left_s.clear()
        waiting = asyncio.create_task(plane.label())
        await other.set_ready(True)
        assert await waiting == "other"

    assert (one.calls, other.calls) == (0, 1)


def waiting_for(event: asyncio.Event) -> Step:
    """A step that ends with that event."""

    async def wait(_context: Context) -> None:
        await event.wait()

    return wait


async def test_the_deadline_goes_along() -> None:
    """A server sees the time that the caller has left, and a call that lasts longer ends then."""
    server = Inference("slow")
    async with connected(server) as plane:
        await plane.classify(within_s=60.0)
        server.script = [waiting_for(asyncio.Event())]
        with pytest.raises(DeadlineExceeded):
            await plane.classify(within_s=0.3)

    assert 10.0 < server.left_s[0] < 61.0  # the wire rounds up
    assert server.left_s[1] < 0.8


class Names:
    """A resolver for any name: it finds `found`, or raises it. `looked` counts the look-ups."""

    def __init__(self, *found: Target) -> None:
        self.found: Collection[Target] | OSError = found
        self.looked = 0

    async def __call__(self, _target: Target) -> Collection[Target]:
        self.looked += 1
        if isinstance(self.found, OSError):
            raise self.found
        return self.found


async def test_servers_of_a_name_come_and_go() -> None:
    """A server that joins a name gets calls, one that leaves it gets none but ends those it has.

    A look-up that fails changes nothing.
    """
    old, new = Inference("old"), Inference("new", "127.0.0.2")
    async with old.listening(), new.listening():
        names, gate = Names(old.target), asyncio.Event()
        async with plane_of(parse_targets("inference:8001"), resolve=names, resolve_every_s=0.01) as plane:
            await plane.until_called(old)
            names.found = [old.target, new.target]
            await plane.until_called(old, new)
            old.script = [waiting_for(gate)]
            calls = [asyncio.create_task(plane.label()) for _ in range(2)]
            await reached(lambda: old.calls == 1)
            names.found = [new.target]
            await plane.until_called(new)
            gate.set()
            assert set(await asyncio.gather(*calls)) == {"old", "new"}
            names.found, before = OSError("no such name"), names.looked
            await reached(lambda: names.looked > before + 5)
            assert {await plane.label() for _ in range(6)} == {"new"}


async def test_a_name_moves_while_calls_wait() -> None:
    """A call that finds no server until its deadline is refused; one that waits goes where its name leads by then."""
    new = Inference("new")
    names = Names(Target("127.0.0.1", 1))
    async with plane_of(parse_targets("inference:8001"), resolve=names, resolve_every_s=0.01) as plane, new.listening():
        with pytest.raises(NotReady, match="no inference server at inference:8001 is ready"):
            await plane.classify(within_s=0.3)
        waiting = asyncio.create_task(plane.label())
        names.found = [new.target]
        assert await waiting == "new"


async def test_a_slow_name_keeps_no_other_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """Servers are found while the look-up of another name never ends or fails, which the log says once."""
    server = Inference("there")
    wrong: list[Target] = []

    async def look(target: Target) -> Collection[Target]:
        if target.host == "silent":
            await asyncio.Event().wait()
        if target.host == "wrong..name":
            wrong.append(target)
            raise UnicodeError("label empty or too long")
        return [server.target]

    targets = parse_targets("silent:1,wrong..name:1,there:1")
    async with server.listening(), plane_of(targets, resolve=look, resolve_every_s=0.01) as plane:
        assert await plane.label() == "there"
        await reached(lambda: len(wrong) > 5)

    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "wrong..name:1 has no address" in said


async def test_names_and_families_together() -> None:
    """Calls go in turn to servers behind a name, an address of IPv4 and one of IPv6."""
    named, v4, v6 = Inference("named"), Inference("v4", "127.0.0.2"), Inference("v6", "::1")
    async with named.listening(), v4.listening(), v6.listening():
        targets = parse_targets(f"localhost:{named.port},{v4.target},{v6.target}")
        async with plane_of(targets) as plane:
            await plane.until_called(named, v4, v6)


def test_targets() -> None:
    """Targets are names or addresses, one or several; a target that is given twice counts once."""
    given = " inference:8001, 10.0.0.1:80,[::1]:8001,dns:///inference:8001,"
    targets = (Target("inference", 8001), Target("10.0.0.1", 80), Target("::1", 8001))

    assert parse_targets(given) == targets
    assert parse_targets(",".join(map(str, targets))) == targets


@pytest.mark.parametrize("given", ["", " , ", "inference", "inference:", ":8001", "inference:x", "a:0", "a:70000"])
def test_no_targets(given: str) -> None:
    """The refusal of anything else shows a right target."""
    with pytest.raises(ValueError, match="inference:8001"):
        parse_targets(given)
