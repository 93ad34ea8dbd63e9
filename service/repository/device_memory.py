"""Accounts for the memory of the models on one device, and selects the model to evict."""

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from service.batching.fair_scheduler import FairScheduler
from service.common.clock import Clock
from service.engines.base import CPU
from service.engines.selection.opening import OpenEngine
from service.repository.loaded_model import LoadedModel

_MIB = 1 << 20
_CARD_SHARE = 0.9  # of a GPU's memory; the rest is for CUDA itself and for running batches
_HELD_PER_PLAN = 2  # the weights in the plan, and the memory of its contexts
_QUANTUM_S = 0.02  # run time of a batch on a CPU while other models wait; larger batches hardly save time per image


class OverBudgetError(Exception):
    """A model does not fit on a device even after evictions. The message has all figures and what to do."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device to open engines on. `name` equals `Engine.device`. `budget_bytes` 0 means no limit.

    `rows` is the number of images in all slots of an engine together, to estimate its memory before it is opened.
    """

    name: str
    open_engine: OpenEngine
    budget_bytes: int = 0
    rows: int = 0


class ModelUse(StrEnum):
    """The state of a model on a device, as text for messages. Idle models are evicted first, then those in use."""

    CONFIGURED = "configured"
    UNLOADING = "being unloaded"
    STUCK = "stuck in a batch"
    AWAITING = "held by a request that waits for another model"
    IN_USE = "in use"
    IDLE = "idle"


_EVICTABLE = (ModelUse.IDLE, ModelUse.IN_USE)


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """The memory of one version of a model. `last_used_s` is a time of the clock."""

    name: str
    size_bytes: int
    last_used_s: float
    use: ModelUse
    version: int


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One device, its budget in bytes (0 for no limit), and the memory of the models on it."""

    device: str
    budget_bytes: int
    models: tuple[ModelMemory, ...] = ()

    @property
    def used_bytes(self) -> int:
        return sum(one.size_bytes for one in self.models)

    @property
    def free_bytes(self) -> float:
        """The unused part of the budget; infinite without a budget."""
        return self.budget_bytes - self.used_bytes if self.budget_bytes else float("inf")

    def least_recently_used(self) -> ModelMemory | None:
        """The model to evict: the least recently used of those that are IDLE, else of those that are IN_USE.

        None if there is neither: models in any other `ModelUse` are not evicted.
        """
        for use in _EVICTABLE:
            if found := [one for one in self.models if one.use is use]:
                return min(found, key=lambda one: one.last_used_s)
        return None

    def next_to_evict(self, name: str, need_bytes: int) -> ModelMemory | None:
        """The model to evict so that `name`, which needs `need_bytes`, fits. None if it fits already.

        Raises OverBudgetError if it would not fit even after all possible evictions: then nothing is evicted.
        """
        if need_bytes <= self.free_bytes:
            return None
        evictable_bytes = sum(one.size_bytes for one in self.models if one.use in _EVICTABLE)
        if need_bytes > self.free_bytes + evictable_bytes:
            raise OverBudgetError(self._refusal(name, need_bytes))
        return self.least_recently_used()

    def _refusal(self, name: str, need_bytes: int) -> str:
        holders = ", ".join(
            f"{one.name} holds {_mib(one.size_bytes)} ({one.use})"
            for one in sorted(self.models, key=lambda one: -one.size_bytes)
        )
        return (
            f"{name} needs about {_mib(need_bytes)} on {self.device}, whose budget is {_mib(self.budget_bytes)}; "
            f"{holders or 'nothing else is there'}; raise --memory-budget-mib, or name fewer models with --models"
        )


class DeviceModels:
    """The models on one device, including those that are being unloaded, and the slots of the device."""

    def __init__(self, device: str, budget_bytes: int, clock: Clock) -> None:
        self.device = device
        self.budget_bytes = budget_bytes
        self.slots = FairScheduler(1, clock, _QUANTUM_S if device == CPU else math.inf)
        self.lock = asyncio.Lock()
        """A load holds it while it frees memory and opens its engine, so that two loads do not count the same bytes."""
        self.models: list[LoadedModel] = []

    def add(self, model: LoadedModel) -> None:
        self.models.append(model)
        self._resize()

    def remove(self, model: LoadedModel) -> None:
        self.models.remove(model)
        self._resize()

    def memory(self, loaded: Collection[LoadedModel], is_configured: Callable[[LoadedModel], bool]) -> DeviceMemory:
        """The present memory of each model. A model that is not in `loaded` is being unloaded."""

        def use(model: LoadedModel) -> ModelUse:
            if model.stuck:
                return ModelUse.STUCK
            if model not in loaded:
                return ModelUse.UNLOADING
            if is_configured(model):
                return ModelUse.CONFIGURED
            if any(lease.waits for lease in model.leases):
                return ModelUse.AWAITING
            return ModelUse.IDLE if model.idle else ModelUse.IN_USE

        models = [
            ModelMemory(one.name, one.memory_bytes, one.last_used_s, use(one), one.artifact.version)
            for one in self.models
        ]
        return DeviceMemory(self.device, self.budget_bytes, tuple(models))

    def stuck_reason(self, model: LoadedModel) -> str:
        """The stuck batches of the model, or else of other models if they hold every slot here; else ''."""
        now = self.slots.clock.now()
        if model.stuck:
            return ": " + "; ".join(one.described(now) for one in model.stuck_batches)
        others = [f"{one.model} ({one.described(now)})" for other in self.models for one in other.stuck_batches]
        return f": its device is held by a batch of {', '.join(others)}" if self.slots.all_stuck else ""

    def stuck_gauges(self) -> list[tuple[tuple[str, ...], dict[str, float]]]:
        """For each stuck batch here the values of `stuck_batches.LABELS`, and its age in seconds."""
        now = self.slots.clock.now()
        stuck = [one for model in self.models for one in model.stuck_batches]
        return [(one.labels, {"stuck_batch_seconds": one.age_s(now)}) for one in stuck]

    def _resize(self) -> None:
        """Set the slots of the device to the largest `slots` of its models: the engines share the same CPU threads."""
        self.slots.resize(max([one.slots for one in self.models], default=1))


def budget_bytes(asked_mib: int, card_bytes: int | None) -> int:
    """The memory budget of a device in bytes: as asked, else 90% of a GPU's memory, else 0 (no limit) for the CPU."""
    if asked_mib:
        return asked_mib * _MIB
    return int(card_bytes * _CARD_SHARE) if card_bytes is not None else 0


def expected_bytes(graph_held_bytes: int, plans_bytes: Iterable[int]) -> int:
    """The expected bytes of a model on a GPU: twice its largest plan, or `graph_held_bytes` without a plan."""
    return _HELD_PER_PLAN * max(plans_bytes, default=0) or graph_held_bytes


def most_free_first(devices: Sequence[DeviceMemory]) -> list[DeviceMemory]:
    """The devices sorted by free bytes, descending. The sort is stable."""
    return sorted(devices, key=lambda one: -one.free_bytes)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"
