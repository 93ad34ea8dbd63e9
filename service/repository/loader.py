"""Loads models onto devices with enough memory, and evicts the least recently used ones to free some."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from models.artifact.artifact import Artifact
from models.artifact.engine_plan import read_plans
from service.common.clock import Clock
from service.common.metrics import Metrics
from service.common.types import BatchLimits
from service.engines.base import CPU, Engine, EngineUnavailableError, card_lost, held_bytes, out_of_memory
from service.engines.selection.opening import OpenedEngine, OpenEngine
from service.repository.device_memory import (
    Device,
    DeviceMemory,
    DeviceModels,
    OverBudgetError,
    expected_bytes,
    most_free_first,
)
from service.repository.load_failures import LoadFailures
from service.repository.loaded_model import LoadedModel
from service.repository.stuck_batches import LABELS

_LEAVE_S = 5.0  # for the requests of a model that is being unloaded; its last batch may take longer
_CLOSE_S = 60.0

X = TypeVar("X")

ModelKey = tuple[str, int | None]
"""Name and version of a model; None: the version that answers requests which name none."""

log = logging.getLogger(__name__)


class ModelLoader:
    """Loads models onto devices, which it finds at the first load, and evicts models if a memory budget requires it.

    `loaded` has the models by name and version; its user adds the keys without a version. Models for which
    `is_configured` is true are never evicted. Budgets count the `memory_bytes` of engines. A model larger than a budget
    is not loaded, not even alone.
    """

    def __init__(
        self,
        find_devices: Callable[[], Sequence[Device]],
        *,
        is_configured: Callable[[LoadedModel], bool],
        limits: Callable[[Engine], BatchLimits],
        clock: Clock,
        metrics: Metrics,
        on_change: Callable[[], None],
    ) -> None:
        self._find_devices = find_devices
        self._finding = asyncio.Lock()
        self._devices: Sequence[Device] = ()
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._on_change = on_change
        self._on_devices: dict[str, DeviceModels] = {}
        self._is_configured = is_configured
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="load")
        self._failures = LoadFailures(clock)
        self._retiring: set[asyncio.Task[None]] = set()
        self._unloading: dict[LoadedModel, asyncio.Future[None]] = {}
        self.loaded: dict[ModelKey, LoadedModel] = {}
        metrics.watch(self._gauges, "device")
        metrics.watch(self._stuck_gauges, *LABELS)

    async def load(self, read: Callable[[], Artifact]) -> LoadedModel:
        """Load the model of the artifact that `read` reads on a thread, on the first device that accepts it.

        A version that is loaded already is returned, unless its files have changed since.

        GPUs are tried first, the one with the most free memory first: a plan may fit one and not another. Raises the
        errors of `read`, OverBudgetError, and EngineUnavailableError if its engine cannot run anywhere.
        """
        artifact = await self._on_thread(read)
        loaded = self.loaded.get((artifact.manifest.name, artifact.version))
        if loaded is not None and loaded.artifact.manifest.files == artifact.manifest.files:
            loaded.refresh(artifact)
            return loaded
        await self._find()
        refused: list[Exception] = []
        notes: list[str] = []
        devices = self._in_order()
        for position, device in enumerate(devices):
            noting = replace(device, open_engine=_noting(device.open_engine, notes)) if device.name == CPU else device
            try:
                return await self._load_on(noting, artifact, others=devices[position + 1 :])
            except (EngineUnavailableError, OverBudgetError) as error:
                if card_lost(error) is not None:  # nothing runs in this process any more
                    raise
                notes.append(f"{artifact.manifest.name} is not loaded on {device.name}: {error}")
                if position + 1 < len(devices):
                    log.warning("%s", notes[-1])
                refused.append(error)
        if all(isinstance(error, OverBudgetError) for error in refused):
            raise OverBudgetError("; ".join(map(str, refused)))
        raise EngineUnavailableError("; ".join(dict.fromkeys(map(str, refused)))) from refused[-1]

    async def wait_unloaded(self, name: str) -> None:
        """Wait while a version of that model is being unloaded."""
        for unloading in [gone for model, gone in self._unloading.items() if model.name == name]:
            await asyncio.shield(unloading)

    def retire(self, model: LoadedModel) -> None:
        """Give the model to no further request, and close it once its last request has ended."""
        self._forget(model)
        task = asyncio.get_running_loop().create_task(self._close_unused(model))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def stuck_reason(self, model: LoadedModel) -> str:
        """`DeviceModels.stuck_reason` of the device that the model is on."""
        return self._on_devices[model.device].stuck_reason(model)

    def stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def aclose(self, drain_s: float) -> None:
        """Drain and close every model, including those that are being unloaded."""
        models = [model for there in self._on_devices.values() for model in there.models]
        await asyncio.gather(*(model.aclose(drain_s) for model in models))
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        self.loaded.clear()

    async def _find(self) -> None:
        """Find the devices before the first load, on a thread: the driver takes seconds to start a GPU."""
        async with self._finding:
            if not self._devices:
                self._devices = await self._on_thread(self._find_devices)
                self._on_devices = {
                    one.name: DeviceModels(one.name, one.budget_bytes, self._clock) for one in self._devices
                }

    def _in_order(self) -> list[Device]:
        """The GPUs by unused memory budget, the largest first, and then the CPU."""
        by_name = {one.name: one for one in self._devices}
        memories = most_free_first([self._memory(self._on_devices[name]) for name in by_name])
        return sorted((by_name[memory.device] for memory in memories), key=lambda one: one.name == CPU)

    def _memory(self, there: DeviceModels) -> DeviceMemory:
        return there.memory(self.loaded.values(), self._is_configured)

    async def _load_on(self, device: Device, artifact: Artifact, others: Sequence[Device]) -> LoadedModel:
        """The model on that device, or on the device that its engine chose if no other GPU is left to try."""
        name, there = artifact.manifest.name, self._on_devices[device.name]
        need = await self._on_thread(partial(_expected, device, artifact))
        async with self._turn(there):
            if (known := self._failures.recent(device.name, artifact)) and need > self._memory(there).free_bytes:
                raise EngineUnavailableError(known)
            await self._make_room(there, name, need)
            try:
                opened = await self._open(artifact, device, there)
            except EngineUnavailableError as error:
                self._failures.note(device.name, artifact, error)
                raise
            engine = opened.engine
            try:
                if engine.device == device.name:
                    await self._make_room(there, name, engine.memory_bytes)  # it may hold more than was expected
                    return self._put(artifact, opened, there)
                if any(other.name != CPU for other in others):
                    raise EngineUnavailableError(f"{name} would run on {engine.device}")
                elsewhere = self._models_on(engine.device)
                async with self._turn(elsewhere):
                    await self._make_room(elsewhere, name, engine.memory_bytes)
                    return self._put(artifact, opened, elsewhere)
            except BaseException:
                await self._on_thread(opened.engine.close)
                raise

    def _models_on(self, device: str) -> DeviceModels:
        """The models on that device. A GPU that was not found has the CPU's budget, as in the settings."""
        if device not in self._on_devices:
            budget = next((one.budget_bytes for one in self._devices if one.name == CPU), 0)
            self._on_devices[device] = DeviceModels(device, budget, self._clock)
        return self._on_devices[device]

    def _put(self, artifact: Artifact, opened: OpenedEngine, there: DeviceModels) -> LoadedModel:
        """Make the model available to requests."""
        name = artifact.manifest.name
        model = LoadedModel(
            artifact,
            opened,
            limits=self._limits(opened.engine),
            clock=self._clock,
            metrics=self._metrics.for_model(name, artifact.version),
            on_health=self._on_change,
            scheduler=there.slots,
        )
        there.add(model)
        if (changed := self.loaded.get((name, artifact.version))) is not None:
            self.retire(changed)
        self.loaded[name, artifact.version] = model
        return model

    @asynccontextmanager
    async def _turn(self, there: DeviceModels) -> AsyncIterator[None]:
        """Run one load at a time if the device has a budget; without one, loads run at the same time."""
        if not there.budget_bytes:
            yield
            return
        async with there.lock:
            yield

    async def _make_room(self, there: DeviceModels, name: str, need_bytes: int) -> None:
        """Evict models until `need_bytes` are free. Raises OverBudgetError."""
        while (victim := self._memory(there).next_to_evict(name, need_bytes)) is not None:
            if not await self._unload(there, self.loaded[victim.name, victim.version]):
                raise OverBudgetError(
                    f"{victim.name} would have to be unloaded for {name} and is still in use; try again"
                )

    async def _unload(self, there: DeviceModels, model: LoadedModel) -> bool:
        """Stop serving the model, wait for its requests, and close it. Returns False if it stays in use or open."""
        keys = self._forget(model)
        self._unloading[model] = gone = asyncio.get_running_loop().create_future()
        try:
            if not await model.wait_unused(_LEAVE_S):
                for key in keys:
                    self.loaded.setdefault(key, model)
                return False
            if await self._close(model):
                self._metrics.unloads.labels(model.name).inc()
                log.info("unloaded %s from %s to make room", model.name, there.device)
            return model.closed
        finally:
            del self._unloading[model]
            gone.set_result(None)

    def _forget(self, model: LoadedModel) -> list[ModelKey]:
        """Take the model from the loaded ones. Returns its keys there."""
        keys = [key for key, one in self.loaded.items() if one is model]
        for key in keys:
            del self.loaded[key]
        return keys

    async def _close_unused(self, model: LoadedModel) -> None:
        """Wait for the requests of the model, and close it."""
        while not await model.wait_unused(_CLOSE_S):
            log.warning("%s version %d is unloaded, but still in use", model.name, model.artifact.version)
        if await self._close(model):
            log.info("unloaded %s version %d", model.name, model.artifact.version)

    async def _close(self, model: LoadedModel) -> bool:
        """Close the model. Returns False if a batch is stuck in it."""
        await model.aclose(_CLOSE_S)
        if model.closed:
            self._on_devices[model.device].remove(model)
        return model.closed

    async def _open(self, artifact: Artifact, device: Device, there: DeviceModels) -> OpenedEngine:
        """Open the engine on a thread. If memory lacks, evict the least recently used model and try once more."""
        try:
            return await self._on_thread(partial(_opened, device, artifact), _discard)
        except EngineUnavailableError as error:
            if not out_of_memory(error) or (victim := self._memory(there).least_recently_used()) is None:
                raise
            log.warning("%s does not fit on %s: %s", artifact.manifest.name, device.name, error)
            if not await self._unload(there, self.loaded[victim.name, victim.version]):
                raise
        return await self._on_thread(partial(_opened, device, artifact), _discard)

    async def _on_thread(self, work: Callable[[], X], discard: Callable[[X], None] = lambda _: None) -> X:
        """Run `work` on a thread and return its result. If the caller is cancelled, `discard` gets the result later."""
        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            working.add_done_callback(lambda done: _pass_on(done, discard))
            raise

    def _stuck_gauges(self) -> list[tuple[tuple[str, ...], dict[str, float]]]:
        return [gauge for there in self._on_devices.values() for gauge in there.stuck_gauges()]

    def _gauges(self) -> list[tuple[str, dict[str, float]]]:
        return [
            (
                there.device,
                {
                    "device_models": len(there.models),
                    "device_bytes": self._memory(there).used_bytes,
                    "device_budget_bytes": there.budget_bytes,
                    "utilisation": there.slots.utilisation(),
                },
            )
            for there in self._on_devices.values()
        ]


def _noting(open_engine: OpenEngine, notes: Sequence[str]) -> OpenEngine:
    """`open_engine` for the CPU, whose choice says why no GPU took the model: the refusals on GPUs come first."""

    def opens(artifact: Artifact) -> OpenedEngine:
        opened = open_engine(artifact)
        info = opened.engine.describe()
        told = [f"{note}; {info.runtime} in {info.precision} serves instead" for note in notes]
        return replace(opened, choice=replace(opened.choice, passed_over=(*told, *opened.choice.passed_over)))

    return opens


def _expected(device: Device, artifact: Artifact) -> int:
    """The estimated bytes of an engine of the artifact on that device. Called on a thread."""
    held = held_bytes(artifact.graph.stat().st_size, device.rows, artifact.manifest.input.crop)
    if device.name == CPU:
        return held
    return expected_bytes(held, (plan.record.size_bytes for plan in read_plans(artifact.folder)[0]))


def _opened(device: Device, artifact: Artifact) -> OpenedEngine:
    """Build the engine and warm it up. Called on a thread."""
    try:
        return device.open_engine(artifact)
    except EngineUnavailableError:
        raise
    except Exception as error:  # a runtime's own exceptions have no common base
        raise EngineUnavailableError(f"its engine failed: {error}") from error


def _pass_on(done: asyncio.Future[X], discard: Callable[[X], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        discard(done.result())


def _discard(opened: OpenedEngine) -> None:
    """Close an engine that nobody waits for any more."""
    opened.engine.close()
