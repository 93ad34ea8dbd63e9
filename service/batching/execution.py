"""Runs one batch: a row must come back for each item, and a batch that does not fit in memory is halved once."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from service.common.errors import EngineError

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)


class Runner(Generic[T, R]):
    """Calls `run`, which gives a result or an exception for each item, in order.

    `max_batch` falls when memory lacks.
    """

    def __init__(self, run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]], max_batch: int) -> None:
        self._run = run
        self.max_batch = max_batch

    async def rows(self, values: Sequence[T]) -> Sequence[R | Exception]:
        """A result or an exception for each value. Raises what `run` raised where there is no result at all."""
        try:
            return await self._checked(values)
        except MemoryError as error:
            if len(values) == 1:
                raise
            half = (len(values) + 1) // 2
            self.max_batch = min(self.max_batch, half)
            log.warning("out of memory at a batch of %d (%s); batches hold at most %d now", len(values), error, half)
        return await self._halves(values, half)

    async def _halves(self, values: Sequence[T], half: int) -> Sequence[R | Exception]:
        """Each half tried once; one of them may fail alone."""
        results: list[R | Exception] = []
        errors: list[Exception] = []
        for part in (values[:half], values[half:]):
            try:
                results += await self._checked(part)
            except Exception as error:
                log.error("half a batch of %d failed", len(values), exc_info=error)
                errors.append(error)
                results += [error] * len(part)
        if len(errors) == 2:
            raise errors[0]
        return results

    async def _checked(self, values: Sequence[T]) -> Sequence[R | Exception]:
        results = await self._run(values)
        if len(results) != len(values):
            raise EngineError(f"the engine gave {len(results)} rows for {len(values)} items")
        return results


def as_engine_error(error: Exception) -> EngineError:
    """The same failure as an error of the table, its cause kept for the log."""
    if isinstance(error, EngineError):
        return error
    wrapped = EngineError(f"the engine failed: {error}")
    wrapped.__cause__ = error
    return wrapped
