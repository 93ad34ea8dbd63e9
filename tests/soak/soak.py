"""Clients of every kind against one service for a while, and what it holds of them afterwards.

The models need more memory than the budget has, so that they are loaded and unloaded all the time. The engine answers
with the brightness of an image, so that each answer is known to be right or wrong.
"""

import asyncio
import ctypes
import gc
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from models.artifact.artifact import Artifact
from proto.topfive.v1.classifier_pb2 import ClassifyRequest
from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from service.engines.selection.opening import OpenedEngine
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.fleet import copy_model
from tests.serving import PNG, Running, serving

MODELS = ("tiny", "second", "third", "fourth")
_ENGINE_MIB, _BUDGET_MIB = 10, 25  # room for two of the four
_CLIENTS = 2  # of each kind
_SETTLE_S = 20.0
_MEMORY_MIB = 32.0  # that an allocator may keep
_BUSY = frozenset((429, 503, "RESOURCE_EXHAUSTED", "UNAVAILABLE"))
"""What a good request may get while the server is full, or a model in use cannot make room."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the process holds: memory in MiB, descriptors, threads, tasks, and the gauges of the metrics."""

    memory_mib: float
    descriptors: int
    threads: int
    tasks: int
    gauges: dict[str, float]

    @classmethod
    async def now(cls, running: Running) -> "Held":
        """What it holds with the first two models loaded and used, and after a collection of garbage."""
        for model in MODELS[:2]:
            await running.http.post("/predict", params={"model": model}, content=png(1), headers=PNG)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        process = psutil.Process()
        families = text_string_to_metric_families((await running.http.get("/metrics")).text)
        samples = [sample for family in families if family.type == "gauge" for sample in family.samples]
        return cls(
            process.memory_info().rss / (1 << 20),
            process.num_fds(),
            threading.active_count(),
            len(asyncio.all_tasks()),
            {f"{one.name}{sorted(one.labels.items())}": one.value for one in samples},
        )

    def more_than(self, before: "Held") -> list[str]:
        """What it holds that it did not hold before, a line each."""
        lines = [
            f"{name}: {getattr(before, name)} before, {getattr(self, name)} after"
            for name in ("descriptors", "threads", "tasks")
            if getattr(self, name) > getattr(before, name)
        ]
        if self.memory_mib > before.memory_mib + _MEMORY_MIB:
            lines.append(f"memory_mib: {before.memory_mib:.0f} before, {self.memory_mib:.0f} after")
        gauges = self.gauges.keys() | before.gauges.keys()
        changed = [name for name in sorted(gauges) if self.gauges.get(name) != before.gauges.get(name)]
        return lines + [f"{name}: {before.gauges.get(name)} before, {self.gauges.get(name)} after" for name in changed]


@dataclass
class Soak:
    """The clients, and what they saw: answers by client, and all that was wrong."""

    running: Running
    random: random.Random
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    over: bool = False

    async def run(self, seconds: float) -> None:
        """Let every client ask again and again for so many seconds."""
        self.over = False
        kinds = (
            *(self.good, self.compared, self.bad, self.unknown, self.slow, self.cancelled, self.disconnected),
            *(self.rpc_good, self.rpc_bad, self.rpc_cancelled, self.rpc_disconnected),
        )
        async with httpx.AsyncClient(base_url=self.running.http.base_url, timeout=30) as http:  # closes its connections
            self.running = replace(self.running, http=http)
            clients = [asyncio.create_task(self._repeat(kind)) for kind in kinds for _ in range(_CLIENTS)]
            await asyncio.sleep(seconds)
            self.over = True
            await asyncio.gather(*clients)

    async def _repeat(self, ask: Callable[[], Awaitable[None]]) -> None:
        while not self.over:
            try:
                await ask()
            except Exception as error:
                self.wrong.append(f"{ask.__name__}: {error!r}")
                await asyncio.sleep(0.1)

    def _pick(self) -> tuple[int, bytes, str]:
        """A class, an image of it, and a model."""
        shade = self.random.randrange(256)
        side = self.random.choice((40, 400))
        return shade, png(shade, size=(side, side)), self.random.choice(MODELS)

    def _expect(self, who: str, found: object, expected: object) -> None:
        self.answers[f"{who} busy" if found in _BUSY else who] += 1
        if found != expected and found not in _BUSY:
            self.wrong.append(f"{who}: {found}, not {expected}")

    async def good(self) -> None:
        shade, image, model = self._pick()
        answer = await self.running.http.post("/predict", params={"model": model}, content=image, headers=PNG)
        found = answer.status_code if answer.is_error else answer.json()["predictions"][0]["class_id"]
        self._expect("good", found, shade)

    async def compared(self) -> None:
        shade, image, model = self._pick()
        reply = await self.running.rest("/compare", image, model=f"tiny,{model}")
        answers = [row["answer"] for row in reply.get("rows", ()) if row["answer"]]
        found = frozenset(answer["predictions"][0]["class_id"] for answer in answers)
        self._expect("compared", found or 503, {shade})

    async def bad(self) -> None:
        answer = await self.running.http.post("/predict", content=self.random.randbytes(3000), headers=PNG)
        self._expect("bad", answer.status_code, 422)

    async def unknown(self) -> None:
        answer = await self.running.http.post("/predict", params={"model": "none"}, content=png(1), headers=PNG)
        self._expect("unknown", answer.status_code, 404)

    def _head(self, image: bytes) -> bytes:
        fields = f"Host: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\nConnection: close"
        return f"POST /predict HTTP/1.1\r\n{fields}\r\n\r\n".encode()

    async def slow(self) -> None:
        shade, image, _ = self._pick()
        reader, writer = await self.running.connect()
        writer.write(self._head(image))
        for start in range(0, len(image), 1 + len(image) // 5):
            writer.write(image[start : start + 1 + len(image) // 5])
            await asyncio.sleep(0.02)
        answer = await reader.read()
        writer.close()
        status = int(answer.split()[1])
        self._expect("slow", status if status != 200 else f'"class_id":{shade},'.encode() in answer, True)

    async def cancelled(self) -> None:
        _, image, model = self._pick()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.random.uniform(0, 0.02)):
                await self.running.http.post("/predict", params={"model": model}, content=image, headers=PNG)
        self.answers["cancelled"] += 1

    async def disconnected(self) -> None:
        image = self._pick()[1]
        writer = (await self.running.connect())[1]
        writer.write(self._head(image) + image[: self.random.randrange(len(image) + 1)])
        await asyncio.sleep(self.random.uniform(0, 0.02))
        writer.transport.abort()
        self.answers["disconnected"] += 1

    async def _rpc(self, request: ClassifyRequest) -> object:
        try:
            return (await self.running.stub.Classify(request)).predictions[0].class_id
        except grpc.aio.AioRpcError as error:
            return error.code().name

    async def rpc_good(self) -> None:
        shade, image, model = self._pick()
        self._expect("rpc_good", await self._rpc(ClassifyRequest(image=image, model=model)), shade)

    async def rpc_bad(self) -> None:
        self._expect("rpc_bad", await self._rpc(ClassifyRequest(image=b"no image")), "INVALID_ARGUMENT")

    async def rpc_cancelled(self) -> None:
        _, image, model = self._pick()
        call = self.running.stub.Classify(ClassifyRequest(image=image, model=model))
        await asyncio.sleep(self.random.uniform(0, 0.02))
        call.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await call
        self.answers["rpc_cancelled"] += 1

    async def rpc_disconnected(self) -> None:
        _, image, model = self._pick()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.running.service.rpc.port}") as channel:
            stub = ClassifierStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Classify(ClassifyRequest(image=image, model=model))
            await asyncio.sleep(self.random.uniform(0, 0.05))
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await call
        self.answers["rpc_disconnected"] += 1


async def soak(
    artifacts: Path, seconds: float, on_run: Callable[[], object] = lambda: None
) -> tuple[Counter[str], Sequence[str]]:
    """The answers by client, and all that was wrong. `artifacts` gets further models; `on_run` is called at each run.

    A tenth of the time goes by before the first look, so that pools and caches are full.
    """
    for name in MODELS[1:]:
        shutil.rmtree(artifacts / name, ignore_errors=True)
        copy_model(artifacts, name)

    class Engine(FakeEngine):
        def run(self, rows):  # type: ignore[no-untyped-def]
            on_run()
            return super().run(rows)

    def open_engine(_artifact: Artifact) -> OpenedEngine:
        engine = Engine()
        engine.memory_bytes = _ENGINE_MIB << 20
        return OpenedEngine(engine)

    async with serving(artifacts, open_engine=open_engine, memory_budget_mib=_BUDGET_MIB) as running:
        clients = Soak(running, random.Random(7))
        await clients.run(seconds / 10)
        before = await _settled(running, lambda held: not any("in_flight" in k and v for k, v in held.gauges.items()))
        clients.answers.clear()
        await clients.run(seconds)
        after = await _settled(running, lambda held: not held.more_than(before))
        clients.answers["models unloaded"] = (await running.http.get("/metrics")).text.count("topfive_unloads_total{")
        return clients.answers, (*clients.wrong, *after.more_than(before))


async def _settled(running: Running, enough: Callable[[Held], bool]) -> Held:
    """What is held as soon as that is enough, or after so many seconds: connections take time to close."""
    until = time.monotonic() + _SETTLE_S
    while not enough(held := await Held.now(running)) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    return held
