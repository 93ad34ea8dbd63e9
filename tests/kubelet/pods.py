"""Pods of a deployment as processes: what the kubelet and the endpoints of Services do with them."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.compose.docker import free_port
from tests.deploy.manifests import environment

_TOPFIVE = str(Path(sys.executable).with_name("topfive"))
_ENDPOINTS_S = 1.0  # until the nodes know that a pod has become ready or ends
_CHECK_S = 0.05


@dataclass
class Pod:
    """A pod of one container that runs as a process of this machine, on ports of its own."""

    spec: Any
    overrides: Mapping[str, str]
    log: Path
    rest: int = field(default_factory=free_port)
    grpc: int = field(default_factory=free_port)
    ready: bool = False
    process: asyncio.subprocess.Process | None = None

    @property
    def container(self) -> Any:
        """Its container, as the manifest has it."""
        return self.spec["containers"][0]

    @property
    def url(self) -> str:
        """Its address of REST."""
        return f"http://127.0.0.1:{self.rest}"

    async def start(self) -> None:
        """Start the process, and wait until its startup probe succeeds."""
        env = {**os.environ, **environment(self.container), **self.overrides}
        command = [_TOPFIVE, *self.container["args"], "--port", str(self.rest), "--grpc-port", str(self.grpc)]
        with self.log.open("w") as log:
            self.process = await asyncio.create_subprocess_exec(*command, env=env, stderr=log)
        probe = self.container["startupProbe"]
        for _ in range(probe["failureThreshold"]):
            assert self.process.returncode is None, self.log.read_text()
            if await self._succeeds(probe):
                return
            await asyncio.sleep(probe.get("periodSeconds", 10))
        raise AssertionError(f"the startup probe failed\n{self.log.read_text()}")

    async def watch(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Follow the readiness probe, and fail at a failed liveness probe, until cancelled."""
        await asyncio.gather(self._watch_readiness(on_ready), self._watch_liveness())

    async def stop(self) -> float:
        """Send SIGTERM; the seconds until the process has ended with status 0, within the grace period."""
        assert self.process is not None
        began = asyncio.get_running_loop().time()
        self.process.terminate()
        async with asyncio.timeout(self.spec["terminationGracePeriodSeconds"]):
            status = await self.process.wait()
        assert status == 0, f"status {status}\n{self.log.read_text()}"
        return asyncio.get_running_loop().time() - began

    async def answered(self) -> dict[str, float]:
        """How many requests it has answered, by code."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"{self.url}/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith("topfive_requests_total")]
        return {line.partition('code="')[2].partition('"')[0]: float(line.split()[-1]) for line in lines}

    async def kill(self) -> None:
        """End the process if it still runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def _watch_readiness(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        probe = self.container["readinessProbe"]
        failures = 0
        while True:
            failures = 0 if await self._succeeds(probe) else failures + 1
            ready = failures == 0 or (self.ready and failures < probe["failureThreshold"])
            if ready is not self.ready:
                self.ready = ready
                await on_ready()
            await asyncio.sleep(probe["periodSeconds"])

    async def _watch_liveness(self) -> None:
        probe = self.container["livenessProbe"]
        failures = 0
        while failures < probe["failureThreshold"]:
            await asyncio.sleep(probe["periodSeconds"])
            failures = 0 if await self._succeeds(probe) else failures + 1
        raise AssertionError(f"the liveness probe failed\n{self.log.read_text()}")

    async def _succeeds(self, probe: Any) -> bool:
        with suppress(httpx.HTTPError):
            async with httpx.AsyncClient(timeout=probe.get("timeoutSeconds", 1)) as client:
                return (await client.get(f"{self.url}{probe['httpGet']['path']}")).is_success
        return False


@dataclass
class ReplicaSet:
    """The pods of one template, watched by the kubelet. `publish` gets the ready ones, a moment later, as nodes do."""

    spec: Any
    folder: Path
    publish: Callable[[list[Pod]], Awaitable[None]]
    pods: list[Pod] = field(default_factory=list)
    started: list[Pod] = field(default_factory=list)
    _watches: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    async def add(self, overrides: Mapping[str, str]) -> Pod:
        """A further pod, once its readiness probe has succeeded and every node knows it."""
        pod = Pod(self.spec, overrides, self.folder / f"pod{len(self.started)}.log")
        self.started.append(pod)
        await pod.start()
        self.pods.append(pod)
        self._watches[id(pod)] = asyncio.create_task(pod.watch(self._changed))
        while not pod.ready:
            self.check()
            await asyncio.sleep(_CHECK_S)
        await self._changed()
        return pod

    async def remove(self, pod: Pod) -> float:
        """Delete the pod: it gets SIGTERM at once, and the nodes leave it out a moment later. The seconds it took."""
        self.pods.remove(pod)
        self._watches.pop(id(pod)).cancel()
        took_s, _ = await asyncio.gather(pod.stop(), self._changed())
        return took_s

    def check(self) -> None:
        """Raise what a watch has found."""
        for watch in self._watches.values():
            if watch.done():
                watch.result()

    async def close(self) -> None:
        """End every watch and process."""
        for watch in self._watches.values():
            watch.cancel()
        for pod in self.started:
            await pod.kill()

    async def _changed(self) -> None:
        await asyncio.sleep(_ENDPOINTS_S)
        await self.publish([pod for pod in self.pods if pod.ready])
