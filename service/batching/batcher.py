"""Dynamic batching: a batch starts as soon as a slot is free, and grows only while every slot is busy.

Everything happens on the event loop. One synchronous method, `_dispatch`, decides; it is called after `submit` has
queued items and after a batch has ended. There is no timer, no lock, no thread and no background task.
The batcher knows no engine: the caller passes the function that runs a batch.
"""

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

from service.batching.admission import AdmissionControl
from service.batching.cost_model import CostModel, even_share
from service.batching.fair_scheduler import FairScheduler, SlotLease
from service.batching.queue import Admission, QueuedItem, RequestQueue, cut_batch
from service.batching.slo import LatencyBound
from service.common.clock import Clock
from service.common.errors import EngineError, NotReady, ShuttingDown, TopfiveError
from service.common.metrics import BatchMetrics
from service.common.types import BatchLimits, ItemOutcome, ItemResult

T = TypeVar("T")
R = TypeVar("R")

_UNBOUNDED = nullcontext()

log = logging.getLogger(__name__)


class BatcherState(StrEnum):
    """OPEN accepts work; DRAINING finishes accepted work; CLOSED and BROKEN refuse everything."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"
    BROKEN = "broken"


class Batcher(Generic[T, R]):
    """Runs items of T in batches through `run`, which returns a result R or an exception for each item, in order.

    `scheduler` shares the slots of a device with other batchers. Without it the batcher has `limits.slots` of its own.
    If `run` raises MemoryError, the batch is halved, each half is tried once, and `max_batch` is lowered. Any other
    error of `run` fails only that batch. `max_failures` of them in a row make `healthy` false until a batch succeeds.
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
        self._run = run
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._on_health = on_health
        self._cost = CostModel()
        self._slo: LatencyBound | None = None
        if limits.slo_s:
            self._slo = LatencyBound(limits.slo_s, limits.slots, clock=clock, metrics=metrics)
        self._admissions = AdmissionControl(limits, self._cost, self._slo, clock=clock, metrics=metrics)
        self._queue: RequestQueue[T, R] = OrderedDict()
        self._running: dict[asyncio.Task[None], list[QueuedItem[T, R]]] = {}
        self._scheduler = scheduler or FairScheduler(limits.slots, clock)
        self._flow = self._scheduler.join(self._dispatch, limits.slots)
        self._failures = 0
        self._drained: asyncio.Event | None = None
        self._cause: BaseException | None = None
        self.state = BatcherState.OPEN
        self.max_batch = limits.max_batch
        """The largest batch. It is lowered after the engine runs out of memory."""

    @property
    def depth(self) -> int:
        """Items that wait for a slot."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Items in batches that run now."""
        return sum(map(len, self._running.values()))

    @property
    def admitted(self) -> int:
        """Images in flight: they are decoded, wait, or run now."""
        return self._admissions.admitted

    @property
    def healthy(self) -> bool:
        """Whether the batcher is OPEN and fewer than `max_failures` batches in a row have failed."""
        return self.state is BatcherState.OPEN and self._failures < self._limits.max_failures

    def check_capacity(self, count: int) -> None:
        """Raise the error that `admit` would raise now. An image is refused by it before its bytes are read."""
        if self.state is not BatcherState.OPEN:
            raise self._refusal()
        self._admissions.check(count, self.max_batch)

    def begin(self, count: int = 1) -> Admission:
        """Admit `count` images, all or none, until `end`. They need not be decoded yet.

        Raises Overloaded at once if `capacity` is reached or the answer would miss the latency bound, BadRequest if
        `count` exceeds the capacity, ShuttingDown or NotReady if the batcher is closed or broken.
        """
        if self.state is not BatcherState.OPEN:
            raise self._refusal()
        return self._admissions.admit(count, self.max_batch)

    def end(self, admission: Admission) -> None:
        """End an admission, whatever became of its images."""
        self._admissions.release(admission)
        if self._drained is not None:
            self._note_drained(self._drained)

    @contextmanager
    def admit(self, count: int = 1) -> Iterator[Admission]:
        """Admit `count` images until the block ends. Raises the errors of `begin`."""
        admission = self.begin(count)
        try:
            yield admission
        finally:
            self.end(admission)

    async def submit(
        self, values: Iterable[T], *, deadline: float, admission: Admission | None = None
    ) -> list[ItemResult[R]]:
        """Queue `values` and return their results, in order. `deadline` is a time of the clock in seconds.

        All values are queued before any runs, so that they fill batches together. Raises the error of the first value
        that has no result: DeadlineExceeded, EngineError, Overloaded, ShuttingDown or NotReady. The caller watches the
        deadline and cancels; an expired item is never run. A cancelled caller leaves the queue in the same turn of the
        event loop; rows that already run are computed and dropped. Without an `admission` the latency bound does not
        apply.
        """
        now, loop = self._clock.now(), asyncio.get_running_loop()
        items = [QueuedItem[T, R](value, deadline, now, admission, loop.create_future()) for value in values]
        left: ItemOutcome | None = None  # set if the caller leaves; overrides a result in the same loop turn
        with _UNBOUNDED if self._slo is None or admission is None else self._slo.watch(admission, self._queue, items):
            try:
                if self.state in (BatcherState.OPEN, BatcherState.DRAINING):  # DRAINING: admitted before
                    self._queue.update(dict.fromkeys(items))
                    self._dispatch()
                else:
                    self._fail(items, self._refusal())
                return [await item.future for item in items]
            except asyncio.CancelledError:
                left = ItemOutcome.EXPIRED if self._clock.now() >= deadline else ItemOutcome.CANCELLED
                raise
            finally:
                for item in items:
                    self._queue.pop(item, None)
                    outcome = item.close()
                    self._metrics.item_ended(left or outcome)

    async def aclose(self, drain_s: float) -> None:
        """Refuse new work, wait at most `drain_s` seconds for accepted work, then fail the rest."""
        if self.state is BatcherState.OPEN:
            self.state = BatcherState.DRAINING
        self._drained = self._drained or asyncio.Event()  # a second call waits with the first, to the earlier limit
        self._note_drained(self._drained)
        limit = self._clock.call_at(self._clock.now() + drain_s, self._drained.set)
        try:
            await self._drained.wait()
        finally:
            limit.cancel()
        if self.state is BatcherState.DRAINING:
            self.state = BatcherState.CLOSED
        self._fail_all(ShuttingDown())

    def _refusal(self) -> TopfiveError:
        """The error for refused work."""
        if self.state is not BatcherState.BROKEN:
            return ShuttingDown()
        error = NotReady("the model's queue has failed; restart the server")
        error.__cause__ = self._cause
        return error

    def _dispatch(self) -> None:
        """Start batches while items wait and a slot is free. A bug in here fails all pending items."""
        try:
            while self._queue and len(self._running) < self._limits.slots:
                lease = self._scheduler.take(self._flow)
                if lease is None:
                    return
                self._start_batch(lease)
        except Exception as error:
            self._break(error)

    def _start_batch(self, lease: SlotLease) -> None:
        """Take a batch from the front of the queue and run it. Nothing runs if every waiting item has expired."""
        now = self._clock.now()
        items: list[QueuedItem[T, R]] = []
        try:
            cut = self._slo.cut_batch if self._slo is not None else cut_batch
            items = cut(self._queue, now, self._largest_batch(lease))
        finally:
            if not items:  # a bug in here must not keep the slot from other models
                self._scheduler.release(lease)
        if items:
            task = asyncio.get_running_loop().create_task(self._run_batch(items, now))
            self._running[task] = items
            task.add_done_callback(partial(self._batch_ended, lease))
            self._metrics.batch_started(len(items), [now - item.enqueued for item in items])

    def _largest_batch(self, lease: SlotLease) -> int:
        most = self.max_batch
        if not math.isinf(lease.quantum_s):
            most = self._cost.largest_within(lease.quantum_s, most)
        if self._limits.apart and len(self._queue) > 1:
            slots = min(self._limits.slots, len(self._running) + 1 + self._scheduler.free_slots(self._flow))
            most = min(most, even_share(len(self._queue), self.in_flight, slots))
        return most

    async def _run_batch(self, items: list[QueuedItem[T, R]], started: float) -> None:
        size = len(items)
        results: Sequence[R | Exception]
        try:
            results = await self._results([item.value for item in items])
            if len(results) != size:
                raise EngineError(f"the engine gave {len(results)} rows for {size} items")
        except Exception as caught:
            log.error("a batch of %d images failed", size, exc_info=caught)
            results = [caught] * size
        took = self._clock.now() - started
        failed = all(isinstance(result, Exception) for result in results)
        self._metrics.batch_ended(took, size, failed)
        self._cost.observe(size, took)
        if self._slo is not None:
            self._slo.batch_ended(size, took)
        if failed or self._failures:
            self._note_health(failed=failed)
        for item, result in zip(items, results, strict=True):
            if isinstance(result, Exception):
                item.settle(_as_engine_error(result))
            else:
                item.settle(ItemResult(result, started - item.enqueued, took, size))

    async def _results(self, values: Sequence[T]) -> Sequence[R | Exception]:
        """A result or an exception for each value. Raises the error of `run` if no value has a result."""
        try:
            return await self._run(values)
        except MemoryError as error:
            if len(values) == 1:
                raise
            half = (len(values) + 1) // 2
            self.max_batch = min(self.max_batch, half)
            log.warning("out of memory at a batch of %d (%s); the largest batch is now %d", len(values), error, half)
        results: list[R | Exception] = []
        errors: list[Exception] = []
        for part in (values[:half], values[half:]):
            try:
                results += await self._run(part)
            except Exception as error:
                log.error("half a batch of %d images failed", len(values), exc_info=error)
                errors.append(error)
                results += [error] * len(part)
        if len(errors) == 2:
            raise errors[0]
        return results

    def _batch_ended(self, lease: SlotLease, task: asyncio.Task[None]) -> None:
        """Free the slot of a batch that has ended, whatever its outcome."""
        if task.cancelled():  # its engine's threads have gone, or the loop is ending
            self._fail(self._running[task], EngineError("the run was cancelled"))
        elif (error := task.exception()) is not None:
            self._break(error)
        del self._running[task]
        self._scheduler.release(lease)  # dispatches when it is this model's turn
        if self._drained is not None:
            self._note_drained(self._drained)

    def _note_health(self, *, failed: bool) -> None:
        before = self.healthy
        self._failures = self._failures + 1 if failed else 0
        if self.healthy is not before:
            self._on_health()

    def _note_drained(self, drained: asyncio.Event) -> None:
        if not (self.admitted or self._queue or self._running):
            drained.set()

    def _break(self, cause: BaseException) -> None:
        """Refuse everything from now on and fail every waiting caller, because the batcher has a bug."""
        log.critical("the batcher is broken", exc_info=cause)
        self.state, self._cause = BatcherState.BROKEN, cause
        error = EngineError("the model's queue has failed")
        error.__cause__ = cause
        self._fail_all(error)
        self._on_health()

    def _fail_all(self, error: Exception) -> None:
        self._fail(self._queue, error)
        for items in self._running.values():
            self._fail(items, error)
        self._queue.clear()

    @staticmethod
    def _fail(items: Iterable[QueuedItem[T, R]], error: Exception) -> None:
        for item in items:
            item.settle(error)


def _as_engine_error(error: Exception) -> EngineError:
    """The failure as an error of the table, with its cause kept for the log."""
    if isinstance(error, EngineError):
        return error
    wrapped = EngineError(f"the engine failed: {error}")
    wrapped.__cause__ = error
    return wrapped
