"""Clients of every kind for the soak test: `python -m tests.soak.clients REST_PORT GRPC_PORT SECONDS`.

They run in a process of their own: what they hold is not the service's, and they do not share its event loop. The last
line that it prints is JSON: the answers by client, and all that was wrong.
"""

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import click
import grpc
import httpx

from proto.topfive.v1.classifier_pb2 import ClassifyRequest
from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from tests.conftest import png
from tests.serving import PNG, RestClient

MODELS = ("tiny", "second", "third", "fourth")
_CLIENTS = 2  # of each kind
_BUSY = frozenset((429, 503, "RESOURCE_EXHAUSTED", "UNAVAILABLE"))
"""What a good request may get while the server is full, or a model in use cannot make room."""


@dataclass
class Clients:
    """The clients, and what they saw: answers by client, and all that was wrong."""

    port: int
    grpc_port: int
    http: httpx.AsyncClient
    stub: ClassifierStub
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def run(self, seconds: float) -> None:
        """Let every client ask again and again for so many seconds."""
        kinds = (
            *(self.good, self.compared, self.bad, self.unknown, self.slow, self.cancelled, self.disconnected),
            *(self.rpc_good, self.rpc_bad, self.rpc_cancelled, self.rpc_disconnected),
        )
        until = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._repeat(kind, until) for kind in kinds for _ in range(_CLIENTS)))

    async def _repeat(self, ask: Callable[[], Awaitable[None]], until: float) -> None:
        while asyncio.get_running_loop().time() < until:
            try:
                await ask()
            except Exception as error:
                self.wrong.append(f"{ask.__name__}: {error!r}")
                await asyncio.sleep(0.1)

    def _pick(self) -> tuple[int, bytes, str]:
        """A class, an image of it, and a model."""
        shade = self.rng.randrange(256)
        side = self.rng.choice((40, 400))
        return shade, png(shade, size=(side, side)), self.rng.choice(MODELS)

    def _expect(self, who: str, found: object, expected: object) -> None:
        self.answers[f"{who} busy" if found in _BUSY else who] += 1
        if found != expected and found not in _BUSY:
            self.wrong.append(f"{who}: {found}, not {expected}")

    async def good(self) -> None:
        shade, image, model = self._pick()
        answer = await self.http.post("/predict", params={"model": model}, content=image, headers=PNG)
        found = answer.status_code if answer.is_error else answer.json()["predictions"][0]["class_id"]
        self._expect("good", found, shade)

    async def compared(self) -> None:
        shade, image, model = self._pick()
        reply = await RestClient(self.http).rest("/compare", image, model=f"tiny,{model}")
        answers = [row["answer"] for row in reply.get("rows", ()) if row["answer"]]
        found = frozenset(answer["predictions"][0]["class_id"] for answer in answers)
        self._expect("compared", found or 503, {shade})

    async def bad(self) -> None:
        answer = await self.http.post("/predict", content=self.rng.randbytes(3000), headers=PNG)
        self._expect("bad", answer.status_code, 422)

    async def unknown(self) -> None:
        answer = await self.http.post("/predict", params={"model": "none"}, content=png(1), headers=PNG)
        self._expect("unknown", answer.status_code, 404)

    def _head(self, image: bytes) -> bytes:
        fields = f"Host: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\nConnection: close"
        return f"POST /predict HTTP/1.1\r\n{fields}\r\n\r\n".encode()

    async def slow(self) -> None:
        shade, image, _ = self._pick()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
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
            async with asyncio.timeout(self.rng.uniform(0, 0.02)):
                await self.http.post("/predict", params={"model": model}, content=image, headers=PNG)
        self.answers["cancelled"] += 1

    async def disconnected(self) -> None:
        image = self._pick()[1]
        writer = (await asyncio.open_connection("127.0.0.1", self.port))[1]
        writer.write(self._head(image) + image[: self.rng.randrange(len(image) + 1)])
        await asyncio.sleep(self.rng.uniform(0, 0.02))
        writer.transport.abort()
        self.answers["disconnected"] += 1

    async def _rpc(self, request: ClassifyRequest) -> object:
        try:
            return (await self.stub.Classify(request)).predictions[0].class_id
        except grpc.aio.AioRpcError as error:
            return error.code().name

    async def rpc_good(self) -> None:
        shade, image, model = self._pick()
        self._expect("rpc_good", await self._rpc(ClassifyRequest(image=image, model=model)), shade)

    async def rpc_bad(self) -> None:
        self._expect("rpc_bad", await self._rpc(ClassifyRequest(image=b"no image")), "INVALID_ARGUMENT")

    async def rpc_cancelled(self) -> None:
        _, image, model = self._pick()
        call = self.stub.Classify(ClassifyRequest(image=image, model=model))
        await asyncio.sleep(self.rng.uniform(0, 0.02))
        call.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await call
        self.answers["rpc_cancelled"] += 1

    async def rpc_disconnected(self) -> None:
        _, image, model = self._pick()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            stub = ClassifierStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Classify(ClassifyRequest(image=image, model=model))
            await asyncio.sleep(self.rng.uniform(0, 0.05))
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await call
        self.answers["rpc_disconnected"] += 1


async def _main(port: int, grpc_port: int, seconds: float) -> str:
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
    ):
        clients = Clients(port, grpc_port, http, ClassifierStub(channel))  # type: ignore[no-untyped-call]
        await clients.run(seconds)
    return json.dumps([clients.answers, clients.wrong[:50]])


if __name__ == "__main__":
    click.echo(asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
