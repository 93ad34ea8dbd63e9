"""Memory that a front process writes samples to and the engine process reads them from.

It belongs to the two processes alone: it has no name, and is gone with the last of them.
"""

import asyncio
import fcntl
import math
import mmap
import os
import weakref
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from service.common.errors import NotReady
from service.common.types import Samples

REGION_BYTES = 256 << 20
"""Of one front. Memory is taken only for what has been written to, and the lowest free places are written first."""

_ALIGN = 64
_LONG_BYTES = 2 << 20  # about what is copied in a third of a millisecond; more of it is left to a thread

Shape = tuple[int, ...]


def make_region(size_bytes: int = REGION_BYTES) -> int:
    """The descriptor of a new region, whose size is final. Raises OSError where the system has no such memory."""
    descriptor = os.memfd_create("topfive-front", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


class Arena:
    """The writer's view: takes places, first come first served, and learns when they are free again.

    It lives on the event loop.
    """

    def __init__(self, descriptor: int) -> None:
        self._bytes = np.frombuffer(mmap.mmap(descriptor, 0), dtype=np.uint8)
        self._taken: dict[int, int] = {}
        self._holes: list[tuple[int, int]] = [(0, len(self._bytes))]
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return len(self._taken)

    async def place(self, samples: Sequence[Samples]) -> int:
        """The offset from which on these lie, one after the other; waits for room. NotReady where it never comes."""
        size = _rounded(sum(one.nbytes for one in samples))
        if size > len(self._bytes):
            raise NotReady(
                f"the samples of one image take {size >> 20} MiB, more than the {len(self._bytes) >> 20} MiB that a "
                f"front process shares; serve this model with --gateways 0"
            )
        return await self._filled(await self._room(size), samples)

    async def place_at_once(self, samples: Sequence[Samples]) -> int | None:
        """As `place`, for who must not wait; None where there is no room now."""
        offset = self._take(_rounded(sum(one.nbytes for one in samples)))
        return None if offset is None else await self._filled(offset, samples)

    async def _filled(self, offset: int, samples: Sequence[Samples]) -> int:
        if self._taken[offset] < _LONG_BYTES:
            self._write(offset, samples)
            return offset
        writing = asyncio.get_running_loop().run_in_executor(None, self._write, offset, samples)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(lambda _: self.free(offset))  # not while the thread still writes there
            raise
        return offset

    def _write(self, offset: int, samples: Sequence[Samples]) -> None:
        for one in samples:
            self._bytes[offset : offset + one.nbytes] = one.reshape(-1)
            offset += one.nbytes

    def free(self, offset: int) -> None:
        """The place at `offset` may be written again."""
        insort(self._holes, (offset, self._taken.pop(offset)))
        merged: list[tuple[int, int]] = []
        for begin, size in self._holes:
            if merged and sum(merged[-1]) == begin:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((begin, size))
        self._holes = merged
        self._serve()

    async def _room(self, size: int) -> int:
        if not self._waiting and (offset := self._take(size)) is not None:
            return offset
        granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, granted))
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.free(granted.result())
            else:
                self._serve()  # who stands behind it may need less
            raise

    def _serve(self) -> None:
        while self._waiting:
            size, granted = self._waiting[0]
            if not granted.done():
                if (offset := self._take(size)) is None:
                    return
                granted.set_result(offset)
            self._waiting.popleft()

    def _take(self, size: int) -> int | None:
        for place, (begin, length) in enumerate(self._holes):
            if length >= size:
                self._holes[place : place + 1] = [(begin + size, length - size)] if length > size else []
                self._taken[begin] = size
                return begin
        return None


class Window:
    """The reader's view. `freed` is called with the offset of a place, on any thread, once nothing of it is read."""

    def __init__(self, descriptor: int, freed: Callable[[int], None]) -> None:
        self._bytes = np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), dtype=np.uint8)
        self._address = int(self._bytes.__array_interface__["data"][0])
        self._freed = freed

    def samples(self, offset: int, shapes: Sequence[Shape]) -> list[Samples]:
        """What lies there, not to be written to. The place is free once all of these, and all views of them, are gone.

        Raises ValueError where it does not lie within the region.
        """
        sizes = [math.prod(shape) for shape in shapes]
        if offset < 0 or offset + sum(sizes) > len(self._bytes):
            raise ValueError(f"{sum(sizes)} bytes at {offset} of {len(self._bytes)}")
        place = _Place(self._bytes, self._address + offset, sum(sizes))
        weakref.finalize(place, self._freed, offset).atexit = False
        return laid_out(np.asarray(place), shapes)

    def close(self) -> None:
        """Keep nothing of the region but what is read; its memory is gone with the last of that."""
        self._bytes = np.empty(0, dtype=np.uint8)


def laid_out(flat: Samples, shapes: Sequence[Shape]) -> list[Samples]:
    """Views of bytes in which samples of these shapes lie one after the other."""
    found: list[Samples] = []
    begin = 0
    for shape in shapes:
        size = math.prod(shape)
        found.append(flat[begin : begin + size].reshape(shape))
        begin += size
    return found


class _Place:
    """Lends its memory to arrays, which keep it as their base: it is gone when the last of them and their views is."""

    __slots__ = ("__array_interface__", "__weakref__", "_region")

    def __init__(self, region: Samples, address: int, size: int) -> None:
        self._region = region  # stays mapped as long
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, True), "version": 3}


def _rounded(size: int) -> int:
    return max(1, -(-size // _ALIGN)) * _ALIGN
