"""The memory between a front and the engine process: places never overlap, and are free at their last view."""

import asyncio
import gc
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.common.errors import NotReady
from service.common.types import Classification, Samples
from service.front.region import Arena, Window, make_region
from tests.conftest import noise, png
from tests.fakes import FakeEngine, reached, settle
from tests.fleet import copy_model
from tests.front_pair import front_pair

pytestmark = pytest.mark.anyio

PAGE = mmap.PAGESIZE


@dataclass
class Shared:
    """Both views of one region, and the offsets that were freed."""

    arena: Arena
    window: Window
    freed: list[int] = field(default_factory=list)


@pytest.fixture
def shared() -> Iterator[Shared]:
    """A region of four pages."""
    descriptor = make_region(4 * PAGE)
    freed: list[int] = []
    yield Shared(Arena(descriptor), Window(descriptor, freed.append), freed)
    os.close(descriptor)


def samples(size: int, value: int) -> Samples:
    """So many bytes of one value, as one crop."""
    return np.full((1, size, 1, 1), value, dtype=np.uint8)


async def test_what_is_written_is_read(shared: Shared) -> None:
    """Samples of several shapes come out as they went in, in order, and cannot be written to."""
    first = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    second = np.arange(150, dtype=np.uint8).reshape(2, 5, 5, 3)
    offset = await shared.arena.place([first, second])
    read = shared.window.samples(offset, [first.shape, second.shape])
    assert [np.array_equal(left, right) for left, right in zip(read, (first, second), strict=True)] == [True, True]
    with pytest.raises(ValueError, match="read-only"):
        read[0][0] = 1


async def test_long_samples() -> None:
    """What takes long to copy is copied on a thread; one that leaves meanwhile gives the place back after that."""
    descriptor = make_region(16 << 20)
    arena, window = Arena(descriptor), Window(descriptor, lambda _: None)
    os.close(descriptor)
    large = noise(2000, 1000)[np.newaxis]
    offset = await arena.place([large])
    (read,) = window.samples(offset, [large.shape])
    assert np.array_equal(read, large)
    leaving = asyncio.create_task(arena.place([large]))
    await asyncio.sleep(0)
    leaving.cancel()
    await reached(lambda: arena.taken == 1)
    assert leaving.cancelled()


async def test_freed_with_the_last_view(shared: Shared) -> None:
    """A place is free when the last array over it is gone, a row of a row among them, and not before."""
    offset = await shared.arena.place([samples(100, 1), samples(100, 2)])
    first, second = shared.window.samples(offset, [(1, 100, 1, 1), (1, 100, 1, 1)])
    row = next(iter(second))[10:]
    del first, second
    assert shared.freed == []
    assert int(row.sum()) == 90 * 2
    del row
    assert shared.freed == [offset]


async def test_outside(shared: Shared) -> None:
    """A place that is not within the region is refused before anything of it is read."""
    for offset in (-1, 4 * PAGE - 10, 1 << 40):
        with pytest.raises(ValueError, match="bytes at"):
            shared.window.samples(offset, [(1, 11, 1, 1)])


async def test_the_size_is_final(shared: Shared) -> None:
    """Neither side can cut the region short under the other, which would end that with a signal."""
    descriptor = make_region(PAGE)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


async def test_too_large_for_ever(shared: Shared) -> None:
    """What can never fit is refused at once, with what to do."""
    with pytest.raises(NotReady, match="--gateways 0"):
        await shared.arena.place([samples(4 * PAGE + 1, 0)])


async def test_waits_its_turn(shared: Shared) -> None:
    """Without room one waits; a small one that comes later does not overtake a large one; a freed place serves both."""
    whole = await shared.arena.place([samples(4 * PAGE, 0)])
    large = asyncio.create_task(shared.arena.place([samples(3 * PAGE, 0)]))
    small = asyncio.create_task(shared.arena.place([samples(PAGE, 0)]))
    await settle()
    assert not large.done()
    shared.arena.free(whole)
    assert [await large, await small] == [0, 3 * PAGE]


async def test_who_leaves_while_waiting(shared: Shared) -> None:
    """One that leaves the queue lets those behind it go; one that leaves as it is served gives its place back."""
    whole = await shared.arena.place([samples(4 * PAGE, 0)])
    waiting = [asyncio.create_task(shared.arena.place([samples(4 * PAGE, 0)])) for _ in range(3)]
    await settle()
    waiting[0].cancel()
    await settle()
    shared.arena.free(whole)
    waiting[1].cancel()
    assert await waiting[2] == 0
    await asyncio.gather(*waiting, return_exceptions=True)
    assert shared.arena.taken == 1


@given(sizes=st.lists(st.integers(1, 3 * PAGE), min_size=1, max_size=40), seed=st.integers())
@settings(deadline=None, max_examples=60)
def test_places_never_overlap(sizes: list[int], seed: int) -> None:
    """Whatever is placed and freed in whatever order, everybody reads what they wrote; all is one hole at the end."""

    async def all_of_them() -> None:
        descriptor = make_region(4 * PAGE)
        arena = Arena(descriptor)
        window = Window(descriptor, arena.free)
        os.close(descriptor)
        order = random.Random(seed)
        held: list[tuple[int, Samples]] = []

        async def write(value: int, size: int) -> None:
            offset = await arena.place([samples(size, value)])
            held.append((value, window.samples(offset, [(1, size, 1, 1)])[0]))

        writers = [asyncio.create_task(write(value, size)) for value, size in enumerate(sizes)]
        while held or not all(writer.done() for writer in writers):
            await settle()
            order.shuffle(held)
            value, read = held.pop()
            assert (read == value).all()
            del read
        await asyncio.gather(*writers)
        assert await arena.place([samples(4 * PAGE, 0)]) == 0

    asyncio.run(all_of_them())


async def test_memory_is_given_back(shared: Shared) -> None:
    """The region is unmapped when the last array over it is gone, after both views."""
    descriptor = make_region(PAGE)
    arena = Arena(descriptor)
    window = Window(descriptor, lambda _: None)
    identity = os.fstat(descriptor).st_ino
    os.close(descriptor)

    def mapped() -> int:
        gc.collect()
        with open("/proc/self/maps") as maps:  # noqa: PTH123 - not a file that a path helps with
            return sum(line.split()[4] == str(identity) and "topfive-front" in line for line in maps)

    offset = await arena.place([samples(100, 7)])
    (kept,) = window.samples(offset, [(1, 100, 1, 1)])
    assert mapped() == 2
    del arena, window
    assert mapped() == 1
    assert (kept == 7).all()
    del kept
    assert mapped() == 0


async def test_calls_that_need_several_places(artifacts: Path) -> None:
    """Comparisons that all keep a place and need another, in a region full of such, are answered, each with its own."""
    names, spec = ["tiny", "one", "two"], {"crop": 32, "interpolation": "bilinear", "channels": "rgb"}
    colours = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    for name, resize in (("one", 40), ("two", 50)):
        copy_model(artifacts, name, {"input": {**spec, **colours, "resize": resize}})
    engine = FakeEngine(max_batch=8)
    async with front_pair(artifacts, engine, region_bytes=4 * 4096, capacity=256, models=names) as pair:
        asked = [
            pair.classifier.compare(png(shade), models=names, top_k=1, deadline=pair.deadline()) for shade in range(40)
        ]
        comparisons = await asyncio.gather(*asked)
        await reached(lambda: pair.arena.taken == 0 and pair.desk.under_way == 0)
    got = [[row.result for row in one.rows] for one in comparisons]
    assert [error for row in got for error in row if isinstance(error, Exception)] == []
    best = [[one.predictions[0].class_id for one in row if isinstance(one, Classification)] for row in got]
    assert best == [[shade] * 3 for shade in range(40)]
