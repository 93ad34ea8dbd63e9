"""The queue of a batcher: items in order of arrival, and how a batch is taken from it."""

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.common.errors import DeadlineExceeded, Overloaded
from service.common.types import ItemOutcome, ItemResult

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Admission:
    """An admitted request of `count` images, admitted at `at`.

    `in_flight` counts all admitted images of the model at that time, these included. `due` is when the latency bound
    expires; infinity means that the images are never refused as late. Times are in seconds of the clock.
    """

    at: float
    count: int
    in_flight: int
    due: float = math.inf


@dataclass(slots=True, eq=False)
class QueuedItem(Generic[T, R]):
    """A value that waits for a slot or runs in a batch. The caller awaits `future`."""

    value: T
    deadline: float
    enqueued: float
    admission: Admission | None
    future: asyncio.Future[ItemResult[R]]

    def settle(self, result: ItemResult[R] | Exception) -> None:
        """Give the caller its result or error. No other code completes the future."""
        if self.future.done():  # the caller has left
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)

    def close(self) -> ItemOutcome:
        """Cancel the item if it has no result yet, because the caller has left. Returns how it ended."""
        if self.future.cancel() or self.future.cancelled():
            return ItemOutcome.CANCELLED
        error = self.future.exception()
        if error is None:
            return ItemOutcome.OK
        if isinstance(error, Overloaded):
            return ItemOutcome.OVERLOADED
        return ItemOutcome.EXPIRED if isinstance(error, DeadlineExceeded) else ItemOutcome.FAILED


RequestQueue = OrderedDict[QueuedItem[T, R], None]
"""Items in order of arrival. A plain dict finds its first item slowly after many deletions at the front."""


def cut_batch(queue: RequestQueue[T, R], now: float, most: int) -> list[QueuedItem[T, R]]:
    """Take at most `most` items from the front, to be run now. Expired items get DeadlineExceeded instead."""
    batch: list[QueuedItem[T, R]] = []
    while queue and len(batch) < most:
        item, _ = queue.popitem(last=False)
        if item.deadline <= now:
            item.settle(DeadlineExceeded())
        elif not item.future.done():  # done: the caller leaves in this turn of the event loop
            batch.append(item)
    return batch
