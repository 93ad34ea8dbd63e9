"""Several pieces of work at once, of which none goes on after the others have ended."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

X = TypeVar("X")


async def together(works: Sequence[Coroutine[Any, Any, X]]) -> list[X]:
    """The results in order. The first failure, or a caller who leaves, cancels the others; all have ended after it."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
