"""Runs coroutines at the same time and ends all of them together."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

X = TypeVar("X")


async def together(works: Sequence[Coroutine[Any, Any, X]]) -> list[X]:
    """The results of `works`, in order. A failure or a cancelled caller cancels the others and waits until they end."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
