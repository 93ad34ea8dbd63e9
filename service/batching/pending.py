"""An item that a batcher was given: it ends exactly once, and knows how."""

import asyncio
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.batching.slo import Place
from service.common.clock import Timer
from service.common.errors import DeadlineExceeded, Overloaded
from service.common.types import ItemOutcome, ItemResult

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Pending(Generic[T, R]):
    """A value that waits or runs. `future` is completed by `settle` alone.

    `place` is what its request was admitted with; `timer` ends the wait when its answer is due.
    """

    value: T
    deadline: float
    enqueued: float
    place: Place
    future: asyncio.Future[ItemResult[R]]
    timer: Timer | None = None

    def settle(self, result: ItemResult[R] | Exception) -> None:
        """End it. The only place that completes a future, and the only one that asks whether it is done."""
        if self.future.done():  # its caller left, or its deadline passed while it ran
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)

    def leave(self) -> ItemOutcome:
        """Nobody waits for it any more; how it ended, CANCELLED where it had not."""
        if self.timer is not None:
            self.timer.cancel()
        if self.future.cancel() or self.future.cancelled():
            return ItemOutcome.CANCELLED
        error = self.future.exception()
        if error is None:
            return ItemOutcome.OK
        if isinstance(error, Overloaded):
            return ItemOutcome.OVERLOADED
        return ItemOutcome.EXPIRED if isinstance(error, DeadlineExceeded) else ItemOutcome.FAILED
