"""Runs many images through a data plane, a bounded number of them at once, and gives each row as it is finished."""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from service.common.clock import Clock
from service.common.errors import BadImage, EngineError, NotReady, TooLarge
from service.common.types import ImageLimits, check_size
from service.inference.dataplane import ClassifyOptions, DataPlane
from service.inference.ensemble import ServedModel
from service.offline.journal import Journal
from service.offline.rows import Failure, Item, Row

_UNREADABLE = "unreadable"
_PATIENCE_S = 86_400.0  # nobody waits for a single answer here
_READERS = 8  # threads that wait for a disk, which may be far away

Answer = Callable[[Item], Awaitable[Row]]


def window(slots: int, max_batch: int, decoders: int, capacity: int, crops: int) -> int:
    """How many images to have in the house: a batch in every slot, one ready for each, and those being decoded.

    Each image takes `crops` places of `capacity`, and there is always one image.
    """
    return max(1, min(capacity // crops, ceil(2 * slots * max_batch / crops) + decoders))


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about every image: how many classes, best first, and over how many crops."""

    top_k: int
    crops: int


class Bulk:
    """Makes a row of an image: reads its file on a thread and asks the data plane."""

    def __init__(
        self, data_plane: DataPlane, panel: ServedModel, *, limits: ImageLimits, question: Question, clock: Clock
    ) -> None:
        self._data_plane = data_plane
        self._panel = panel
        self._limits = limits
        self._question = question
        self._clock = clock
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")

    async def row(self, item: Item) -> Row:
        """The answer, or what is wrong with this one image.

        Raises a TopfiveError where the trouble is not the image's own: the engine fails batch after batch, the model is
        gone. An engine that fails once is the row's error.
        """
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._readers, _read, item.file, self._limits)
        except TooLarge as error:
            return Row(item.name, Failure(error.code, error.detail), truth=item.truth)
        except OSError as error:
            return Row(item.name, Failure(_UNREADABLE, error.strerror or str(error)), truth=item.truth)
        except ValueError as error:
            return Row(item.name, Failure(_UNREADABLE, str(error)), truth=item.truth)
        try:
            options = ClassifyOptions(self._clock.now() + _PATIENCE_S, self._question.top_k, self._question.crops)
            answer = await self._data_plane.classify(data, self._panel.name, options)
        except (BadImage, TooLarge) as error:
            return Row(item.name, Failure(error.code, error.detail), truth=item.truth)
        except EngineError as error:
            if failing := [member.name for member in self._panel.members if not member.healthy]:
                raise NotReady(f"{' and '.join(failing)} fails on every image; the log has the cause") from error
            return Row(item.name, Failure(error.code, error.detail), truth=item.truth)
        return Row(item.name, None, answer.predictions, item.truth)

    def close(self) -> None:
        """End the reading threads; no `row` may follow."""
        self._readers.shutdown(wait=False, cancel_futures=True)


async def rows(items: Sequence[Item], answer: Answer, *, size: int, stop: asyncio.Event) -> AsyncGenerator[Row, None]:
    """A row for each item as it is finished, at most `size` under way at once.

    Once `stop` is set no more are begun; those under way are still finished. What `answer` raises ends it all.
    """
    finished: asyncio.Queue[asyncio.Task[Row]] = asyncio.Queue()
    running: set[asyncio.Task[Row]] = set()
    waiting = iter(items)

    async def one(item: Item) -> Row:
        return await answer(item)

    def begin() -> None:
        if not stop.is_set() and (item := next(waiting, None)) is not None:
            task = asyncio.get_running_loop().create_task(one(item))
            running.add(task)
            task.add_done_callback(finished.put_nowait)

    try:
        for _ in range(size):
            begin()
        while running:
            task = await finished.get()
            running.discard(task)
            begin()
            yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def complete(
    journal: Journal,
    items: Sequence[Item],
    answer: Answer,
    *,
    size: int,
    stop: asyncio.Event,
    watch: Callable[[Row], None],
) -> bool:
    """Run what the journal lacks, calling `watch` with each new row; whether the journal then has every item."""
    missing = [item for item in items if item.name not in journal]
    async with aclosing(rows(missing, answer, size=size, stop=stop)) as finished:
        async for row in finished:
            journal.append(row)
            watch(row)
    return all(item.name in journal for item in items)


def _read(path: Path, limits: ImageLimits) -> bytes:
    """The file's bytes. Raises OSError, ValueError where it is no plain file, TooLarge before reading."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a plain file")
        check_size(status.st_size, limits)
        return file.read()
