"""Calls to inference servers: which is asked, what is asked again and what is not, time, cancellation."""

import asyncio
from collections import Counter

import grpc
import pytest

from service.common.errors import (
    BadImage,
    BadRequest,
    DeadlineExceeded,
    EngineError,
    ModelNotFound,
    NotReady,
    Overloaded,
    TooLarge,
    TopfiveError,
)
from service.gateway.load_balancer import Replicas, Target, parse_targets
from service.gateway.retries import MAX_BROKEN
from tests.inference_servers import Context, Inference, asked, asking, refusing

pytestmark = pytest.mark.anyio

STATUS = grpc.StatusCode
LOST = refusing(STATUS.UNAVAILABLE, "Socket closed")
STOPPING = refusing(STATUS.UNAVAILABLE, "stopping", ("topfive-code", "shutting_down"))
UNKNOWN = refusing(STATUS.NOT_FOUND, "there is no such model", ("topfive-code", "model_not_found"))
FULL = refusing(STATUS.RESOURCE_EXHAUSTED, "full", ("topfive-code", "overloaded"), ("grpc-retry-pushback-ms", "2500"))


async def test_servers_share_the_calls() -> None:
    """Calls one after the other go to every server in turn."""
    servers = [Inference(label) for label in "abc"]
    async with asked(*servers) as asker:
        answered = Counter([await asker.label() for _ in range(30)])

    assert answered == {"a": 10, "b": 10, "c": 10}


async def test_no_proxy_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are asked directly, whatever proxy the environment names for the way out."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with asked(Inference("direct")) as asker:
        assert await asker.label() == "direct"


async def test_the_least_busy_is_asked() -> None:
    """A server that is slow gets no second call while another is free."""
    slow, fast = Inference("slow"), Inference("fast")
    gate = asyncio.Event()

    async def wait(_context: Context) -> None:
        await gate.wait()

    slow.script = [wait]
    async with asked(slow, fast) as asker:
        calls = [asyncio.create_task(asker.label()) for _ in range(2)]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        labels = [await asker.label() for _ in range(10)]
        gate.set()
        await asyncio.gather(*waiting)

    assert [task.result() for task in done] == ["fast"]
    assert labels == ["fast"] * 10
    assert slow.calls == 1


@pytest.mark.parametrize(("step", "code"), [(LOST, "not_ready"), (STOPPING, "shutting_down")], ids=["lost", "stopping"])
async def test_asked_again(step: object, code: str) -> None:
    """A call whose connection broke, or whose server stops, is answered by another server, with all of 5 MB."""
    one, other = Inference("one"), Inference("other")
    async with asked(one, other) as asker:
        one.script = other.script = [step]  # type: ignore[list-item]
        answer = await asker.classify(bytes(5_000_000))

    assert answer.predictions[0].class_id == 5_000_000
    assert (one.calls, other.calls) == (1, 1)
    assert asker.retried(code) == 1


async def test_alone_it_is_asked_again() -> None:
    """Where there is one server, it is the one that is asked again."""
    server = Inference("alone")
    async with asked(server) as asker:
        server.script = [STOPPING, LOST, STOPPING]
        assert await asker.label() == "alone"

    assert server.calls == 4


async def test_an_image_that_kills() -> None:
    """A call that breaks every connection ends after a fixed number of them, whatever time is left."""
    servers = [Inference("one"), Inference("other")]
    async with asked(*servers) as asker:
        for server in servers:
            server.script = [LOST] * 100
        with pytest.raises(NotReady, match="Socket closed"):
            await asker.classify()

    assert sum(server.calls for server in servers) == MAX_BROKEN


async def test_full_here_free_there() -> None:
    """A server without room passes the call to another; without another, its own time to wait comes back."""
    full, free = Inference("full"), Inference("free")
    async with asked(full, free) as asker:
        full.script = free.script = [FULL]
        assert await asker.label() in ("full", "free")
    assert full.calls + free.calls == 2

    alone = Inference("alone")
    async with asked(alone) as asker:
        alone.script = [FULL]
        with pytest.raises(Overloaded) as caught:
            await asker.classify()
    assert alone.calls == 1
    assert caught.value.retry_after_s == 2.5
    assert caught.value.detail == "full"


async def test_full_everywhere() -> None:
    """Of three servers without room two are asked: more would only add to their load."""
    servers = [Inference(label) for label in "abc"]
    async with asked(*servers) as asker:
        for server in servers:
            server.script = [FULL] * 3
        with pytest.raises(Overloaded):
            await asker.classify()

    assert sum(server.calls for server in servers) == 2


async def test_not_ready_is_asked_of_each_once() -> None:
    """A model that cannot be loaded is asked of every server, and the refusal passed on at once."""
    servers = [Inference(label) for label in "abc"]
    async with asked(*servers) as asker:
        for server in servers:
            server.script = [refusing(STATUS.UNAVAILABLE, "tiny is damaged", ("topfive-code", "not_ready"))] * 2
        with pytest.raises(NotReady, match=r"^tiny is damaged$"):
            await asker.classify()

    assert [server.calls for server in servers] == [1, 1, 1]


async def test_a_model_of_some_servers() -> None:
    """A model that one server does not have is asked of every other, and is unknown only where all say so."""
    servers = [Inference(label) for label in "abc"]
    async with asked(*servers) as asker:
        servers[0].script = [UNKNOWN] * 20
        servers[1].script = [UNKNOWN] * 20
        labels = {await asker.label() for _ in range(6)}
        servers[2].script = [UNKNOWN]
        with pytest.raises(ModelNotFound, match=r"^there is no such model$"):
            await asker.classify()
        servers[2].script = [refusing(STATUS.UNAVAILABLE, "it is damaged", ("topfive-code", "not_ready"))] * 3
        for _ in range(3):
            with pytest.raises(NotReady, match=r"^it is damaged$"):
                await asker.classify()

    assert labels == {"c"}


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (STATUS.INVALID_ARGUMENT, "bad_request", BadRequest),
        (STATUS.INVALID_ARGUMENT, "too_large", TooLarge),
        (STATUS.INVALID_ARGUMENT, "bad_image", BadImage),
        (STATUS.DEADLINE_EXCEEDED, "deadline_exceeded", DeadlineExceeded),
        (STATUS.INTERNAL, "internal", EngineError),
        (STATUS.INTERNAL, "of a later version", EngineError),
        (STATUS.INTERNAL, "", EngineError),
        (STATUS.UNIMPLEMENTED, "", EngineError),
        (STATUS.DEADLINE_EXCEEDED, "", DeadlineExceeded),
        (STATUS.RESOURCE_EXHAUSTED, "", TooLarge),
    ],
)
async def test_never_asked_again(status: grpc.StatusCode, code: str, kind: type[TopfiveError]) -> None:
    """Every other error is passed on as what it is, in its own words, after one call."""
    one, other = Inference("one"), Inference("other")
    step = refusing(status, "why it is so", *([("topfive-code", code)] if code else []))
    async with asked(one, other) as asker:
        one.script, other.script = [step], [step]
        with pytest.raises(kind) as caught:
            await asker.classify()

    assert type(caught.value) is kind
    assert one.calls + other.calls == 1
    assert "why it is so" in caught.value.detail or not code
    if code and code in kind.code:
        assert caught.value.detail == "why it is so"


async def test_a_server_returns() -> None:
    """A call that finds no server waits for one, and is answered as soon as it has started again."""
    server = Inference("back")
    async with server.listening():
        replicas = Replicas(parse_targets(server.address))
    async with asking(replicas, 0) as asker:
        call = asyncio.create_task(asker.label(within_s=20))
        await asker.replicas.change(0.5)
        assert not call.done()
        async with server.listening():
            assert await call == "back"


async def test_no_server_in_time() -> None:
    """A call that finds no server until its deadline says which were looked for, and may be tried again."""
    async with asking(Replicas(parse_targets("127.0.0.1:1")), 0) as asker:
        with pytest.raises(NotReady, match=r"no inference server can be reached at 127\.0\.0\.1:1"):
            await asker.classify(within_s=0.3)


async def test_one_that_is_not_ready_comes_last() -> None:
    """A server that says it is not ready gets a call only where no other is there."""
    ready, loading = Inference("ready"), Inference("loading")
    async with asked(ready, loading) as asker:
        await loading.serving(False)
        await asker.ready(1)
        first = {await asker.label() for _ in range(6)}
        await ready.serving(False)
        await asker.ready(0)
        then = {await asker.label() for _ in range(6)}

    assert first == {"ready"}
    assert then == {"ready", "loading"}


async def test_the_deadline_goes_along() -> None:
    """A server sees the time that the caller has left, and a call that lasts longer is over then."""
    server = Inference("slow")
    forever = asyncio.Event()

    async def wait(_context: Context) -> None:
        await forever.wait()

    async with asked(server) as asker:
        await asker.classify(within_s=3.0)
        server.script = [wait]
        with pytest.raises(DeadlineExceeded):
            await asker.classify(within_s=0.3)

    assert 2.0 < server.left_s[0] < 3.5  # the wire rounds up
    assert 0.0 < server.left_s[1] < 0.8


async def test_a_caller_leaves() -> None:
    """A caller that is cancelled cancels the call at the server."""
    server = Inference("slow")
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(_context: Context) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asked(server) as asker:
        server.script = [wait]
        call = asyncio.create_task(asker.classify())
        await begun.wait()
        call.cancel()
        async with asyncio.timeout(10):
            await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asker.label() == "slow"


async def test_a_name_is_asked_again() -> None:
    """A server that joins a name gets calls, one that leaves it gets none, and a failing look-up changes nothing."""
    old, new = Inference("old"), Inference("new")
    answers: list[set[str] | OSError] = []
    looked = asyncio.Semaphore(0)

    async def look(_target: Target) -> set[str]:
        looked.release()
        found = answers[0]
        if isinstance(found, OSError):
            raise found
        return found

    async with old.listening(), new.listening():
        answers.append({old.address})
        async with asking(Replicas(parse_targets("inference:8001"), look, resolve_every_s=0.01), 1) as asker:
            before = {await asker.label() for _ in range(6)}
            answers[0] = {old.address, new.address}
            await asker.ready(2)
            both = {await asker.label() for _ in range(6)}
            answers[0] = {new.address}
            await asker.ready(1)
            answers[0] = OSError("no such name")
            for _ in range(looked._value + 5):
                await looked.acquire()
            after = {await asker.label() for _ in range(6)}

    assert (before, both, after) == ({"old"}, {"old", "new"}, {"new"})


async def test_a_slow_name_keeps_no_other_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """Servers are found while another name gets no answer or none that can be read, which is said once."""
    server = Inference("there")
    asked_wrong = asyncio.Semaphore(0)

    async def look(target: Target) -> set[str]:
        if target.host == "silent":
            await asyncio.Event().wait()
        if target.host == "wrong..name":
            asked_wrong.release()
            raise UnicodeError("label empty or too long")
        return {server.address}

    replicas = Replicas(parse_targets("silent:1,wrong..name:1,there:1"), look, resolve_every_s=0.01)
    async with server.listening(), asking(replicas, 1) as asker:
        assert await asker.label() == "there"
        for _ in range(5):
            await asked_wrong.acquire()

    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert "wrong..name:1 has no address" in said[0]


async def test_another_service(caplog: pytest.LogCaptureFixture) -> None:
    """A server of gRPC that knows nothing of this service is never asked, and the log says so once."""
    stranger, bare = Inference("stranger"), grpc.aio.server()
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    async with stranger.listening():
        await stranger.serving(None)
        replicas = Replicas(parse_targets(f"{stranger.address},127.0.0.1:{port}"))
        async with asking(replicas, 0) as asker:
            async with asyncio.timeout(20):
                while len(caplog.records) < 2:
                    await replicas.change(0.1)
            with pytest.raises(NotReady, match="is topfive serve running there, and is that its gRPC port"):
                await asker.classify(within_s=0.2)
            assert not replicas.answering
            await stranger.serving(True)
            await asker.ready(1)
            assert await asker.label() == "stranger"
    await bare.stop(None)

    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(said) == sorted(
        f"inference server {address} is another service; give the gRPC port of topfive serve"
        for address in (stranger.address, f"127.0.0.1:{port}")
    )


def test_many_targets_make_no_long_message() -> None:
    """Of many targets a message names the first few."""
    replicas = Replicas(parse_targets(",".join(f"h{i}:1" for i in range(500))))

    assert str(replicas) == "h0:1, h1:1, h2:1 and 497 more"


def test_targets() -> None:
    """Names, addresses and several of them are read; the same one twice counts once."""
    given = " inference:8001, 10.0.0.1:80,[::1]:8001,dns:///inference:8001,"
    targets = (Target("inference", 8001), Target("10.0.0.1", 80), Target("::1", 8001))

    assert parse_targets(given) == targets
    assert parse_targets(",".join(map(str, targets))) == targets


@pytest.mark.parametrize("given", ["", " , ", "inference", "inference:", ":8001", "inference:x", "a:0", "a:70000"])
def test_no_targets(given: str) -> None:
    """Anything else is refused with a right one."""
    with pytest.raises(ValueError, match="inference:8001"):
        parse_targets(given)
