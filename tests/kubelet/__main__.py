"""Plays Kubernetes with deploy/kubernetes: probes, endpoints, SIGTERM and a rolling update behind haproxy, under load.

REST passes haproxy as an Ingress, gRPC as a Service that balances connections. No request may be lost. It takes about
a minute and prints what it measured.
"""

import asyncio
import csv
import io
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from export.gate_images import PHOTOS
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from tests.compose.docker import free_port
from tests.compose.load import Load
from tests.deploy.manifests import DEPLOY, documents
from tests.kubelet.pods import Pod, ReplicaSet

REPLICAS, SLOTS = 2, 4
LIMIT_S = 240
AGE_S = 3  # of gRPC connections, so that the test need not wait for 120 s
OWN = {
    "TOPFIVE_CPUS": "1",
    "TOPFIVE_MODELS": "squeezenet1_1",
    "TOPFIVE_GRPC_MAX_CONNECTION_AGE_S": str(AGE_S),
    "TOPFIVE_LOG_FORMAT": "text",
}
CONFIG = """
global
  stats socket {socket} mode 600 level admin
defaults
  timeout connect 2s
  timeout client 60s
  timeout server 60s
listen rest
  mode http
  bind 127.0.0.1:{rest}
  balance roundrobin
  option redispatch
  server-template pod 1-{slots} 127.0.0.1:9 disabled
listen grpc
  mode tcp
  bind 127.0.0.1:{grpc}
  balance roundrobin
  server-template pod 1-{slots} 127.0.0.1:9 disabled
"""
PHOTO = (PHOTOS / "zebra.jpeg").read_bytes()


def say(line: str) -> None:
    """One line of the report."""
    print(line, flush=True)  # noqa: T201


@dataclass
class Haproxy:
    """haproxy, whose servers are the ready pods. Connections to a pod that it leaves out stay open."""

    folder: Path
    rest: int = field(default_factory=free_port)
    grpc: int = field(default_factory=free_port)
    places: list[Pod | None] = field(default_factory=lambda: [None] * SLOTS)

    async def publish(self, pods: list[Pod]) -> None:
        """Balance new requests and connections over these pods."""
        self.places = [pod if pod in pods else None for pod in self.places]
        for pod in pods:
            if pod not in self.places:
                self.places[self.places.index(None)] = pod
        commands = []
        for number, place in enumerate(self.places, 1):
            for name in ("rest", "grpc"):
                server = f"set server {name}/pod{number}"
                if place is not None:
                    commands.append(f"{server} addr 127.0.0.1 port {getattr(place, name)}")
                commands.append(f"{server} state {'maint' if place is None else 'ready'}")
        await self._ask("; ".join(commands))

    async def grpc_connections(self, pod: Pod) -> int:
        """How many connections of gRPC clients the pod has had."""
        name = f"pod{self.places.index(pod) + 1}"
        rows = csv.DictReader(io.StringIO((await self._ask("show stat")).removeprefix("# ")))
        return next(int(row["stot"]) for row in rows if (row["pxname"], row["svname"]) == ("grpc", name))

    async def _ask(self, command: str) -> str:
        reader, writer = await asyncio.open_unix_connection(self.folder / "socket")
        writer.write(command.encode() + b"\n")
        answer = await reader.read()
        writer.close()
        return answer.decode()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The process, without any server."""
        config = self.folder / "haproxy.cfg"
        config.write_text(CONFIG.format(socket=self.folder / "socket", rest=self.rest, grpc=self.grpc, slots=SLOTS))
        process = await asyncio.create_subprocess_exec("haproxy", "-db", "-q", "-f", str(config))
        try:
            async with asyncio.timeout(10):
                while not (self.folder / "socket").exists():  # noqa: ASYNC110 - haproxy makes it
                    await asyncio.sleep(0.05)
            yield
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def call(port: int, ends: Counter[str]) -> None:
    """One gRPC call after the other on a channel of its own, until cancelled. Counts how they end."""
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        stub = ClassifierStub(channel)  # type: ignore[no-untyped-call]
        while True:
            try:
                reply = await stub.Classify(pb.ClassifyRequest(image=PHOTO), timeout=30)
                ends[reply.predictions[0].label] += 1
            except grpc.aio.AioRpcError as error:
                ends[f"{error.code().name}: {error.details()}"] += 1
            await asyncio.sleep(0.02)


async def check(folder: Path) -> None:
    """Roll the deployment over under load, then add a pod; every request is answered, and every pod takes its part."""
    [deployment] = documents(DEPLOY / "kubernetes" / "deployment.yaml")
    haproxy = Haproxy(folder)
    replicas = ReplicaSet(deployment["spec"]["template"]["spec"], folder, haproxy.publish)
    calls: Counter[str] = Counter()
    callers: list[asyncio.Task[None]] = []
    load: Load | None = None
    try:
        async with haproxy.running():
            old = await asyncio.gather(*(replicas.add(OWN) for _ in range(REPLICAS)))
            say(f"{REPLICAS} pods are ready")
            load = Load(f"http://127.0.0.1:{haproxy.rest}/predict", PHOTO)
            callers = [asyncio.create_task(call(haproxy.grpc, calls)) for _ in range(2)]
            await asyncio.to_thread(load.more, 100)
            for pod in old:  # as maxSurge 1 and maxUnavailable 0 say
                await replicas.add(OWN)
                took_s = await replicas.remove(pod)
                say(f"a new pod took over; the old one ended with status 0 in {took_s:.1f} s")
            new = await replicas.add(OWN)
            before = await haproxy.grpc_connections(new)
            await asyncio.sleep(3 * AGE_S)
            connections = await haproxy.grpc_connections(new) - before
            await asyncio.to_thread(load.more, 100)
            replicas.check()
            answered = [await pod.answered() for pod in replicas.pods]
            for caller in callers:
                caller.cancel()
            await asyncio.to_thread(load.stop)
    finally:
        if load is not None:
            load.stopping.set()
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await replicas.close()
    say(f"REST: {load.counts()}, slowest {load.slowest_s():.2f} s; gRPC: {dict(calls)}; by pod {answered}")
    assert load.counts().keys() == {"200"}
    assert calls.keys() == {"zebra"}
    assert all(pod.get("ok", 0) > 20 for pod in answered)
    say(f"a further pod: {connections} connections of gRPC in {3 * AGE_S} s, of clients that had others before")
    assert connections > 0


def main() -> int:
    """The exit status: 0 where all held, 2 where haproxy is missing."""
    if shutil.which("haproxy") is None:
        say("test-kubelet: haproxy is not installed; install the package haproxy, and run this again")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(asyncio.wait_for(check(Path(folder)), LIMIT_S))
    say("test-kubelet: all held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
