"""Shares the slots of one device among its models, so that many requests for one model do not starve the others.

Start-time fair queueing (Goyal, Vin, Cheng: Start-time Fair Queuing, SIGCOMM 1996) over seconds of device time: the
model that has used the device least goes next. A model without work saves up no time for later, and once no model has
work all are equal again. Everything runs on the event loop.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from service.common.clock import Clock

_ROUNDING = 1e-9
_LATELY_S = 5.0  # a model with occasional work should not wait for a long batch of another model each time
_AVERAGED_S = 15.0  # as often as Prometheus and a HorizontalPodAutoscaler usually look


@dataclass(slots=True, eq=False)
class Flow:
    """The batches of one model on a device.

    `used_s` is the device time charged to the model, in seconds. A model that returns from a pause starts at the
    scheduler's current virtual time instead. `own_slots` is the number of slots of the model's engine: so many of its
    batches fill the device. If it is 0, each batch takes one slot of the device. The scheduler calls `on_turn` when
    this flow waits and a slot is free.
    """

    number: int
    on_turn: Callable[[], None]
    own_slots: int
    used_s: float = 0.0
    last_s: float = 0.0
    """Run time of the last batch times the slots that it took. The next batch is expected to cost the same."""


@dataclass(frozen=True, slots=True, eq=False)
class SlotLease:
    """Permission to run one batch, which should last at most `quantum_s` seconds. It is released exactly once.

    `weight` is the number of slots that the batch takes. `expected_s` is the device time that was charged at its start.
    """

    flow: Flow
    started: float
    expected_s: float
    weight: float
    quantum_s: float


class FairScheduler:
    """Gives the `limit` slots of one device to batches. A stuck batch keeps its slots.

    A batch usually takes one slot. If its engine has fewer slots than the device, the batch uses more threads and takes
    several slots. A running batch cannot be interrupted. A batch should therefore last at most `quantum_s` while
    another flow has work, or had some recently.
    """

    def __init__(self, limit: int, clock: Clock, quantum_s: float = math.inf) -> None:
        self.limit = limit
        self.clock = clock
        self.quantum_s = quantum_s
        self.running = 0.0
        self.stuck = 0.0
        self._leases: set[SlotLease] = set()
        self._busy, self._busy_at = 0.0, clock.now()
        self._flows = 0
        self._virtual_s = 0.0
        self._latest_s = 0.0
        self._waiting: dict[Flow, None] = {}
        self._offered: Flow | None = None
        self._offering = False
        self._last_flow, self._last_work_at, self._other_work_at = 0, -math.inf, -math.inf

    @property
    def all_stuck(self) -> bool:
        """Whether stuck batches hold every slot, so that nothing can run here."""
        return self.stuck >= self.limit - _ROUNDING

    def utilisation(self) -> float:
        """The share of the slots' time that batches take, from 0 to 1: an exponential moving average over 15 s."""
        now = self.clock.now()
        ended = self._busy * math.exp((self._busy_at - now) / _AVERAGED_S)
        running = sum(lease.weight * -math.expm1((lease.started - now) / _AVERAGED_S) for lease in self._leases)
        return min(1.0, ended + running / self.limit)

    def join(self, on_turn: Callable[[], None], own_slots: int = 0) -> Flow:
        self._flows += 1
        return Flow(self._flows, on_turn, own_slots)

    def weight(self, own_slots: int) -> float:
        """The slots that one batch takes if `own_slots` batches fill the device: at least 1, and 1 for 0."""
        return max(1.0, self.limit / own_slots) if own_slots else 1.0

    def free_slots(self, flow: Flow) -> int:
        """How many batches of the flow the device could start now."""
        return max(0, int((self.limit - self.running + _ROUNDING) / self.weight(flow.own_slots)))

    def resize(self, limit: int) -> None:
        """Change the number of slots. Running batches are not stopped."""
        self.limit = limit
        self._offer()

    def take(self, flow: Flow) -> SlotLease | None:
        """Take the slots for one batch of the flow. Returns None if the flow must wait.

        A waiting flow gets a call of `on_turn` later, even if it has no work by then.
        """
        now = self.clock.now()
        if flow.number != self._last_flow:
            self._last_flow, self._other_work_at = flow.number, self._last_work_at
        self._last_work_at = now
        flow.used_s = max(flow.used_s, self._virtual_s)
        offered, self._offered = self._offered is flow, None
        weight = self.weight(flow.own_slots)
        first = offered or all(flow.used_s < other.used_s for other in self._waiting if other is not flow)
        if not (first and self._fits(weight)):
            self._waiting[flow] = None
            return None
        self.running += weight
        self._virtual_s = flow.used_s
        flow.used_s += flow.last_s
        contended = now - self._other_work_at <= _LATELY_S
        lease = SlotLease(flow, now, flow.last_s, weight, self.quantum_s if contended else math.inf)
        self._leases.add(lease)
        return lease

    def release(self, lease: SlotLease) -> None:
        """End a batch: charge its device time to the flow, and offer the slot to waiting flows."""
        flow, now = lease.flow, self.clock.now()
        self._leases.remove(lease)
        share = lease.weight / self.limit * -math.expm1((lease.started - now) / _AVERAGED_S)
        self._busy, self._busy_at = self._busy * math.exp((self._busy_at - now) / _AVERAGED_S) + share, now
        flow.last_s = (now - lease.started) * lease.weight
        flow.used_s += flow.last_s - lease.expected_s
        running = self.running - lease.weight
        self.running = running if running > _ROUNDING else 0.0
        self._latest_s = max(self._latest_s, flow.used_s)
        self._waiting[flow] = None  # else the other flows would always go first
        self._offer()
        if not (self.running or self._waiting):
            self._virtual_s = max(self._virtual_s, self._latest_s)

    def _fits(self, weight: float) -> bool:
        return self.running + weight <= self.limit + _ROUNDING or not self.running

    def _offer(self) -> None:
        """Let waiting flows start batches, least used first, until no slot is free."""
        if self._offering:  # a flow that is called below released its slot at once: the loop below continues with it
            return
        self._offering = True
        try:
            while self._waiting and self.running < self.limit:
                self._offered = flow = min(self._waiting, key=lambda one: one.used_s)  # the first of equals
                del self._waiting[flow]
                flow.on_turn()
                if flow in self._waiting and not self._fits(self.weight(flow.own_slots)):
                    return  # it needs more slots than are free; if others went before it, it might wait for ever
        finally:
            self._offering, self._offered = False, None
