"""A front and the engine process over their link: the same answers and errors, places kept and freed, no mix-up."""

import asyncio
import gc
import io
import logging
import os
import random
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from models.catalog import InputSpec
from service.common.errors import (
    BadImage,
    BadRequest,
    DeadlineExceeded,
    EngineError,
    NotReady,
    Overloaded,
    ShuttingDown,
    TopfiveError,
)
from service.common.types import ImageLimits, Probabilities, Rows
from service.front.calls import GRACE_S
from service.front.messages import Answered, Asked, Classify, Refused, Unframed, framed
from service.inference.classifier import Classifier
from service.inference.comparison import Row
from service.preprocessing import decode, transforms
from tests.conftest import noise, png
from tests.fakes import FakeEngine, SlowImage, reached, settle
from tests.fleet import copy_model
from tests.front_pair import Pair, front_pair
from tests.watchdog import LONGEST_S, longest

pytestmark = pytest.mark.anyio

TINY = InputSpec(resize=36, crop=32)


class Checksums(FakeEngine):
    """The class of an image is the checksum of its pixels, taken before and after the gate: nobody may write them."""

    def run(self, rows: Rows) -> Probabilities:
        before = [zlib.crc32(row.tobytes()) for row in rows]
        assert self.gate.wait(30), "a test left the gate closed"
        after = [zlib.crc32(row.tobytes()) for row in rows]
        assert before == after, "the pixels of a batch changed while it ran"
        self.batches.append(len(rows))
        probabilities = np.full((len(rows), self.classes), 1e-4, dtype=np.float32)
        probabilities[np.arange(len(rows)), [sum % self.classes for sum in after]] = 0.5  # noqa: A001
        return probabilities


def noisy(seed: int) -> bytes:
    """A PNG of its own."""
    file = io.BytesIO()
    Image.fromarray(noise(40, 44, seed)).save(file, "PNG")
    return file.getvalue()


def expected(data: bytes) -> int:
    """The class that `Checksums` gives to that image."""
    return zlib.crc32(transforms.apply(TINY, decode.decode(data, ImageLimits())).tobytes()) % 1000


async def classify(pair: Pair, data: bytes, within_s: float = 30.0) -> int:
    """The best class."""
    answer = await pair.classifier.classify(data, model="tiny", deadline=pair.deadline(within_s))
    return answer.predictions[0].class_id


def test_messages_in_any_pieces() -> None:
    """Messages come out whole and in order, however the bytes are cut."""
    sent = [Asked(number, "x" * number, Classify(number, None, 5, 1, 2.5)) for number in range(50)]
    stream = b"".join(framed(one) for one in sent)
    for size in (1, 3, 7, 64, len(stream)):
        reading = Unframed()
        pieces = [stream[begin : begin + size] for begin in range(0, len(stream), size)]
        assert [message for piece in pieces for message in reading.feed(piece)] == sent


def test_errors_cross() -> None:
    """An error arrives with its class, code, words and time to try again; a foreign one says nothing of itself."""
    errors: list[TopfiveError] = [
        BadRequest("top_k is 0"),
        BadImage("not one"),
        Overloaded(2.5),
        ShuttingDown(),
        DeadlineExceeded(),
        NotReady("later"),
        EngineError("broken"),
    ]
    for error in errors:
        (there,) = Unframed().feed(framed(Refused(1, error)))
        assert isinstance(there, Refused)
        assert (type(there.error), there.error.code, there.error.detail) == (type(error), error.code, error.detail)
        assert getattr(there.error, "retry_after_s", None) == getattr(error, "retry_after_s", None)
    (foreign,) = Unframed().feed(framed(Answered(1, Row("tiny", ValueError("/etc/secret")))))
    assert isinstance(foreign, Answered)
    assert isinstance(foreign.value.result, EngineError)
    assert "secret" not in str(foreign.value.result)


async def test_no_image_is_taken_for_another(artifacts: Path) -> None:
    """300 distinct images through a region with room for five, some given up on the way: each gets its own answer."""
    engine = Checksums(slots=2, max_batch=4)
    order = random.Random(5)
    images = [noisy(seed) for seed in range(300)]
    async with front_pair(artifacts, engine, region_bytes=4 * 4096, capacity=512) as pair:
        tasks = [asyncio.create_task(classify(pair, data)) for data in images]
        left: set[int] = set()
        while not all(task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=0.002, return_when=asyncio.FIRST_COMPLETED)
            if len(left) < 60:
                number = order.randrange(300)
                if tasks[number].cancel():
                    left.add(number)
            if order.random() < 0.2:
                engine.gate.clear()
                asyncio.get_running_loop().call_later(0.003, engine.gate.set)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await reached(lambda: pair.arena.taken == 0 and pair.places() == 0 and pair.desk.under_way == 0)
    right = [expected(data) for data in images]
    assert {number for number, result in enumerate(results) if isinstance(result, BaseException)} <= left
    assert all(result == right[number] for number, result in enumerate(results) if isinstance(result, int))
    assert sum(isinstance(result, int) for result in results) >= 240
    assert len(set(right)) > 200


async def test_ten_crops_and_ensembles(artifacts: Path) -> None:
    """Ten crops, an ensemble and a comparison are what they are without a front, and the photo is decoded once."""
    for name in ("one", "two"):
        copy_model(artifacts, name)
    engine = FakeEngine()
    photo = noisy(3)
    async with front_pair(artifacts, engine) as pair:
        for model, top_k, crops in (("tiny", None, 10), ("ensemble:one+two", 7, 1)):
            direct, through = [
                await by.classify(photo, model=model, top_k=top_k, crops=crops, deadline=pair.deadline())
                for by in cast("list[Classifier]", [pair.core.classifier, pair.classifier])
            ]
            assert direct.predictions == through.predictions
            assert (direct.batch_size, direct.members == ()) == (through.batch_size, through.members == ())
            assert (direct.model.name, direct.engine) == (through.model.name, through.engine)
        names = ["one", "tiny", "nope", "ensemble:one+two"]
        left = await pair.core.classifier.compare(photo, models=names, deadline=pair.deadline())
        right = await pair.classifier.compare(photo, models=names, deadline=pair.deadline())
        await reached(lambda: pair.arena.taken == 0)
    assert [row.model for row in right.rows] == names
    assert (left.agreement, left.common, left.warnings) == (right.agreement, right.common, right.warnings)
    assert isinstance(right.rows[2].result, TopfiveError)
    assert right.timing_ms.decode > 0


async def test_nothing_is_decoded_without_a_place(artifacts: Path) -> None:
    """At capacity a front is refused before it decodes; the time to try again comes with it; each counts once."""
    engine = FakeEngine(max_batch=1)
    async with front_pair(artifacts, engine, capacity=1) as pair:
        engine.gate.clear()
        first = asyncio.create_task(classify(pair, png(3)))
        await reached(lambda: pair.arena.taken == 1)
        slow = SlowImage(png())
        with pytest.raises(Overloaded) as caught:
            await classify(pair, slow)
        engine.gate.set()
        assert await first == 3
        assert pair.answered() == {("tiny", "ok"): 1, ("tiny", "overloaded"): 1}
    assert caught.value.retry_after_s > 0
    assert not slow.decoding.is_set()


async def test_a_full_region_waits_within_the_deadline(artifacts: Path) -> None:
    """Without room for its samples a request waits, at most until its deadline; room that comes later is not lost."""
    engine = FakeEngine(max_batch=1)
    async with front_pair(artifacts, engine, region_bytes=4096) as pair:
        engine.gate.clear()
        first = asyncio.create_task(classify(pair, png(1)))
        await reached(lambda: pair.arena.taken == 1)
        patient = asyncio.create_task(classify(pair, png(2)))
        with pytest.raises(DeadlineExceeded):
            await classify(pair, png(3), within_s=0.05)
        engine.gate.set()
        assert [await first, await patient] == [1, 2]
        await reached(lambda: pair.arena.taken == 0)
        assert pair.answered() == {("tiny", "ok"): 2, ("tiny", "deadline_exceeded"): 1}


async def test_a_caller_leaves(artifacts: Path) -> None:
    """One that leaves while it waits frees its place and its memory; its neighbours are answered."""
    engine = FakeEngine(max_batch=1)
    async with front_pair(artifacts, engine) as pair:
        engine.gate.clear()
        kept = asyncio.create_task(classify(pair, png(1)))
        await reached(lambda: pair.places() == 1 and pair.arena.taken == 1)
        leaves = asyncio.create_task(classify(pair, png(2)))
        await reached(lambda: pair.places() == 2 and pair.arena.taken == 2)
        leaves.cancel()
        await reached(lambda: pair.places() == 1 and pair.arena.taken == 1)
        engine.gate.set()
        assert await kept == 1
        assert pair.answered() == {("tiny", "ok"): 1, ("tiny", "cancelled"): 1}


async def test_failing_batches_free_their_memory(artifacts: Path) -> None:
    """A hundred batches that fail leave no place taken, with the garbage collector off: errors hold no samples."""
    engine = FakeEngine(max_batch=1)
    logging.disable()  # pytest keeps what is logged, and with it the frames of each error
    gc.disable()
    try:
        async with front_pair(artifacts, engine, region_bytes=4096 * 4) as pair:
            for _ in range(100):
                engine.script = [RuntimeError("broken")]
                with pytest.raises(EngineError):
                    await classify(pair, png(), within_s=5)
            await reached(lambda: pair.arena.taken == 0)
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


async def test_the_engine_process_goes(artifacts: Path) -> None:
    """Without the engine process all who wait, and all who come, are told at once, and readiness says so."""
    engine = FakeEngine()
    async with front_pair(artifacts, engine) as pair:
        engine.gate.clear()
        waiting = asyncio.create_task(classify(pair, png()))
        await reached(lambda: pair.places() == 1)
        pair.directory.check_ready()
        pair.desk.link.close()
        with pytest.raises(NotReady, match="engine process is gone"):
            await waiting
        with pytest.raises(NotReady, match="engine process is gone"):
            await classify(pair, png())
        with pytest.raises(NotReady):
            pair.directory.check_ready()
        with pytest.raises(NotReady):
            pair.directory.check_alive()
        assert pair.calls.ended.is_set()


async def test_a_front_goes(artifacts: Path) -> None:
    """A front that is gone takes its calls with it; its batch in flight still reads memory that is there."""
    engine = Checksums(max_batch=1)
    async with front_pair(artifacts, engine) as pair:
        engine.gate.clear()
        waiting = [asyncio.create_task(classify(pair, noisy(seed))) for seed in range(3)]
        await reached(lambda: pair.places() == 3 and pair.arena.taken == 3)
        pair.calls.link.close()
        await reached(lambda: pair.places() == 0)
        engine.gate.set()
        await reached(lambda: engine.batches == [1])
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [NotReady] * 3
        assert pair.answered() == {("tiny", "cancelled"): 3}


async def test_an_engine_process_that_hangs(artifacts: Path) -> None:
    """One that says nothing any more does not hold a caller beyond its deadline and a second of grace."""
    async with front_pair(artifacts, FakeEngine()) as pair:
        pair.desk.link._received = lambda _message: None
        began = pair.core.clock.now()
        with pytest.raises(DeadlineExceeded):
            await classify(pair, png(), within_s=0.01)
        assert 0.01 + GRACE_S <= pair.core.clock.now() - began < GRACE_S + 5


async def test_stopping(artifacts: Path) -> None:
    """At the end of the drain those who wait are told that the server stops; before that nothing changes for them."""
    engine = FakeEngine()
    async with front_pair(artifacts, engine) as pair:
        engine.gate.clear()
        waiting = asyncio.create_task(classify(pair, png()))
        await reached(lambda: pair.places() == 1)
        pair.core.repository.stop()
        pair.desk.tell_standing()
        await settle()
        with pytest.raises(ShuttingDown):
            pair.directory.check_ready()
        assert not waiting.done()
        pair.calls.refuse()
        with pytest.raises(ShuttingDown):
            await waiting


async def test_counts_of_the_front(artifacts: Path) -> None:
    """What a front refuses itself is counted where everything is, and every front shows all of it."""
    async with front_pair(artifacts, FakeEngine()) as pair:
        pair.counts.answered("unknown", "bad_request")
        await classify(pair, png())
        text = (await pair.counts.scrape()).decode()
    assert 'topfive_requests_total{code="bad_request",model="unknown"} 1.0' in text
    assert 'topfive_requests_total{code="ok",model="tiny"} 1.0' in text


async def test_flat(artifacts: Path) -> None:
    """A thousand answers leave no descriptor, no call and no place behind, and touch no more memory than the first."""
    engine = FakeEngine(max_batch=8)
    async with front_pair(artifacts, engine) as pair:
        offsets = set()
        place = pair.arena.place

        async def noted(samples: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> int:
            offsets.add(offset := await place(samples))
            return offset

        pair.arena.place = noted  # type: ignore[method-assign, assignment]
        await classify(pair, png())
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(125):
            await asyncio.gather(*(classify(pair, png(shade)) for shade in range(8)))
        after = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        await reached(lambda: pair.arena.taken == 0)
        assert (pair.calls._calls, pair.desk._sent, pair.desk.under_way) == ({}, {}, 0)
    assert after <= before
    assert max(offsets) < 64 * 3072


async def test_no_long_turn(artifacts: Path) -> None:
    """Neither side of the link keeps its event loop, however long the answer or however many the crops."""
    async with front_pair(artifacts, FakeEngine(max_batch=16)) as pair:
        works: dict[str, Callable[[], Awaitable[object]]] = {
            "models": pair.directory.models,
            "a model": lambda: pair.directory.model("tiny"),
            "layers": lambda: pair.directory.layers("tiny"),
            "metrics": pair.counts.scrape,
            "one crop": lambda: classify(pair, png(3)),
            "ten crops": lambda: pair.classifier.classify(png(4), model="tiny", crops=10, deadline=pair.deadline()),
            "compare": lambda: pair.classifier.compare(png(4), models=["tiny", "no"], deadline=pair.deadline()),
        }
        turns = {name: await longest(work) for name, work in works.items()}
    assert {name: turn for name, turn in turns.items() if turn.longest_s > LONGEST_S} == {}
