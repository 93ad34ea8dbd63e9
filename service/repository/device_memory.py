"""Where a model goes and who makes room for it: pure functions over what each device holds, in bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

_MIB = 1 << 20
_CARD_SHARE = 0.9  # of a card's memory; the rest is for CUDA itself and for what batches need while they run
_HELD_PER_PLAN = 2  # the weights as they are in the plan, and the memory that its contexts work in


class Tie(StrEnum):
    """What keeps a model where it is, in words for a person."""

    CONFIGURED = "configured"
    LEAVING = "being unloaded"
    STUCK = "stuck in a batch"
    AWAITING = "held by a request that waits for another model"
    IN_USE = "in use"
    IDLE = "idle"


_LOOSE = (Tie.IDLE, Tie.IN_USE)  # in this order: one in use leaves only where no idle one is left


class OverBudgetError(Exception):
    """A model does not fit on a device, whoever is unloaded; the message has all figures and what to do."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one model holds; `last_used_s` is a time of the clock."""

    name: str
    size_bytes: int
    last_used_s: float
    tie: Tie


@dataclass(frozen=True, slots=True)
class Room:
    """One device, its budget in bytes (0 for no limit), and the models on it."""

    device: str
    budget_bytes: int
    held: tuple[Held, ...] = ()

    @property
    def used_bytes(self) -> int:
        """What all of them hold."""
        return sum(one.size_bytes for one in self.held)

    @property
    def free_bytes(self) -> float:
        """What is left of the budget; infinite without one."""
        return self.budget_bytes - self.used_bytes if self.budget_bytes else float("inf")


def budget_bytes(asked_mib: int, card_bytes: int | None) -> int:
    """The budget of a device: what was asked for, or else 90 % of a card's memory; 0, no limit, for the CPU."""
    if asked_mib:
        return asked_mib * _MIB
    return int(card_bytes * _CARD_SHARE) if card_bytes is not None else 0


def expected_bytes(graph_held_bytes: int, plans_bytes: Iterable[int]) -> int:
    """What a model should need on a card, before it is there: twice its largest plan, or without one as elsewhere."""
    return _HELD_PER_PLAN * max(plans_bytes, default=0) or graph_held_bytes


def by_room(rooms: Sequence[Room]) -> list[Room]:
    """The same, most free bytes first; equals stay in their order."""
    return sorted(rooms, key=lambda room: -room.free_bytes)


def oldest(room: Room) -> str | None:
    """Who leaves next: of the idle models, or else of those in use, the one unused for longest; None where none may."""
    for tie in _LOOSE:
        if loose := [one for one in room.held if one.tie is tie]:
            return min(loose, key=lambda one: one.last_used_s).name
    return None


def next_to_unload(room: Room, name: str, need_bytes: int) -> str | None:
    """Who leaves so that `name`, which needs so many bytes, may come; None where it fits as it is.

    Raises OverBudgetError where it would not fit if all left that may: then nobody is unloaded for nothing.
    """
    if need_bytes <= room.free_bytes:
        return None
    loose_bytes = sum(one.size_bytes for one in room.held if one.tie in _LOOSE)
    if need_bytes > room.free_bytes + loose_bytes:
        raise OverBudgetError(refusal(room, name, need_bytes))
    return oldest(room)


def refusal(room: Room, name: str, need_bytes: int) -> str:
    """What to tell who asked for `name`."""
    holders = ", ".join(
        f"{one.name} holds {_mib(one.size_bytes)} ({one.tie})"
        for one in sorted(room.held, key=lambda one: -one.size_bytes)
    )
    return (
        f"{name} needs about {_mib(need_bytes)} on {room.device}, whose budget is {_mib(room.budget_bytes)}; "
        f"{holders or 'nothing else is there'}; raise --memory-budget-mib, or name fewer models with --models"
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"
