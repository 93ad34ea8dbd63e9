"""Clients of every kind against one service for a while, and what the service holds of them afterwards.

The models need more memory than the budget has, so that they are loaded and unloaded all the time. The engine answers
with the brightness of an image, so that each answer is known to be right or wrong.
"""

import asyncio
import ctypes
import gc
import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from models.artifact.artifact import Artifact
from service.engines.selection.opening import OpenedEngine
from tests.conftest import png
from tests.fakes import FakeEngine
from tests.fleet import copy_model
from tests.serving import PNG, Running, serving
from tests.soak.clients import MODELS

_ENGINE_MIB, _BUDGET_MIB = 10, 25  # room for two of the four
_SETTLE_S = 20.0
_MEMORY_MIB = 32.0  # that an allocator may keep
_AVERAGES = ("topfive_utilisation",)  # over the last seconds: of what was, not of what is held


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
            {f"{one.name}{sorted(one.labels.items())}": one.value for one in samples if one.name not in _AVERAGES},
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
        await _clients(running, seconds / 10)
        before = await _settled(running, lambda held: not any("in_flight" in k and v for k, v in held.gauges.items()))
        answers, wrong = await _clients(running, seconds)
        after = await _settled(running, lambda held: not held.more_than(before))
        answers["models unloaded"] = (await running.http.get("/metrics")).text.count("topfive_unloads_total{")
        return answers, (*wrong, *after.more_than(before))


async def _clients(running: Running, seconds: float) -> tuple[Counter[str], list[str]]:
    """What the clients of a process of their own saw in so many seconds."""
    arguments = map(str, (running.service.rest.port, running.service.rpc.port, seconds))
    module = "tests.soak.clients"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    answers, wrong = json.loads(out.splitlines()[-1])
    return Counter(answers), wrong


async def _settled(running: Running, enough: Callable[[Held], bool]) -> Held:
    """What is held as soon as that is enough, or after so many seconds: connections take time to close."""
    until = time.monotonic() + _SETTLE_S
    while not enough(held := await Held.now(running)) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    return held
