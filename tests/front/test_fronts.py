"""A service with front processes: answers as one process does, and loses nothing when any of its processes ends."""

import asyncio
import gc
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto.topfive.v1 import classifier_pb2 as pb
from service.common.errors import NotReady
from service.common.settings import Settings
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.front.test_front import Checksums, expected, noisy
from tests.fronts import Fronted, fronted
from tests.rest.test_rest import until
from tests.server.test_serve import LOST_CARD, run, server, started
from tests.server.test_transports import BAD, GOOD, by_grpc, by_rest, comparable
from tests.serving import serving

pytestmark = pytest.mark.anyio

ALONE = {"connection": "close"}


def fronts_of(pid: int) -> list[int]:
    """The processes that it has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    """Whether that process is there, and not only its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_same_answers(artifacts: Path) -> None:
    """Every case of the table, both transports: the same replies, codes and words as of a service in one process."""
    async with (
        serving(artifacts, FakeEngine(), max_image_bytes=100_000, max_image_pixels=1_000_000) as one,
        fronted(artifacts, FakeEngine(), max_image_bytes=100_000, max_image_pixels=1_000_000) as many,
    ):
        for what, image, model, top_k in [*GOOD, *(case[:4] for case in BAD)]:
            for by in (by_rest, by_grpc):
                direct, through = await by(one, image, model, top_k), await by(many, image, model, top_k)
                assert comparable(direct.reply) == comparable(through.reply), what
                assert (direct.code, direct.detail) == (through.code, through.detail), what
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/predict", {"crops": 10}),
            ("/predict", {"crops": 3}),
            ("/predict", {"model": "ensemble:tiny"}),
            ("/predict", {"modle": "tiny"}),
            ("/predict", {"top_k": 1 << 70}),
            ("/compare", {"model": ["tiny", "tinny", "resnet50"]}),
            ("/compare", {"model": "tiny", "crops": 10, "top_k": 2}),
        ]
        for url, query in asked:
            answers = [await each.http.post(url, params=query, files={"image": png(9)}) for each in (one, many)]
            left, right = [(answer.status_code, comparable(answer.json())) for answer in answers]
            assert left == right, (url, query)


async def test_same_pages(artifacts: Path) -> None:
    """Lists, pages, layers and health are those of one process, and the metrics have the same families."""
    async with serving(artifacts, FakeEngine()) as one, fronted(artifacts, FakeEngine()) as many:
        names = [model["name"] for model in (await one.http.get("/models")).json()["models"]]
        pages = ["/models", *(f"/models/{name}" for name in names), "/models/tiny/layers", "/models/tin"]
        pages += ["/models/alexnet/layers", "/models/ensemble:tiny", "/livez", "/readyz"]
        for page in pages:
            left, right = await one.http.get(page), await many.http.get(page)
            assert (left.status_code, comparable(left.json())) == (right.status_code, comparable(right.json())), page
        families = [
            set(re.findall("^# TYPE (.+)$", (await each.http.get("/metrics")).text, re.MULTILINE))
            for each in (one, many)
        ]
        known = await many.stub.ListModels(pb.ListModelsRequest())
        page = await many.stub.GetModel(pb.GetModelRequest(name="tiny"))
        layers = await many.stub.GetLayers(pb.GetLayersRequest(name="tiny"))
    assert families[0] == families[1]
    assert [row.model.name for row in known.models] == names
    assert (page.info.model.name, layers.model) == ("tiny", "tiny")


async def test_connections_spread(artifacts: Path) -> None:
    """Sixteen connections that come at once are shared out evenly, and every front shows the counts of all."""
    async with fronted(artifacts, FakeEngine()) as many:
        limits = httpx.Limits(max_connections=16, max_keepalive_connections=16)
        pids = fronts_of(os.getpid())
        before = [sockets(pid) for pid in pids]
        async with httpx.AsyncClient(base_url=many.url, limits=limits, timeout=30) as client:
            answers = await asyncio.gather(
                *(client.post("/predict", files={"image": png(shade)}) for shade in range(16)),
            )
            open_now = [sockets(pid) - base for pid, base in zip(pids, before, strict=True)]
            wrong = await client.post("/predict", content=b"", headers={"content-type": "text/plain"})
            texts = await asyncio.gather(*(client.get("/metrics") for _ in range(16)))
    assert [answer.json()["predictions"][0]["class_id"] for answer in answers] == list(range(16))
    assert wrong.status_code == 400
    assert sum(open_now) == 16
    assert min(open_now) >= 5
    for text in texts:
        assert 'topfive_requests_total{code="ok",model="tiny"} 16.0' in text.text
        assert 'topfive_requests_total{code="bad_request",model="unknown"} 1.0' in text.text


def sockets(pid: int) -> int:
    """How many a process has open."""
    links = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(one))  # noqa: PTH115
        except FileNotFoundError:
            continue
    return sum(link.startswith("socket:") for link in links)


async def test_concurrent_distinct_images(artifacts: Path) -> None:
    """Four hundred images over sixty connections and both transports: each gets the answer to its own pixels."""
    images = [noisy(seed) for seed in range(400)]
    engine = Checksums(slots=2, max_batch=8)
    async with fronted(artifacts, engine, capacity=1000) as many:
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=many.url, limits=limits, timeout=60) as client:

            async def ask(number: int) -> int:
                if number % 4 == 0:
                    reply = await many.stub.Classify(pb.ClassifyRequest(image=images[number]))
                    return int(reply.predictions[0].class_id)
                answer = await client.post("/predict", files={"image": images[number]})
                return int(answer.json()["predictions"][0]["class_id"])

            got = await asyncio.gather(*(ask(number) for number in range(400)))
        await until(lambda: many.places() == 0)
        assert many.answered() == {("tiny", "ok"): 400}
    assert got == [expected(data) for data in images]


async def test_overload_and_deadlines(artifacts: Path) -> None:
    """Capacity counts over all fronts; refusals and deadlines are those of one process; who hangs up frees a place."""
    engine = FakeEngine(max_batch=1)
    async with fronted(artifacts, engine, capacity=3) as many:
        engine.gate.clear()
        held = [
            asyncio.create_task(many.http.post("/predict", files={"image": png(shade)}, headers=ALONE))
            for shade in range(3)
        ]
        await until(lambda: many.places() == 3)
        for _ in range(4):
            refused = await many.http.post("/predict", files={"image": png()}, headers=ALONE)
            assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
        held.pop().cancel()
        await until(lambda: many.places() == 2)
        late = await many.http.post("/predict", files={"image": png()}, headers={"X-Request-Timeout": "0.1"})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        await until(lambda: many.places() == 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await many.stub.Classify(pb.ClassifyRequest(image=png()), timeout=0.1)
        await until(lambda: many.places() == 2)
        engine.gate.set()
        answers = await asyncio.gather(*held)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_a_front_is_killed(artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Under load one front is killed: the other answers on, a new one comes, no place stays taken."""
    engine = FakeEngine(max_batch=4)
    async with fronted(artifacts, engine) as many:
        statuses: Counter[object] = Counter()
        stop = asyncio.Event()

        async def ask(client: httpx.AsyncClient) -> None:
            while not stop.is_set():
                try:
                    statuses[(await client.post("/predict", files={"image": png(5)})).status_code] += 1
                except httpx.TransportError:
                    statuses["cut off"] += 1

        async def more(count: int) -> None:
            enough = statuses[200] + count
            await until(lambda: statuses[200] >= enough)

        async with httpx.AsyncClient(base_url=many.url, timeout=30) as client:
            load = [asyncio.create_task(ask(client)) for _ in range(12)]
            await more(30)
            (victim, other) = fronts_of(os.getpid())
            os.kill(victim, signal.SIGKILL)
            await more(30)
            await until(lambda: len(fronts_of(os.getpid())) == 2)
            await until(lambda: len([front for front in many.service.fronts if front.listening]) == 2)
            await more(30)
            stop.set()
            await asyncio.gather(*load)
        assert other in fronts_of(os.getpid())
        await until(lambda: many.places() == 0)
    assert set(statuses) <= {200, "cut off"}
    assert 0 < statuses["cut off"] <= 12
    assert "ended with status -9; starting it again" in caplog.text


async def test_a_front_hangs(artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A front that is stopped, whose connections would wait for ever, is killed, and another takes its place."""
    async with fronted(artifacts, FakeEngine()) as many:
        (victim, other) = fronts_of(os.getpid())
        os.kill(victim, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while not set(fronts_of(os.getpid())) - {victim, other}:
                await many.http.get("/readyz")
        await until(lambda: all(front.listening for front in many.service.fronts))
        assert victim not in fronts_of(os.getpid())
        assert other in fronts_of(os.getpid())
    assert "hangs; killing it" in caplog.text


def regions() -> int:
    """How many regions of fronts this process has in its memory."""
    return Path("/proc/self/maps").read_text().count("memfd:topfive-front")


async def test_memory_of_a_killed_front(artifacts: Path) -> None:
    """What a front shared is given back when it ends, not when the garbage collector comes by."""
    async with fronted(artifacts, FakeEngine(), gateways=1) as many:
        gc.collect()
        gc.disable()
        try:
            for _ in range(2):
                answer = await many.http.post("/predict", files={"image": png(5)}, headers=ALONE)
                assert answer.status_code == 200
                (victim,) = fronts_of(os.getpid())
                os.kill(victim, signal.SIGKILL)
                await until(lambda: not many.service.fronts[0].listening)
                await until(lambda: many.service.fronts[0].listening)
                assert regions() == 1
        finally:
            gc.enable()


async def ended(pids: list[int]) -> None:
    """Until none of these processes is there."""
    await until(lambda: not any(running(pid) for pid in pids))


STUCK = """
import sys, threading, service.front.fronts as fronts, service.repository.device_discovery as devices
from tests.fakes import FakeEngine, opener
class Stuck(FakeEngine):
    def run(self, batch): threading.Event().wait()
devices.open_engine = lambda artifact, options: opener(Stuck())(artifact)
sys.exit(fronts.run_fronted(fronts.Settings.model_validate_json(sys.argv[1])))
"""


def stuck(artifacts: Path, **settings: object) -> tuple[str, ...]:
    """The command of a service with two fronts whose engine never returns."""
    values = {"models": ["tiny"], "artifacts": str(artifacts), "port": 0, "grpc_port": 0, "gateways": 2, **settings}
    return sys.executable, "-c", STUCK, json.dumps(values)


async def in_flight(client: httpx.AsyncClient, count: int) -> None:
    """Until the engine has so many images."""
    async with asyncio.timeout(20):
        while f'topfive_places{{model="tiny"}} {count}.0' not in (await client.get("/metrics")).text:
            pass


async def test_the_engine_process_is_killed(artifacts: Path) -> None:
    """Its fronts answer what they have accepted with 503, then end: no process, no port and no memory is left."""
    shared = set(os.listdir("/dev/shm"))  # noqa: PTH208
    async with started(*stuck(artifacts)) as service:
        pids = fronts_of(service.process.pid)
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            requests = [asyncio.create_task(client.post("/predict", files={"image": png()})) for _ in range(6)]
            await in_flight(client, 6)
            service.server.process.kill()
            answers = await asyncio.gather(*requests)
        await service.ended()
        await ended(pids)
        with pytest.raises(httpx.ConnectError):
            await asyncio.to_thread(httpx.get, service.url)
    assert len(pids) == 2
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "not_ready")}
    mine = {name for name in set(os.listdir("/dev/shm")) - shared if "topfive" in name}  # noqa: PTH208
    assert mine == set()


@pytest.mark.parametrize(("drain_s", "again"), [(1.0, False), (0.0, False), (60.0, True)])
async def test_stops_at_the_limit(artifacts: Path, drain_s: float, again: bool) -> None:
    """What cannot be answered is refused at the drain limit, or at once when told to stop a second time; status 0."""
    async with started(*stuck(artifacts, drain_s=drain_s)) as service:
        pids = fronts_of(service.process.pid)
        async with httpx.AsyncClient(base_url=service.url, timeout=90) as client:
            requests = [asyncio.create_task(client.post("/predict", files={"image": png()})) for _ in range(4)]
            await in_flight(client, 4)
            began = time.monotonic()
            service.server.process.send_signal(signal.SIGINT)
            if again:
                await until(lambda: sum("front" in line and "stopping" in line for line in service.log) == 2)
                service.server.process.send_signal(signal.SIGINT)
            answers = await asyncio.gather(*requests)
        assert await service.ended() == 0
        assert time.monotonic() - began < 15
        await ended(pids)
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "shutting_down")}


async def test_lost_card(artifacts: Path) -> None:
    """A card that is lost ends all processes with status 1 and its reason in the log; who waits is told so in time."""
    script = LOST_CARD.replace("service.server.app as app,", "service.front.fronts as app,").replace(
        "app.run(", "app.run_fronted("
    )
    values = {"models": ["tiny"], "artifacts": str(artifacts), "port": 0, "grpc_port": 0, "gateways": 1}
    async with started(sys.executable, "-c", script, json.dumps(values)) as service:
        pids = fronts_of(service.process.pid)
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            good = await client.post("/predict", files={"image": png(5)})
            lost = await client.post("/predict", files={"image": png(7)})
        assert await service.ended() == 1
        await ended(pids)
    assert good.status_code == 200
    assert (lost.status_code, lost.json()["code"]) in [(500, "internal"), (503, "shutting_down")]
    (said,) = [line for line in service.log if "CRITICAL" in line]
    assert "cudaErrorIllegalAddress" in said


async def test_a_signal_to_the_whole_group(artifacts: Path) -> None:
    """SIGTERM to every process at once, as some supervisors send it, ends all of them in order."""
    async with server(artifacts, "--gateways", "2") as service:
        pids = fronts_of(service.process.pid)
        for pid in (*pids, service.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert await service.ended() == 0
        await ended(pids)
    assert sum(": stopped" in line for line in service.log) == 3
    assert not [line for line in service.log if "ERROR" in line or "Traceback" in line or ": stopping at once" in line]


async def test_answers_what_was_accepted(artifacts: Path) -> None:
    """Stopped in the middle of 200 requests, every connection that was accepted gets its answer; status 0."""
    photo = png(7, size=(900, 900))
    async with server(artifacts, "--gateways", "2") as service:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=service.url, limits=limits, timeout=30) as client:
            requests = [
                asyncio.create_task(client.post("/predict", files={"image": photo}, headers=ALONE)) for _ in range(200)
            ]
            while sum(task.done() for task in requests) < 20:
                await asyncio.wait(requests, timeout=0.002, return_when=asyncio.FIRST_COMPLETED)
            before = sum(task.done() for task in requests)
            service.server.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*requests, return_exceptions=True)
        assert await service.ended() == 0
    answered = [answer for answer in answers if isinstance(answer, httpx.Response)]
    lost = [answer for answer in answers if not isinstance(answer, (httpx.Response, httpx.ConnectError))]
    assert {answer.status_code for answer in answered} == {200}
    assert len(answered) > before
    assert lost == []


async def test_health_of_grpc(artifacts: Path) -> None:
    """The health of gRPC, at any front, follows the models in the engine process."""
    engine = FakeEngine()
    async with fronted(artifacts, engine, recover_s=60) as many:

        async def seen() -> set[int]:
            states = set()
            for _ in range(6):
                options = [("grpc.use_local_subchannel_pool", 1)]
                async with grpc.aio.insecure_channel(f"127.0.0.1:{many.service.grpc_port}", options=options) as channel:
                    stub: Any = health_pb2_grpc.HealthStub(channel)
                    states.add((await stub.Check(health_pb2.HealthCheckRequest())).status)
            return states

        healthy = await seen()
        engine.script = [RuntimeError("broken")] * 3
        failed = [await many.http.post("/predict", files={"image": png()}) for _ in range(3)]
        async with asyncio.timeout(10):
            while (failing := await seen()) == healthy:
                pass
        ready = await many.http.get("/readyz")
    values = health_pb2.HealthCheckResponse
    assert [answer.status_code for answer in failed] == [500] * 3
    assert healthy == {values.SERVING}
    assert failing <= {values.NOT_SERVING, values.SERVING}
    assert (ready.status_code, ready.json()["detail"]) == (503, "tiny fails")


async def test_ports_taken(artifacts: Path) -> None:
    """A port that another service has, with fronts or without, ends the start with status 1 and the option."""
    async with server(artifacts, "--gateways", "1") as service:
        port = service.url.rpartition(":")[2]
        grpc_port = "".join(service.log).partition("gRPC on 127.0.0.1:")[2].split()[0]
        for gateways in ("0", "1"):
            for option, taken in (("--port", port), ("--grpc-port", grpc_port)):
                ports = {"--port": "0", "--grpc-port": "0", option: taken}
                command = [part for pair in ports.items() for part in pair]
                done = await asyncio.to_thread(
                    run, "serve", "--artifacts", str(artifacts), "--gateways", gateways, *command
                )
                assert done.returncode == 1
                assert f"another --{'host or --' if option == '--port' else ''}{option[2:]}" in done.stderr
                assert "Traceback" not in done.stderr


async def test_a_front_that_cannot_start(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A front that ends before it listens ends the start, and says so once; it is not tried for ever."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NotReady, match="front 1 ended with status 1 before it listened"):
        async with fronted(artifacts, FakeEngine(), gateways=3):
            pass
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_flat(artifacts: Path) -> None:
    """Hundreds of requests, every kind of them, leave no descriptor behind in any process."""
    async with fronted(artifacts, FakeEngine(max_batch=8), gateways=1) as many:

        async def round_of() -> None:
            for image, status in ((png(3), 200), (b"no image", 422), (png(4), 200)):
                answer = await many.http.post("/predict", files={"image": image})
                assert answer.status_code == status
            await many.http.get("/metrics")

        async def counted(many: Fronted) -> list[int]:
            await until(lambda: many.places() == 0)
            return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), *fronts_of(os.getpid()))]  # noqa: PTH208

        await round_of()
        before = await counted(many)
        for _ in range(60):
            await round_of()
        after = await counted(many)
    assert [late <= early for early, late in zip(before, after, strict=True)] == [True, True]


def test_settings() -> None:
    """Everything stays in one process unless somebody asks otherwise."""
    assert Settings().gateways == 0
