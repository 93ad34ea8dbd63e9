"""Runs coroutines at the same time and ends all of them together; runs long work apart from the event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
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


async def apart(long: bool, work: Callable[[], X]) -> X:
    """The result of `work`. If it is long it runs on a thread, because it would hold the event loop."""
    return await asyncio.to_thread(work) if long else work()
