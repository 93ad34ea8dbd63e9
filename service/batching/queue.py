"""The items that wait for a slot, in the order in which they came, and how a batch is cut from them."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from service.batching.pending import Pending
from service.batching.slo import Slo
from service.common.errors import DeadlineExceeded, TopfiveError

T = TypeVar("T")
R = TypeVar("R")


class Waiting(Generic[T, R]):
    """A queue whose every operation takes as long with one item as with ten thousand, `cut` by the size of its batch.

    With an `slo` items that cannot be answered within it any more are refused instead of being run.
    """

    def __init__(self, slo: Slo | None) -> None:
        self._slo = slo
        self._items: OrderedDict[Pending[T, R], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Pending[T, R]]:
        return iter(self._items)

    def put(self, item: Pending[T, R]) -> None:
        """It is the last one now."""
        self._items[item] = None

    def remove(self, item: Pending[T, R]) -> None:
        """It waits no more, if it did."""
        self._items.pop(item, None)

    def refuse(self, item: Pending[T, R], now: float) -> None:
        """Its answer is due: settled, where it still waits."""
        if self._slo is not None and item in self._items:
            del self._items[item]
            item.settle(self._slo.too_late(now, item.place))

    def clear(self) -> None:
        """Nobody waits any more."""
        self._items.clear()

    def cut(self, now: float, most: int) -> list[Pending[T, R]]:
        """At most `most` items from the front, to be run now; those for which it is too late are settled instead."""
        items: list[Pending[T, R]] = []
        while self._items and len(items) < most:
            item = next(iter(self._items))
            fate = self._fate(item, now, most)
            if isinstance(fate, int) and fate <= len(items):  # with it the batch would take longer than it can wait
                break
            del self._items[item]
            if isinstance(fate, int):
                items.append(item)
                most = fate
            elif fate is not None:
                item.settle(fate)
        return items

    def _fate(self, item: Pending[T, R], now: float, most: int) -> int | TopfiveError | None:
        """The largest batch in which it is run, at most `most`; or why it is not run, None where nobody asks for it."""
        if item.future.done():
            return None
        if item.deadline <= now:
            return DeadlineExceeded()
        if self._slo is None:
            return most
        if fitting := self._slo.fitting(now, item.place, most, item.deadline):
            return fitting
        if item.deadline < item.place.due:  # run for nobody, it would make the next one as late
            return DeadlineExceeded()
        return self._slo.too_late(now, item.place)
