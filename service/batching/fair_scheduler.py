"""Shares the executors of one device among the queues of its models, so that a flood on one does not starve the rest.

Start-time fair queueing (Goyal, Vin, Cheng: Start-time Fair Queuing, SIGCOMM 1996) over seconds of running: whoever has
used the device least goes next; time without work earns nothing, and once nobody has any all are equals again. It lives
on the event loop: no lock, no task.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from service.common.clock import Clock

_ROUNDING = 1e-9
_LATELY_S = 5.0  # since another queue had work: one that has some again and again should find no long batch each time


@dataclass(slots=True, eq=False)
class SlotLease:
    """Leave to run one batch. Give it back exactly once."""

    _share: "Flow"
    _started: float
    _expected_s: float
    _weight: float

    def give_back(self) -> None:
        """The batch has ended; who is next begins now, its own queue among those that are asked."""
        self._share.gave_back(self._started, self._expected_s, self._weight)


class FairScheduler:
    """At most `limit` batches at once on one device. Stuck ones among them go on counting.

    An engine that runs fewer at once has more threads for each: a batch of it counts as so many more. A batch should
    last at most `quantum_s` while, or soon after, another queue has had work: it cannot be interrupted.
    """

    def __init__(self, limit: int, clock: Clock, quantum_s: float = math.inf) -> None:
        self.limit = limit
        self.running = 0.0
        self.stuck = 0.0
        self.clock = clock
        self.quantum_s = quantum_s
        self.virtual_s = 0.0
        self._asked: tuple[object, float] = None, -math.inf
        self._other_asked_at = -math.inf
        self._latest_s = 0.0
        self._waiting: dict[Flow, None] = {}
        self._chosen: Flow | None = None
        self._offering = False

    @property
    def all_stuck(self) -> bool:
        """Whether every slot is held by a batch that does not return: then nobody can run here."""
        return self.stuck >= self.limit - _ROUNDING

    def join(self, on_turn: Callable[[], None], own: int = 0) -> "Flow":
        """A queue's part in the device; `on_turn` is called when a slot that it asked for is there.

        `own` is how many batches fill the device when they are all of this queue; 0 for as many as of any.
        """
        return Flow(self, on_turn, own)

    def weight(self, own: int) -> float:
        """How many slots a batch takes of a queue that fills the device with `own` of its batches."""
        return max(1.0, self.limit / own) if own else 1.0

    def _fits(self, share: "Flow") -> bool:
        return self.running + self.weight(share.own) <= self.limit + _ROUNDING or not self.running

    def resize(self, limit: int) -> None:
        """Run more or fewer at once from now on; nothing that runs is stopped."""
        self.limit = limit
        self.offer()

    def freed(self, share: "Flow", weight: float) -> None:
        """It gave one back: ask who is next; with nobody there, all who come later are equals."""
        left = self.running - weight
        self.running = left if left > _ROUNDING else 0.0
        self._latest_s = max(self._latest_s, share.used_s)
        self.wait(share)  # or those who wait would go first, whatever they have used
        self.offer()
        if not (self.running or self._waiting):
            self.virtual_s = max(self.virtual_s, self._latest_s)

    def asked(self, share: "Flow") -> None:
        """It has work now."""
        last, at = self._asked
        if last is not share.name:
            self._other_asked_at = at
        self._asked = share.name, self.clock.now()

    def is_contended(self, share: "Flow") -> bool:
        """Whether another queue than that one has, or had within the last seconds, work."""
        last, at = self._asked
        at = self._other_asked_at if last is share.name else at
        return self.clock.now() - at <= _LATELY_S

    def wait(self, share: "Flow") -> None:
        """Ask it as soon as it is its turn."""
        self._waiting[share] = None

    def is_next(self, share: "Flow") -> bool:
        """Whether a slot is free, and it was asked just now, or all who wait have used the device more."""
        if not self._fits(share):
            return False
        if self._chosen is share:
            self._chosen = None
            return True
        return all(share.used_s < other.used_s for other in self._waiting if other is not share)

    def offer(self) -> None:
        """Ask those who wait, in the order of their use, until no slot is free or nobody waits."""
        if self._offering:  # who is asked below may give a slot back at once: the loop sees it
            return
        self._offering = True
        try:
            while self._waiting and self.running < self.limit:
                self._chosen = share = min(self._waiting, key=lambda one: one.used_s)  # the first of equals
                del self._waiting[share]
                share.on_turn()
                if share in self._waiting and not self._fits(share):
                    return  # there is not room enough for it; were others let by, it might wait for ever
        finally:
            self._offering, self._chosen = False, None


@dataclass(slots=True, eq=False)
class Flow:
    """What one queue has used of its device, in seconds of virtual time."""

    slots: FairScheduler
    on_turn: Callable[[], None]
    own: int = 0
    used_s: float = 0.0
    name: object = field(default_factory=object)
    """Who it is: the device remembers this of the last one, and no queue whose model has been unloaded."""
    _last_s: float = field(default=0.0)  # how long its last batch ran: what the next one is expected to

    @property
    def quantum_s(self) -> float:
        """How long its next batch should last at most: infinity while no other queue wants the device."""
        return self.slots.quantum_s if self.slots.is_contended(self) else math.inf

    @property
    def free(self) -> int:
        """How many batches of it the device could start now."""
        slots = self.slots
        return max(0, int((slots.limit - slots.running + _ROUNDING) / slots.weight(self.own)))

    def take(self) -> SlotLease | None:
        """A slot now, or None: then `on_turn` is called once there is one, where work may have gone meanwhile."""
        slots = self.slots
        slots.asked(self)
        self.used_s = max(self.used_s, slots.virtual_s)
        if not slots.is_next(self):
            slots.wait(self)
            return None
        weight = slots.weight(self.own)
        slots.running += weight
        slots.virtual_s = self.used_s
        self.used_s += self._last_s
        return SlotLease(self, slots.clock.now(), self._last_s, weight)

    def gave_back(self, started: float, expected_s: float, weight: float) -> None:
        """Charge what the batch really took, and let the next begin."""
        slots = self.slots
        self._last_s = (slots.clock.now() - started) * weight
        self.used_s += self._last_s - expected_s
        slots.freed(self, weight)
