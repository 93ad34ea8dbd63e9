"""What one device holds: its loaded models, their bytes, and its slots. It loads and unloads nothing itself."""

import asyncio
import math
from collections.abc import Container

from service.batching.fair_scheduler import Slots
from service.common.clock import Clock
from service.engines.base import CPU
from service.repository.device_memory import Held, Room, Tie
from service.repository.loaded_model import LoadedModel

_QUANTUM_S = 0.02  # of a batch on a CPU, where others wait for it and a larger one is hardly faster for each image


class Shelf:
    """The models on one device, those among them that are leaving included until their memory is free."""

    def __init__(self, device: str, budget_bytes: int, clock: Clock) -> None:
        self.device = device
        self.budget_bytes = budget_bytes
        self.slots = Slots(1, clock, _QUANTUM_S if device == CPU else math.inf)
        self.lock = asyncio.Lock()
        """Held by a load from the making of room to the putting down, so that two do not count on the same bytes."""
        self.models: list[LoadedModel] = []

    def put(self, model: LoadedModel) -> None:
        """It is here from now on."""
        self.models.append(model)
        self._resize()

    def remove(self, model: LoadedModel) -> None:
        """Its memory is free again."""
        self.models.remove(model)
        self._resize()

    def room(self, pinned: Container[str], given_out: Container[LoadedModel], waiting: Container[object]) -> Room:
        """What it holds now; models that are not `given_out` any more are leaving.

        Holders that are `waiting` for a load do not let go before it has ended.
        """
        return Room(
            self.device,
            self.budget_bytes,
            tuple(
                Held(model.name, model.memory_bytes, model.last_used_s, _tie(model, pinned, given_out, waiting))
                for model in self.models
            ),
        )

    def why(self, model: LoadedModel) -> str:
        """Its own batches that hang, or where none does those of others that hold every slot here; else ''."""
        now = self.slots.clock.now()
        if model.stuck:
            return ": " + "; ".join(one.told(now) for one in model.hanging)
        held = [f"{one.model} ({one.told(now)})" for other in self.models for one in other.hanging]
        return f": its device is held by a batch of {', '.join(held)}" if self.slots.all_stuck else ""

    def hanging(self) -> list[tuple[tuple[str, ...], dict[str, float]]]:
        """Of each batch that hangs here the values of `hanging.LABELS`, and for how long."""
        now = self.slots.clock.now()
        return [(one.labels, {"hanging_seconds": one.lasts_s(now)}) for model in self.models for one in model.hanging]

    def _resize(self) -> None:
        """As many batches at once as one engine may run alone: each engine has all threads of a CPU for its slots."""
        self.slots.resize(max([one.slots for one in self.models], default=1))


def _tie(
    model: LoadedModel, pinned: Container[str], given_out: Container[LoadedModel], waiting: Container[object]
) -> Tie:
    if model.stuck:
        return Tie.STUCK
    if model not in given_out:
        return Tie.LEAVING
    if model.name in pinned:
        return Tie.CONFIGURED
    if any(holder in waiting for holder in model.holders):
        return Tie.AWAITING
    return Tie.IDLE if model.idle else Tie.IN_USE
