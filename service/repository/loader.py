"""Opens engines where there is room for them, and unloads the models unused for longest to make some."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from models.artifact.artifact import Artifact
from models.artifact.engine_plan import read_plans
from service.common.clock import Clock
from service.common.metrics import Metrics
from service.common.types import BatchLimits
from service.engines.base import CPU, Engine, EngineUnavailableError, card_lost, held_bytes, out_of_memory
from service.engines.selection.result import Opened, OpenEngine
from service.repository.device_memory import OverBudgetError, Room, by_room, expected_bytes, next_to_unload, oldest
from service.repository.load_failures import Failures
from service.repository.loaded_model import LoadedModel
from service.repository.shelf import Shelf
from service.repository.stuck_batches import LABELS

_LEAVE_S = 5.0  # for requests that hold a model which is to leave; a batch of its own may take longer
_CLOSE_S = 60.0

X = TypeVar("X")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Device:
    """Where engines may be opened: its name as engines say it, how, and its budget in bytes, 0 for no limit.

    `rows` is how many images an engine there should have in all its slots, for what it is expected to hold.
    """

    name: str
    open_engine: OpenEngine
    budget_bytes: int = 0
    rows: int = 0


class Shelves:
    """The loaded models, by name in `loaded`, on the devices that they are on; these are found at the first load.

    Budgets hold for what engines say they hold. A model larger than a budget is not loaded, not even alone.
    """

    def __init__(
        self,
        find_devices: Callable[[], Sequence[Device]],
        *,
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
        self._shelves: dict[str, Shelf] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="load")
        self._failures = Failures(clock)
        self._leaving: dict[str, asyncio.Future[None]] = {}
        self.loaded: dict[str, LoadedModel] = {}
        self.pinned: Collection[str] = ()
        self.waiting: Callable[[], Collection[object]] = tuple
        """Holders of models that wait for others to be loaded."""
        metrics.watch(self._gauges, "device")
        metrics.watch(self._hanging, *LABELS)

    async def place(self, read: Callable[[], Artifact]) -> LoadedModel:
        """The model of the artifact that `read` reads on a thread, loaded on the first device that takes it.

        Cards are asked first, the one with the most room before the others: a plan may fit one card and not another.
        Raises what `read` raises, OverBudgetError, and EngineUnavailableError where its engine cannot run anywhere.
        """
        artifact = await self._on_thread(read)
        await self._look()
        refused: list[Exception] = []
        notes: list[str] = []
        devices = self._in_order()
        for position, device in enumerate(devices):
            telling = replace(device, open_engine=_telling(device.open_engine, notes)) if device.name == CPU else device
            try:
                return await self._load(artifact, telling, others=devices[position + 1 :])
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

    async def settled(self, name: str) -> None:
        """Wait until a model of that name that is being unloaded has gone, or is back."""
        if (leaving := self._leaving.get(name)) is not None:
            await asyncio.shield(leaving)

    def why(self, model: LoadedModel) -> str:
        """As `Shelf.why`, of the device that it is on."""
        return self._shelves[model.device].why(model)

    def stop(self) -> None:
        """Begin no load any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def aclose(self, drain_s: float) -> None:
        """Drain and close every model, those that are leaving too."""
        models = [model for shelf in self._shelves.values() for model in shelf.models]
        await asyncio.gather(*(model.aclose(drain_s) for model in models))
        self.loaded.clear()

    async def _look(self) -> None:
        """Find the devices before the first load, on a thread: to wake a card takes its driver seconds."""
        async with self._finding:
            if not self._devices:
                self._devices = await self._on_thread(self._find_devices)
                self._shelves = {one.name: Shelf(one.name, one.budget_bytes, self._clock) for one in self._devices}

    def _in_order(self) -> list[Device]:
        """The cards by their room, then the CPU."""
        by_name = {one.name: one for one in self._devices}
        rooms = by_room([self._room(self._shelves[name]) for name in by_name])
        return sorted((by_name[room.device] for room in rooms), key=lambda one: one.name == CPU)

    def _room(self, shelf: Shelf) -> Room:
        return shelf.room(self.pinned, self.loaded.values(), self.waiting())

    async def _load(self, artifact: Artifact, device: Device, others: Sequence[Device]) -> LoadedModel:
        """The model on that device, or on the one that its engine chose where no other card is left to try."""
        name, shelf = artifact.manifest.name, self._shelves[device.name]
        need = await self._on_thread(partial(_expected, device, artifact))
        async with self._turn(shelf):
            if (known := self._failures.recent(device.name, artifact)) and need > self._room(shelf).free_bytes:
                raise EngineUnavailableError(known)
            await self._make_room(shelf, name, need)
            try:
                opened = await self._open(artifact, device, shelf)
            except EngineUnavailableError as error:
                self._failures.note(device.name, artifact, error)
                raise
            engine = opened.engine
            try:
                if engine.device == device.name:
                    await self._make_room(shelf, name, engine.memory_bytes)  # it may hold more than was expected
                    return self._put(artifact, opened, shelf)
                if any(other.name != CPU for other in others):
                    raise EngineUnavailableError(f"{name} would run on {engine.device}")
                landed = self._landed(engine.device)
                async with self._turn(landed):
                    await self._make_room(landed, name, engine.memory_bytes)
                    return self._put(artifact, opened, landed)
            except BaseException:
                await self._on_thread(opened.engine.close)
                raise

    def _landed(self, device: str) -> Shelf:
        """The shelf of that device; a card that nobody listed has the CPU's budget, which is the one asked for."""
        if device not in self._shelves:
            budget = next((one.budget_bytes for one in self._devices if one.name == CPU), 0)
            self._shelves[device] = Shelf(device, budget, self._clock)
        return self._shelves[device]

    def _put(self, artifact: Artifact, opened: Opened, shelf: Shelf) -> LoadedModel:
        """The model, given out from now on."""
        name = artifact.manifest.name
        model = LoadedModel(
            artifact,
            opened,
            limits=self._limits(opened.engine),
            clock=self._clock,
            metrics=self._metrics.for_model(name),
            on_health=self._on_change,
            device_slots=shelf.slots,
        )
        shelf.put(model)
        self.loaded[name] = model
        return model

    @asynccontextmanager
    async def _turn(self, shelf: Shelf) -> AsyncIterator[None]:
        """One load at a time where bytes are counted; where none are, loads need not wait for each other."""
        if not shelf.budget_bytes:
            yield
            return
        async with shelf.lock:
            yield

    async def _make_room(self, shelf: Shelf, name: str, need_bytes: int) -> None:
        """Unload models until so many bytes are free. Raises OverBudgetError."""
        while (victim := next_to_unload(self._room(shelf), name, need_bytes)) is not None:
            if not await self._unload(shelf, self.loaded[victim]):
                raise OverBudgetError(f"{victim} would have to be unloaded for {name} and is still in use; try again")

    async def _unload(self, shelf: Shelf, model: LoadedModel) -> bool:
        """Whether it left: it is given to nobody new, and closed once its requests have their answers."""
        del self.loaded[model.name]
        self._leaving[model.name] = gone = asyncio.get_running_loop().create_future()
        try:
            if not await model.left(_LEAVE_S):
                self.loaded[model.name] = model
                return False
            await model.aclose(_CLOSE_S)
            if model.closed:
                shelf.remove(model)
                self._metrics.unloads.labels(model.name).inc()
                log.info("unloaded %s from %s to make room", model.name, shelf.device)
            return model.closed
        finally:
            del self._leaving[model.name]
            gone.set_result(None)

    async def _open(self, artifact: Artifact, device: Device, shelf: Shelf) -> Opened:
        """On a thread; where memory lacks, once more without the model unused for longest."""
        try:
            return await self._on_thread(partial(_opened, device, artifact), _discard)
        except EngineUnavailableError as error:
            if not out_of_memory(error) or (victim := oldest(self._room(shelf))) is None:
                raise
            log.warning("%s does not fit on %s: %s", artifact.manifest.name, device.name, error)
            if not await self._unload(shelf, self.loaded[victim]):
                raise
        return await self._on_thread(partial(_opened, device, artifact), _discard)

    async def _on_thread(self, work: Callable[[], X], discard: Callable[[X], None] = lambda _: None) -> X:
        """What `work` gives; where the caller has left meanwhile, the thread goes on and `discard` gets it."""
        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            working.add_done_callback(lambda done: _pass_on(done, discard))
            raise

    def _hanging(self) -> list[tuple[tuple[str, ...], dict[str, float]]]:
        return [gauge for shelf in self._shelves.values() for gauge in shelf.hanging()]

    def _gauges(self) -> list[tuple[str, dict[str, float]]]:
        return [
            (
                shelf.device,
                {
                    "device_models": len(shelf.models),
                    "device_bytes": self._room(shelf).used_bytes,
                    "device_budget_bytes": shelf.budget_bytes,
                },
            )
            for shelf in self._shelves.values()
        ]


def _telling(open_engine: OpenEngine, notes: Sequence[str]) -> OpenEngine:
    """Opens the same, and its choice says why no card has it: what refused it on a card knew of no other device."""

    def opens(artifact: Artifact) -> Opened:
        opened = open_engine(artifact)
        info = opened.engine.describe()
        told = [f"{note}; {info.runtime} in {info.precision} serves instead" for note in notes]
        return replace(opened, choice=replace(opened.choice, passed_over=(*told, *opened.choice.passed_over)))

    return opens


def _expected(device: Device, artifact: Artifact) -> int:
    """On a thread: about how many bytes an engine of the artifact will hold there."""
    held = held_bytes(artifact.graph.stat().st_size, device.rows, artifact.manifest.input.crop)
    if device.name == CPU:
        return held
    return expected_bytes(held, (plan.record.size_bytes for plan in read_plans(artifact.folder)[0]))


def _opened(device: Device, artifact: Artifact) -> Opened:
    """On a thread: build the engine and warm it up."""
    try:
        return device.open_engine(artifact)
    except EngineUnavailableError:
        raise
    except Exception as error:  # a runtime's own exceptions have no common base
        raise EngineUnavailableError(f"its engine failed: {error}") from error


def _pass_on(done: asyncio.Future[X], discard: Callable[[X], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        discard(done.result())


def _discard(opened: Opened) -> None:
    """Close an engine that nobody waits for any more."""
    opened.engine.close()
