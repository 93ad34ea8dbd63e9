"""Dynamic batching: a batch starts as soon as a slot is free, and grows only while every slot is busy.

Everything happens on the event loop. One synchronous method, `_pump`, decides; it is called after an item is queued and
when a batch has finished. There is no timer, no lock, no thread and no background task that could die.
The batcher knows no engine: it is given a function that runs a batch.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

from service.batching.admission import Admission
from service.batching.cost_model import Pacer, even_part
from service.batching.execution import Runner, as_engine_error
from service.batching.fair_scheduler import FairScheduler, SlotLease
from service.batching.pending import Pending
from service.batching.queue import Waiting
from service.batching.slo import Place, Slo, SloUnattainable
from service.common.clock import Clock
from service.common.errors import DeadlineExceeded, EngineError, NotReady, ShuttingDown, TopfiveError
from service.common.metrics import BatchMetrics
from service.common.types import BatchLimits, ItemOutcome, ItemResult

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)


class BatcherState(StrEnum):
    """OPEN takes work; DRAINING finishes what it has; CLOSED and BROKEN refuse everything."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"
    BROKEN = "broken"


class Batcher(Generic[T, R]):
    """Runs items of T in batches through `run`, which gives a result R or an exception for each, in order.

    `scheduler` is that of its device, shared with other batchers; alone it has as many slots as its limits say.
    `run` may raise MemoryError: the batch is halved, each half tried once, and the maximum lowered. Any other error
    of `run` fails that batch alone. `max_failures` of them in a row make `healthy` false until a batch succeeds.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        limits: BatchLimits,
        *,
        clock: Clock,
        metrics: BatchMetrics,
        on_health: Callable[[], None] = lambda: None,
        scheduler: FairScheduler | None = None,
    ) -> None:
        self._runner = Runner(run, limits.max_batch)
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._on_health = on_health
        self._pacer = Pacer()
        self._slo = Slo(limits.slo_s, limits.slots) if limits.slo_s else None
        self._queue: Waiting[T, R] = Waiting(self._slo)
        self._running: dict[asyncio.Task[None], list[Pending[T, R]]] = {}
        self._admission = Admission(limits, self._slo, pacer=self._pacer, clock=clock, metrics=metrics)
        self._failures = 0
        self._share = (scheduler or FairScheduler(limits.slots, clock)).join(self._pump, limits.slots)
        self._drained: asyncio.Event | None = None
        self._cause: BaseException | None = None
        self.state = BatcherState.OPEN

    @property
    def depth(self) -> int:
        """Items that wait for a slot."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Items in batches that run now."""
        return sum(len(items) for items in self._running.values())

    @property
    def admitted(self) -> int:
        """Places taken: by images being decoded, waiting or running."""
        return self._admission.admitted

    @property
    def max_batch(self) -> int:
        """The largest batch dispatched now: lower than configured after the engine ran out of memory."""
        return self._runner.max_batch

    @property
    def healthy(self) -> bool:
        """Whether it takes work and the last real runs did not all fail."""
        return self.state is BatcherState.OPEN and self._failures < self._limits.max_failures

    @contextmanager
    def admit(self, places: int = 1) -> Iterator[Place]:
        """Hold places of `capacity`, all or none; taken before the decoding, because that is where memory grows.

        Raises Overloaded at once where they are not free or the answer could not be ready within the bound, BadRequest
        where they never can be, ShuttingDown or NotReady where no work is taken.
        """
        self._check_open()
        place = self._admission.take(places, self.max_batch)
        try:
            yield place
        finally:
            self._admission.give_back(place)
            self._note_drained()

    async def submit(self, values: Iterable[T], *, deadline: float, place: Place | None = None) -> list[ItemResult[R]]:
        """The results for `values`. `deadline` is a time of the clock in seconds, `place` what `admit` gave for them.

        All are queued before any runs, so that they fill batches together. Raises the DeadlineExceeded, EngineError,
        Overloaded, ShuttingDown or NotReady of the first that has none. The caller watches the deadline and cancels;
        an item that has expired is never run. A caller that is cancelled leaves the queue in the same turn of the
        loop; in flight, its rows are computed and dropped. Without a `place` no bound is kept.
        """
        items = [self._enqueued(value, deadline, place) for value in values]
        left: ItemOutcome | None = None  # its results may be there already, in the turn of the loop in which it leaves
        try:
            self._pump()
            results = [await item.future for item in items]
            if place is not None:
                self._admission.answered(place)
            return results
        except SloUnattainable:
            self._admission.refused(len(items))
            raise
        except asyncio.CancelledError:
            left = ItemOutcome.EXPIRED if self._clock.now() >= deadline else ItemOutcome.CANCELLED
            raise
        finally:
            for item in items:
                self._queue.remove(item)
                outcome = item.leave()
                self._metrics.ended(left or outcome)

    async def aclose(self, drain_s: float) -> None:
        """Take no new work, wait at most `drain_s` seconds for what was accepted, then fail the rest."""
        if self.state is BatcherState.OPEN:
            self.state = BatcherState.DRAINING
        self._drained = self._drained or asyncio.Event()  # a second call waits with the first, to the earlier limit
        self._note_drained()
        self._pump()
        limit = self._clock.call_at(self._clock.now() + drain_s, self._drained.set)
        try:
            await self._drained.wait()
        finally:
            limit.cancel()
        if self.state is BatcherState.DRAINING:
            self.state = BatcherState.CLOSED
        self._fail_all(ShuttingDown())

    def _check_open(self) -> None:
        if self.state is BatcherState.BROKEN:
            raise NotReady("the model's queue has failed; restart the server") from self._cause
        if self.state is not BatcherState.OPEN:
            raise ShuttingDown

    def _enqueued(self, value: T, deadline: float, place: Place | None) -> Pending[T, R]:
        """The value in the queue, or settled at once where it cannot run any more."""
        now = self._clock.now()
        future: asyncio.Future[ItemResult[R]] = asyncio.get_running_loop().create_future()
        item = Pending[T, R](value, deadline, now, place or Place(now, 1, 1), future)
        try:
            if self.state is not BatcherState.DRAINING:  # draining: it was admitted before
                self._check_open()
            if deadline <= now:
                raise DeadlineExceeded
        except TopfiveError as error:
            item.settle(error)
            return item
        self._queue.put(item)
        if not math.isinf(due := item.place.due):
            item.timer = self._clock.call_at(due, lambda: self._queue.refuse(item, self._clock.now()))
        return item

    def _pump(self) -> None:
        """Start batches while a slot is free and items wait; a bug in here fails everything pending, openly."""
        try:
            while self._may_start() and (slot := self._share.take()):
                self._dispatch(slot)
        except Exception as error:
            self._break(error)

    def _may_start(self) -> bool:
        """Whether something waits and this engine, if not the device, is free for it."""
        return len(self._queue) > 0 and len(self._running) < self._limits.slots

    def _dispatch(self, slot: SlotLease) -> None:
        """Cut a batch from the front of the queue and run it; expired items are failed instead."""
        now, quantum_s = self._clock.now(), self._share.quantum_s
        items: list[Pending[T, R]] = []
        try:
            items = self._queue.cut(now, min(self._portion(), self._pacer.most_within(quantum_s, self.max_batch)))
        finally:
            if not items:  # a bug in here is no reason to keep the other models from the slot
                slot.give_back()
        if not items:
            return
        task = asyncio.get_running_loop().create_task(self._execute(items, now))
        self._running[task] = items
        task.add_done_callback(partial(self._finished, slot))
        self._metrics.dispatched(len(items), [now - item.enqueued for item in items])

    def _portion(self) -> int:
        """How many of those who wait are for the next slot: all, or its part where slots compute apart."""
        slots = min(self._limits.slots, len(self._running) + 1 + self._share.free)
        return even_part(self.depth, self.in_flight, slots) if self._limits.apart else self.depth

    async def _execute(self, items: list[Pending[T, R]], started: float) -> None:
        """Run one batch and settle its items."""
        size = len(items)
        results: Sequence[R | Exception]
        try:
            results = await self._runner.rows([item.value for item in items])
        except Exception as caught:
            log.error("a batch of %d failed", size, exc_info=caught)
            results = [caught] * size
        now = self._clock.now()
        took = now - started
        self._metrics.ran(took)
        self._pacer.finished(size, took)
        if self._slo is not None:
            self._slo.ran(size, took)
        self._note_health(failed=all(isinstance(result, Exception) for result in results))
        for item, result in zip(items, results, strict=True):
            if isinstance(result, Exception):
                item.settle(as_engine_error(result))
            else:
                item.settle(ItemResult(result, started - item.enqueued, took, size))

    def _finished(self, slot: SlotLease, task: asyncio.Task[None]) -> None:
        """Free the slot of a batch that has ended, however it ended."""
        if task.cancelled():  # its engine's threads have gone, or the loop is ending
            for item in self._running[task]:
                item.settle(EngineError("the run was cancelled"))
        elif (error := task.exception()) is not None:
            self._break(error)
        del self._running[task]
        slot.give_back()  # and pump, when it is this queue's turn
        self._note_drained()

    def _note_health(self, *, failed: bool) -> None:
        before = self.healthy
        self._failures = self._failures + 1 if failed else 0
        if self.healthy is not before:
            self._on_health()

    def _note_drained(self) -> None:
        if self._drained is not None and not self.admitted and not self._queue and not self._running:
            self._drained.set()

    def _break(self, cause: BaseException) -> None:
        """A bug: refuse everything from now on and tell every waiting caller, rather than hang."""
        log.critical("the batcher is broken", exc_info=cause)
        self.state, self._cause = BatcherState.BROKEN, cause
        error = EngineError("the model's queue has failed")
        error.__cause__ = cause
        self._fail_all(error)
        self._on_health()

    def _fail_all(self, error: Exception) -> None:
        for item in [*self._queue, *(item for items in self._running.values() for item in items)]:
            item.settle(error)
        self._queue.clear()
