"""The flow from bytes to answer, on a fake engine: right answers, true counters, and every way to end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from models.artifact.artifact import MANIFEST
from models.catalog import CATALOG
from service.batching.batcher import Batcher
from service.common.clock import Clock, LoopClock
from service.common.errors import (
    BadImage,
    BadRequest,
    Code,
    DeadlineExceeded,
    EngineError,
    ModelNotFound,
    NotReady,
    Overloaded,
    ShuttingDown,
    TooLarge,
)
from service.common.metrics import Metrics
from service.common.types import BatchLimits, Classification, ImageLimits, Probabilities, Sample
from service.engines.base import CPU
from service.inference.dataplane import ClassifyOptions
from service.inference.local import LocalDataPlane
from service.preprocessing.preprocessor import Preprocessor
from service.repository.device_memory import Device
from service.repository.repository import Repository
from tests.conftest import png
from tests.exposition import exposition
from tests.fakes import FakeEngine, ManualClock, Opener, SlowImage, reached, settle
from tests.fleet import Counted

pytestmark = pytest.mark.anyio

Call = asyncio.Task[Classification]


class Bench(Counted):
    """A classifier over `tiny` on a fake engine, with a clock that is turned by hand."""

    def __init__(self, root: Path, capacity: int, limits: ImageLimits, threads: int, clock: Clock | None) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.engine = FakeEngine()
        self.opener = Opener(lambda: self.engine)
        self.repository = Repository(
            root,
            CATALOG,
            lambda: [Device(CPU, self.opener)],
            limits=lambda engine: BatchLimits(engine.slots, engine.max_batch, capacity),
            clock=clock or self.clock,
            metrics=self.metrics,
        )
        decoder = Preprocessor(limits, threads=threads, clock=clock or self.clock)
        self.classifier = LocalDataPlane(self.repository, decoder, clock=clock or self.clock, metrics=self.metrics)
        self.now = (clock or self.clock).now
        self.images: list[SlowImage] = []

    async def classify(
        self, data: bytes, *, model: str | None = "tiny", top_k: int = 5, within_s: float = 60.0
    ) -> Classification:
        """What a transport does."""
        deadline = self.now() + within_s
        return await self.classifier.classify(data, model, ClassifyOptions(deadline, top_k))

    def begin(self, data: bytes, *, within_s: float = 60.0) -> Call:
        """A caller of its own."""
        return asyncio.create_task(self.classify(data, within_s=within_s))

    async def decoding(self, *, within_s: float = 60.0) -> tuple[Call, SlowImage]:
        """A caller whose image is being decoded."""
        image = SlowImage(png(1))
        self.images.append(image)
        call = self.begin(image, within_s=within_s)
        await reached(image.decoding.is_set)
        return call, image

    async def busy(self, queued: int = 0) -> list[Call]:
        """Callers that hold the engine, and so many more that wait for it."""
        self.engine.gate.clear()
        batcher = await self.batcher()
        calls: list[Call] = []
        for shade in range(queued + 1):
            calls.append(self.begin(png(shade)))
            await reached(lambda: batcher.in_flight + batcher.depth == len(calls))
        return calls

    async def batcher(self) -> Batcher[Sample, Probabilities]:
        """The queue of the model, which is loaded where it is not."""
        return (await self.repository.get("tiny")).batcher


@asynccontextmanager
async def bench_of(
    root: Path, *, capacity: int = 64, limits: ImageLimits | None = None, threads: int = 2, clock: Clock | None = None
) -> AsyncIterator[Bench]:
    """A bench that is closed at the end."""
    bench = Bench(root, capacity, limits or ImageLimits(), threads, clock)
    try:
        yield bench
    finally:
        for gate in (bench.engine.gate, bench.opener.gate, *(image.gate for image in bench.images)):
            gate.set()
        closing = asyncio.create_task(bench.classifier.aclose(60))
        await reached(closing.done)
        await closing


# --- answers ---


async def test_fifty_callers_each_get_their_own_answer(exported: Path) -> None:
    """Images of fifty shades, at once, through two decoders and batches: no two answers are mixed up."""
    async with bench_of(exported) as bench:
        answers = await asyncio.gather(*(bench.classify(png(shade)) for shade in range(50)))
        assert [answer.predictions[0].class_id for answer in answers] == list(range(50))
        assert sum(bench.engine.batches) == 50
        assert bench.answered() == {("tiny", "ok"): 50}
        assert bench.items() == {("tiny", "ok"): 50}


async def test_an_answer_says_everything_about_itself(exported: Path) -> None:
    """Classes with rank, id and name, the model, the engine, and the batch it was in."""
    async with bench_of(exported) as bench:
        answer = await bench.classify(png(7), top_k=3)
        assert [prediction.rank for prediction in answer.predictions] == [1, 2, 3]
        assert [prediction.class_id for prediction in answer.predictions] == [7, 0, 1]
        best = answer.predictions[0]
        assert (best.wnid, best.label) == ("n01514668", "cock")
        assert best.probability == pytest.approx(0.5)
        assert (answer.model.name, answer.model.version) == ("tiny", 1)
        assert answer.engine.runtime == "fake"
        assert answer.batch_size == 1


async def test_no_name_means_the_default_model(exported: Path) -> None:
    """None is the first configured model; before there is one, the caller is told to come again."""
    async with bench_of(exported) as bench:
        with pytest.raises(NotReady):
            await bench.classify(png(1), model=None)
        await bench.repository.start(["tiny"])
        assert (await bench.classify(png(1), model=None)).model.name == "tiny"
        assert bench.answered() == {("unknown", "not_ready"): 1, ("tiny", "ok"): 1}


async def test_untrained_weights_are_said_in_every_answer(artifacts: Path) -> None:
    """The card says untrained and a warning says what that means; trained weights carry no warning."""
    async with bench_of(artifacts) as bench:
        answer = await bench.classify(png(1))
        assert answer.model.weights == "untrained"
        [warning] = answer.warnings
        assert "mean nothing" in warning
    path = artifacts / "tiny" / "1" / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "weights": {"source": "file", "name": "mine.safetensors"}}))
    async with bench_of(artifacts) as bench:
        answer = await bench.classify(png(1))
        assert answer.model.weights == "file"
        assert answer.warnings == ()


async def test_latency_counts_the_answers_given(exported: Path) -> None:
    """Each answer's card has the percentiles up to itself; a refused request does not count."""
    async with bench_of(exported) as bench:
        counts = []
        for _ in range(3):
            counts.append((await bench.classify(png(1))).model.latency_ms.count)
            with pytest.raises(BadImage):
                await bench.classify(b"not an image")
        assert counts == [1, 2, 3]


# --- times ---


async def test_each_step_has_its_time(exported: Path) -> None:
    """0.1 s of decoding, 0.2 s of waiting, or 0.3 s in the engine: they are told apart, and add up to the total."""
    async with bench_of(exported) as bench:
        [holder] = await bench.busy()
        call, image = await bench.decoding()
        await bench.clock.advance(0.1)
        image.gate.set()
        batcher = await bench.batcher()
        await reached(lambda: batcher.depth == 1)
        await bench.clock.advance(0.2)
        bench.engine.gate.set()
        answer = await call
        assert answer.timing_ms.decode == pytest.approx(100)
        assert answer.timing_ms.queue == pytest.approx(200)
        assert answer.timing_ms.inference == pytest.approx(0)
        assert answer.timing_ms.total == pytest.approx(300)
        first = await holder
        assert first.timing_ms.inference == pytest.approx(300)
        assert first.timing_ms.total == pytest.approx(300)


async def test_the_steps_never_add_up_to_more_than_the_total(exported: Path) -> None:
    """On a real clock, under load: no part is negative, and together they fit in the total."""
    async with bench_of(exported, clock=LoopClock()) as bench:
        for answer in await asyncio.gather(*(bench.classify(png(shade)) for shade in range(20))):
            timing = answer.timing_ms
            parts = (timing.decode, timing.queue, timing.inference)
            assert min(parts) >= 0
            assert sum(parts) <= timing.total + 1e-6


async def test_the_steps_show_in_the_metrics(exported: Path) -> None:
    """One observation of each step for each answer, and none for a refusal."""
    async with bench_of(exported) as bench:
        await bench.classify(png(1))
        with pytest.raises(BadImage):
            await bench.classify(b"")
        text = exposition(bench.metrics)
        for stage in ("decode", "queue", "inference", "total"):
            assert f'topfive_stage_seconds_count{{model="tiny",stage="{stage}"}} 1.0' in text


# --- refusals ---


@pytest.mark.parametrize("top_k", [0, -1, 1001])
async def test_top_k_out_of_range_is_refused(exported: Path, top_k: int) -> None:
    """The message has the range; nothing is decoded."""
    async with bench_of(exported) as bench:
        image = SlowImage(png(1))
        with pytest.raises(BadRequest, match="1 to 1000"):
            await bench.classify(image, top_k=top_k)
        assert not image.decoding.is_set()
        assert bench.answered() == {("tiny", "bad_request"): 1}


@pytest.mark.parametrize("top_k", [1, 1000])
async def test_top_k_may_be_one_or_all(exported: Path, top_k: int) -> None:
    """Both ends of the range are served, best first."""
    async with bench_of(exported) as bench:
        predictions = (await bench.classify(png(3), top_k=top_k)).predictions
        assert len(predictions) == top_k
        assert predictions[0].class_id == 3


@pytest.mark.parametrize("data", [b"", b"not an image", png(1)[:60]], ids=["empty", "text", "cut"])
async def test_a_bad_image_never_reaches_the_batcher(exported: Path, data: bytes) -> None:
    """It is refused after decoding, its place is free again, and the batcher has counted nothing."""
    async with bench_of(exported, capacity=1) as bench:
        with pytest.raises(BadImage):
            await bench.classify(data)
        assert bench.items() == {}
        assert bench.engine.batches == []
        assert bench.answered() == {("tiny", "bad_image"): 1}
        assert (await bench.classify(png(4))).predictions[0].class_id == 4


async def test_too_many_pixels_never_reach_the_batcher(exported: Path) -> None:
    """A small file of a large picture is refused from its header."""
    async with bench_of(exported, limits=ImageLimits(max_pixels=100)) as bench:
        with pytest.raises(TooLarge, match="pixels"):
            await bench.classify(png(1))
        assert bench.items() == {}
        assert bench.answered() == {("tiny", "too_large"): 1}


async def test_an_unknown_name_is_no_label(exported: Path) -> None:
    """A thousand invented names must not become a thousand time series."""
    async with bench_of(exported) as bench:
        for name in ("nobody", "knows", "googlenet"):
            with pytest.raises(ModelNotFound):
                await bench.classify(png(1), model=name)
        assert bench.answered() == {("unknown", "model_not_found"): 3}


async def test_capacity_full_refuses_at_once(exported: Path) -> None:
    """With the engine blocked and two places taken, the third is told when to come again, and is not decoded."""
    async with bench_of(exported, capacity=2) as bench:
        calls = await bench.busy(queued=1)
        image = SlowImage(png(9))
        with pytest.raises(Overloaded) as refused:
            await bench.classify(image)
        assert refused.value.retry_after_s > 0
        assert not image.decoding.is_set()
        bench.engine.gate.set()
        answers = await asyncio.gather(*calls)
        assert [answer.predictions[0].class_id for answer in answers] == [0, 1]
        assert bench.answered() == {("tiny", "ok"): 2, ("tiny", "overloaded"): 1}
        assert bench.items() == {("tiny", "ok"): 2, ("tiny", "overloaded"): 1}


async def test_an_image_being_decoded_takes_a_place(exported: Path) -> None:
    """Decoding is where memory grows, so it counts."""
    async with bench_of(exported, capacity=1) as bench:
        call, image = await bench.decoding()
        with pytest.raises(Overloaded):
            await bench.classify(png(1))
        image.gate.set()
        assert (await call).predictions[0].class_id == 1


# --- time runs out ---


async def test_a_deadline_already_past_does_nothing(exported: Path) -> None:
    """Not even a load is begun."""
    async with bench_of(exported) as bench:
        with pytest.raises(DeadlineExceeded):
            await bench.classify(png(1), within_s=0.0)
        assert bench.opener.begun == 0
        assert bench.answered() == {("unknown", "deadline_exceeded"): 1}


async def test_a_deadline_during_the_load_leaves_the_load_going(exported: Path) -> None:
    """The caller is told at its deadline; the model is there for the next one."""
    async with bench_of(exported) as bench:
        bench.opener.gate.clear()
        call = bench.begin(png(1), within_s=2.0)
        await reached(lambda: bench.opener.begun == 1)
        await bench.clock.advance(1.999)
        assert not call.done()
        await bench.clock.advance(0.001)
        with pytest.raises(DeadlineExceeded):
            await call
        bench.opener.gate.set()
        assert (await bench.classify(png(5))).predictions[0].class_id == 5
        assert bench.opener.begun == 1
        assert bench.answered() == {("unknown", "deadline_exceeded"): 1, ("tiny", "ok"): 1}


async def test_a_deadline_while_decoding_frees_the_place(exported: Path) -> None:
    """The caller is told at its deadline, and the late sample is not given to the batcher."""
    async with bench_of(exported, capacity=1) as bench:
        call, image = await bench.decoding(within_s=2.0)
        await bench.clock.advance(2.0)
        with pytest.raises(DeadlineExceeded):
            await call
        assert (await bench.batcher()).admitted == 0
        image.gate.set()
        await bench.classify(png(1))
        assert bench.items() == {("tiny", "ok"): 1}
        assert bench.answered() == {("tiny", "deadline_exceeded"): 1, ("tiny", "ok"): 1}


async def test_a_deadline_in_the_queue_is_never_run(exported: Path) -> None:
    """The engine sees only the image before it."""
    async with bench_of(exported) as bench:
        [holder] = await bench.busy()
        hurried = bench.begin(png(7), within_s=2.0)
        batcher = await bench.batcher()
        await reached(lambda: batcher.depth == 1)
        await bench.clock.advance(2.0)
        with pytest.raises(DeadlineExceeded):
            await hurried
        bench.engine.gate.set()
        await holder
        assert bench.engine.batches == [1]
        assert bench.answered() == {("tiny", "deadline_exceeded"): 1, ("tiny", "ok"): 1}
        assert bench.items() == {("tiny", "expired"): 1, ("tiny", "ok"): 1}


async def test_an_answer_leaves_no_timer(exported: Path) -> None:
    """Deadlines that were met are forgotten, not kept until they pass."""
    async with bench_of(exported) as bench:
        await bench.classify(png(1))
        with pytest.raises(BadImage):
            await bench.classify(b"?")
        assert bench.clock.pending == 0


# --- callers that leave ---


async def test_cancelling_while_decoding_frees_the_place(exported: Path) -> None:
    """The place is free in the same turn, though the thread still decodes; the late sample is dropped."""
    async with bench_of(exported, capacity=1) as bench:
        call, image = await bench.decoding()
        call.cancel()
        await settle()
        assert call.cancelled()
        assert (await bench.batcher()).admitted == 0
        answer = await bench.classify(png(2))
        assert answer.predictions[0].class_id == 2
        image.gate.set()
        assert bench.answered() == {("tiny", "cancelled"): 1, ("tiny", "ok"): 1}
        assert bench.items() == {("tiny", "ok"): 1}


async def test_cancelling_before_a_decoder_is_free_decodes_nothing(exported: Path) -> None:
    """An image that waits for its turn to be decoded is taken out of the line."""
    async with bench_of(exported, threads=1) as bench:
        call, image = await bench.decoding()
        waiting = SlowImage(png(3))
        bench.images.append(waiting)
        gone = bench.begin(waiting)
        await settle()
        gone.cancel()
        await settle()
        image.gate.set()
        await call
        await bench.classify(png(4))
        assert not waiting.decoding.is_set()


async def test_cancelling_in_the_queue_or_in_flight_answers_the_others(exported: Path) -> None:
    """Neither a waiting nor a running caller that leaves takes anybody along."""
    async with bench_of(exported) as bench:
        running, *waiting = await bench.busy(queued=3)
        running.cancel()
        waiting[1].cancel()
        await settle()
        assert (await bench.batcher()).admitted == 2
        bench.engine.gate.set()
        first, last = await asyncio.gather(waiting[0], waiting[2])
        assert (first.predictions[0].class_id, last.predictions[0].class_id) == (1, 3)
        assert bench.answered() == {("tiny", "cancelled"): 2, ("tiny", "ok"): 2}
        assert bench.items() == {("tiny", "cancelled"): 2, ("tiny", "ok"): 2}


# --- failures ---


async def test_a_failing_engine_is_an_internal_error(exported: Path) -> None:
    """The caller gets the code `internal`, the next one an answer."""
    async with bench_of(exported) as bench:
        bench.engine.script = [RuntimeError("no device")]
        with pytest.raises(EngineError) as failed:
            await bench.classify(png(1))
        assert failed.value.code is Code.INTERNAL
        await bench.classify(png(1))
        assert bench.answered() == {("tiny", "internal"): 1, ("tiny", "ok"): 1}
        assert bench.items() == {("tiny", "failed"): 1, ("tiny", "ok"): 1}


async def test_a_model_that_cannot_be_loaded_is_not_ready(exported: Path) -> None:
    """The code says come again, and the next request does load it."""
    async with bench_of(exported) as bench:
        bench.opener.script = [RuntimeError("no device")]
        with pytest.raises(NotReady):
            await bench.classify(png(1))
        await bench.classify(png(1))
        assert bench.answered() == {("unknown", "not_ready"): 1, ("tiny", "ok"): 1}


async def test_an_unforeseen_error_is_counted_and_gives_the_place_back(exported: Path) -> None:
    """Whatever a bug raises, the counter knows and nothing leaks."""

    class FaultyImage(bytes):
        def __len__(self) -> int:
            raise ZeroDivisionError("a bug")

    async with bench_of(exported) as bench:
        with pytest.raises(ZeroDivisionError):
            await bench.classify(FaultyImage(b"?"))
        assert bench.answered() == {("tiny", "internal"): 1}
        assert (await bench.batcher()).admitted == 0


async def test_closing_answers_what_is_being_decoded_and_refuses_the_rest(exported: Path) -> None:
    """From bytes on, an accepted image is answered; one that comes later is told to go elsewhere."""
    async with bench_of(exported) as bench:
        call, image = await bench.decoding()
        closing = asyncio.create_task(bench.classifier.aclose(60))
        await settle()
        with pytest.raises(ShuttingDown):
            await bench.classify(png(2))
        image.gate.set()
        assert (await call).predictions[0].class_id == 1
        await closing
        assert bench.engine.closed
        with pytest.raises(ShuttingDown):
            await bench.classify(png(2))
        assert bench.answered() == {("tiny", "ok"): 1, ("tiny", "shutting_down"): 1, ("unknown", "shutting_down"): 1}
