"""The items that wait for a slot, in the order in which they came, and how a batch is cut from them."""

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
    """An admitted request: `count` images at the time `at`. `in_flight` counts all admitted images of the model then.

    `in_flight` includes these `count` images. `due` is when the latency bound expires; infinity means that the images
    are never refused as late. Times are in seconds of the clock.
    """

    at: float
    count: int
    in_flight: int
    due: float = math.inf


@dataclass(slots=True, eq=False)
class QueuedItem(Generic[T, R]):
    """A value that waits for a slot, or runs in a batch. Its caller awaits `future`."""

    value: T
    deadline: float
    enqueued: float
    admission: Admission | None
    future: asyncio.Future[ItemResult[R]]

    def settle(self, result: ItemResult[R] | Exception) -> None:
        """Give the caller its result or error. No other code completes the future."""
        if self.future.done():  # its caller has left
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)

    def close(self) -> ItemOutcome:
        """Cancel it where it has no result yet, because its caller has left. Returns how it ended."""
        if self.future.cancel() or self.future.cancelled():
            return ItemOutcome.CANCELLED
        error = self.future.exception()
        if error is None:
            return ItemOutcome.OK
        if isinstance(error, Overloaded):
            return ItemOutcome.OVERLOADED
        return ItemOutcome.EXPIRED if isinstance(error, DeadlineExceeded) else ItemOutcome.FAILED


RequestQueue = OrderedDict[QueuedItem[T, R], None]
"""Items in the order of their arrival. A plain dict would search for its first item past all that were deleted."""


def cut_batch(queue: RequestQueue[T, R], now: float, most: int) -> list[QueuedItem[T, R]]:
    """Take at most `most` items from the front, to be run now. Items that have expired get DeadlineExceeded instead."""
    batch: list[QueuedItem[T, R]] = []
    while queue and len(batch) < most:
        item, _ = queue.popitem(last=False)
        if item.deadline <= now:
            item.settle(DeadlineExceeded())
        elif not item.future.done():  # done: its caller leaves in this turn of the event loop
            batch.append(item)
    return batch
