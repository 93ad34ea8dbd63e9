"""A repository of small models on devices with budgets, whose engines notice what must never happen to them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from models.artifact.artifact import GRAPH, Artifact
from models.catalog import CATALOG
from service.common.errors import TopfiveError
from service.common.metrics import Metrics
from service.common.types import BatchLimits, ModelControl, Probabilities, Rows, Sample
from service.engines.base import CPU, held_bytes
from service.engines.selection.opening import OpenedEngine, OpenEngine
from service.repository.device_memory import Device
from service.repository.exported import ExportedModels, ModelEntry
from service.repository.loaded_model import Lease
from service.repository.repository import Repository
from tests.fakes import FakeEngine, ManualClock, reached

NAMES = ("tiny", "b", "c", "d", "e")


def sample(shade: int) -> Sample:
    """An input of `tiny` in one shade of grey, which a fake engine takes for the class of that number."""
    return np.full((32, 32, 3), shade, dtype=np.uint8)


class StrictEngine(FakeEngine):
    """Writes down what must never happen: closed twice, closed while it runs, run after it was closed."""

    def __init__(self, name: str, wrong: list[str], *, slots: int, device: str) -> None:
        super().__init__(slots=slots, device=device)
        self.name = name
        self.wrong = wrong
        self.at_end: Exception | None = None

    def run(self, rows: Rows) -> Probabilities:
        if self.closed:
            self.wrong.append(f"{self.name} ran closed")
        return super().run(rows)

    def close(self) -> None:
        if self.closed or self.running:
            self.wrong.append(f"{self.name} closed twice or while it ran")
        super().close()
        if self.at_end is not None:
            raise self.at_end


class Host:
    """A repository with devices whose budgets are counted in models: each holds `unit` bytes.

    `refuses` has what the next openings raise, by model and device; `lands` on which device an engine runs instead of
    another; `held` how many models' bytes a model holds. While `gate` is cleared, openings wait in their thread.
    """

    def __init__(self, root: Path, budgets: dict[str, int], metrics: Metrics, control: ModelControl) -> None:
        graph = root / "tiny" / "1" / GRAPH
        self.unit = held_bytes(graph.stat().st_size) if graph.is_file() else 0
        self.budgets = budgets
        self.clock = ManualClock()
        self.metrics = metrics
        self.wrong: list[str] = []
        self.engines: list[StrictEngine] = []
        self.begun = 0
        self.gate = threading.Event()
        self.gate.set()
        self.refuses: dict[str, list[Exception]] = {}
        self.lands: dict[str, str] = {}
        self.held: dict[str, int] = {}
        self.slots = 1
        self.device_searches = 0
        self.repository = Repository(
            ExportedModels(root, CATALOG),
            self._devices,
            limits=lambda engine: BatchLimits(engine.slots, engine.max_batch),
            clock=self.clock,
            metrics=metrics,
            control=control,
        )
        self.changes: list[bool] = []
        self.repository.on_change(lambda: self.changes.append(self.repository.ready))

    def _devices(self) -> list[Device]:
        self.device_searches += 1
        return [Device(name, self._opener(name), budget * self.unit) for name, budget in self.budgets.items()]

    def _opener(self, device: str) -> OpenEngine:
        def open_engine(artifact: Artifact) -> OpenedEngine:
            self.begun += 1
            assert self.gate.wait(30), "a test left the gate closed"
            name = artifact.manifest.name
            if errors := self.refuses.get(f"{name} {device}"):
                raise errors.pop(0)
            engine = StrictEngine(name, self.wrong, slots=self.slots, device=self.lands.get(device, device))
            engine.memory_bytes = self.held.get(name, 1) * self.unit
            self.engines.append(engine)
            return OpenedEngine(engine)

        return open_engine

    @property
    def loaded(self) -> dict[str, str]:
        """The device of each loaded model."""
        entries = self.repository.entries()
        return {entry.name: entry.loaded.device for entry in entries if entry.loaded is not None}

    @property
    def open(self) -> list[str]:
        """Models whose engines are open."""
        return [engine.name for engine in self.engines if not engine.closed]

    def ready(self) -> bool:
        """Whether the repository is ready; a method, because a type checker takes a property for unchanged."""
        return self.repository.ready

    def alive(self) -> bool:
        """Whether the repository is alive."""
        return self.repository.alive

    def entry(self, name: str) -> ModelEntry:
        """That model in the list of all."""
        return next(entry for entry in self.repository.entries() if entry.name == name)

    def engine(self, name: str) -> StrictEngine:
        """The engine of that model that was opened last."""
        return next(engine for engine in reversed(self.engines) if engine.name == name)

    async def classify(self, name: str, shade: int = 1, version: int | None = None) -> int:
        """The class that a model gives to an image of one shade, which is the shade."""
        with Lease() as lease:
            model = await self.repository.get(name, lease, version)
            with model.batcher.admit():
                [ran] = await model.batcher.submit([sample(shade)], deadline=self.clock.now() + 60)
        return int(ran.value.argmax())

    async def use(self, *names: str) -> None:
        """Requests one after the other, a second apart."""
        for name in names:
            await self.classify(name)
            await self.clock.advance(1.0)

    async def fail(self, name: str, times: int = 3) -> None:
        """Requests whose batches fail."""
        self.engine(name).script = [RuntimeError("no device")] * times
        for _ in range(times):
            with pytest.raises(TopfiveError):
                await self.classify(name)

    async def busy(self, name: str) -> asyncio.Task[int]:
        """A request whose batch runs until the gate of its engine is set."""
        await self.classify(name)
        self.engine(name).gate.clear()
        task = asyncio.create_task(self.classify(name, 7))
        await reached(lambda: self.engine(name).running == 1)
        return task

    def open_gates(self) -> None:
        """Let every opening and every run go on."""
        self.gate.set()
        for engine in self.engines:
            engine.gate.set()


@asynccontextmanager
async def host_of(
    root: Path,
    budgets: dict[str, int] | None = None,
    metrics: Metrics | None = None,
    control: ModelControl = ModelControl.NONE,
) -> AsyncIterator[Host]:
    """A host without a budget unless it is given one, closed at the end: every engine is closed then, in order."""
    host = Host(root, budgets or {CPU: 0}, metrics or Metrics(), control)
    try:
        yield host
    finally:
        host.open_gates()
        await asyncio.wait_for(host.repository.aclose(60), 30)
    await reached(lambda: host.open == [])
    assert host.wrong == []
