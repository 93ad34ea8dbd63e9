"""One request from bytes to answer, on a fake engine: right answers, true counters, and every way to end."""

import asyncio
import json
from pathlib import Path

import pytest

from models.artifact.artifact import MANIFEST
from models.catalog import CATALOG
from service.common.errors import (
    BadImage,
    BadRequest,
    DeadlineExceeded,
    ModelNotFound,
    NotReady,
    Overloaded,
    ShuttingDown,
    TooLarge,
    TopfiveError,
)
from service.common.types import Classification, EngineInfo, ImageLimits
from tests.conftest import png
from tests.exposition import exposition, samples
from tests.fakes import reached, settle
from tests.fleet import fleet_of

pytestmark = pytest.mark.anyio


def best(answer: Classification) -> int:
    """The most probable class."""
    return answer.predictions[0].class_id


# --- answers ---


async def test_fifty_requests_each_get_their_own_answer(exported: Path) -> None:
    """No two answers are mixed up when images of fifty shades go through two decoding threads and batches at once."""
    async with fleet_of(exported, "tiny") as fleet:
        answers = await asyncio.gather(*(fleet.classify(png(shade)) for shade in range(50)))
        assert [best(answer) for answer in answers] == list(range(50))
        assert sum(fleet.engines["tiny"].batches) == 50
        assert fleet.answered() == {("tiny", "ok"): 50}
        assert fleet.items() == {("tiny", "ok"): 50}


async def test_an_answer_says_everything_about_itself(exported: Path) -> None:
    """An answer has classes with rank, id and name, the card of its model, its engine, and the size of its batch."""
    async with fleet_of(exported, "tiny") as fleet:
        answer = await fleet.classify(png(7), top_k=3)
        assert [prediction.rank for prediction in answer.predictions] == [1, 2, 3]
        assert [prediction.class_id for prediction in answer.predictions] == [7, 0, 1]
        first, card = answer.predictions[0], answer.model
        assert (first.wnid, first.label) == ("n01514668", "cock")
        assert first.probability == pytest.approx(0.5)
        assert (card.name, card.version, card.family, card.input_size) == ("tiny", 1, "tiny", 32)
        assert (card.parameters, card.macs) == (CATALOG["tiny"].parameters, CATALOG["tiny"].macs) == (20_752, 181_888)
        assert (card.acc1, card.acc5, card.acc_dataset) == (None, None, None)
        assert answer.engine == EngineInfo("fake", "1", "cpu", "f32")
        assert answer.batch_size == 1
        assert answer.members == ()


async def test_no_name_means_the_default_model(exported: Path) -> None:
    """A request without a name goes to the first configured model, and is not ready before there is one."""
    async with fleet_of(exported, "tiny", load=False) as fleet:
        with pytest.raises(NotReady):
            await fleet.classify(png(1), None)
        await fleet.repository.start(["tiny"])
        assert (await fleet.classify(png(1), None)).model.name == "tiny"
        assert fleet.answered() == {("unknown", "not_ready"): 1, ("tiny", "ok"): 1}


async def test_untrained_weights_are_said_in_every_answer(artifacts: Path) -> None:
    """A model with untrained weights warns in each answer and says how to get others; trained ones do not warn."""
    async with fleet_of(artifacts, "tiny") as fleet:
        answer = await fleet.classify(png(1))
        assert answer.model.weights == "untrained"
        [warning] = answer.warnings
        assert "mean nothing" in warning
        assert "topfive export tiny --weights" in warning
    path = artifacts / "tiny" / "1" / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "weights": {"source": "file", "name": "mine.safetensors"}}))
    async with fleet_of(artifacts, "tiny") as fleet:
        answer = await fleet.classify(png(1))
        assert (answer.model.weights, answer.warnings) == ("file", ())


async def test_only_answers_are_timed(exported: Path) -> None:
    """The latency of a model and the metrics of each step count the answers that were given, and no refusal."""
    async with fleet_of(exported, "tiny") as fleet:
        counts = []
        for _ in range(3):
            counts.append((await fleet.classify(png(1))).model.latency_ms.count)
            with pytest.raises(BadImage):
                await fleet.classify(b"not an image")
        assert counts == [1, 2, 3]
        for stage in ("decode", "queue", "inference", "total"):
            sample = f'topfive_stage_seconds_count{{model="tiny",stage="{stage}"}} 3.0'
            assert sample in exposition(fleet.metrics)


async def test_each_step_has_its_time(exported: Path) -> None:
    """The times of decoding, waiting and inference are told apart, and add up to the total."""
    async with fleet_of(exported, "tiny") as fleet:
        [running] = await fleet.busy()
        call, image = await fleet.decoding()
        await fleet.clock.advance(0.1)
        image.gate.set()
        batcher = await fleet.batcher()
        await reached(lambda: batcher.depth == 1)
        await fleet.clock.advance(0.2)
        fleet.engines["tiny"].gate.set()
        waited, ran = (await call).timing_ms, (await running).timing_ms
        assert (waited.decode, waited.queue, waited.inference) == pytest.approx((100, 200, 0))
        assert waited.total == pytest.approx(300)
        assert (ran.inference, ran.total) == pytest.approx((300, 300))


# --- refusals ---


async def test_top_k_out_of_range_is_refused(exported: Path) -> None:
    """A number of classes that the model does not have is refused with the range, and nothing is decoded."""
    async with fleet_of(exported, "tiny") as fleet:
        with pytest.raises(BadRequest, match="1 to 1000"):
            await fleet.classify(png(1), top_k=1001)
        assert fleet.did == {}
        assert fleet.answered() == {("tiny", "bad_request"): 1}


@pytest.mark.parametrize(
    ("data", "error"), [(b"", BadImage), (b"not an image", BadImage), (png(1, size=(11, 10)), TooLarge)]
)
async def test_a_refused_image_never_reaches_the_batcher(
    exported: Path, data: bytes, error: type[TopfiveError]
) -> None:
    """An image that cannot be decoded, or has too many pixels, frees its place and reaches no batcher."""
    async with fleet_of(exported, "tiny", capacity=1, limits=ImageLimits(max_pixels=100)) as fleet:
        with pytest.raises(error):
            await fleet.classify(data)
        assert fleet.items() == {}
        assert fleet.engines["tiny"].batches == []
        assert fleet.answered() == {("tiny", error.code): 1}
        assert best(await fleet.classify(png(4, size=(10, 10)))) == 4


async def test_an_unknown_name_is_no_label(exported: Path) -> None:
    """Names that clients invent do not become time series."""
    async with fleet_of(exported, "tiny") as fleet:
        for name in ("nobody", "knows", "googlenet"):
            with pytest.raises(ModelNotFound):
                await fleet.classify(png(1), name)
        assert fleet.answered() == {("unknown", "model_not_found"): 3}


async def test_capacity_full_refuses_at_once(exported: Path) -> None:
    """With every place taken, in the engine and in the queue, a request is told when to come again; nothing decodes."""
    async with fleet_of(exported, "tiny", capacity=2) as fleet:
        calls = await fleet.busy(queued=1)
        with pytest.raises(Overloaded) as refused:
            await fleet.classify(png(9))
        assert refused.value.retry_after_s > 0
        assert fleet.did["decoded"] == 2
        fleet.engines["tiny"].gate.set()
        assert [best(answer) for answer in await asyncio.gather(*calls)] == [0, 1]
        assert fleet.answered() == fleet.items() == {("tiny", "ok"): 2, ("tiny", "overloaded"): 1}


async def test_an_image_being_decoded_takes_a_place(exported: Path) -> None:
    """Decoding counts towards the capacity, because memory grows there."""
    async with fleet_of(exported, "tiny", capacity=1) as fleet:
        call, image = await fleet.decoding()
        with pytest.raises(Overloaded):
            await fleet.classify(png(1))
        image.gate.set()
        assert best(await call) == 1


# --- deadlines ---


async def test_a_deadline_already_past_does_nothing(exported: Path) -> None:
    """A request whose time is over does not even begin a load."""
    async with fleet_of(exported, "tiny", load=False) as fleet:
        with pytest.raises(DeadlineExceeded):
            await fleet.classify(png(1), within_s=0.0)
        assert fleet.opener.begun == 0
        assert fleet.answered() == {("unknown", "deadline_exceeded"): 1}


async def test_a_deadline_during_the_load_leaves_the_load_going(exported: Path) -> None:
    """A request is told at its deadline that the load took too long; the next request has the model of that load."""
    async with fleet_of(exported, "tiny", load=False) as fleet:
        fleet.opener.gate.clear()
        call = fleet.begin(png(1), within_s=2.0)
        await reached(lambda: fleet.opener.begun == 1)
        await fleet.clock.advance(1.999)
        assert not call.done()
        await fleet.clock.advance(0.001)
        with pytest.raises(DeadlineExceeded):
            await call
        fleet.opener.gate.set()
        assert best(await fleet.classify(png(5))) == 5
        assert fleet.opener.begun == 1
        assert fleet.answered() == {("unknown", "deadline_exceeded"): 1, ("tiny", "ok"): 1}


async def test_a_deadline_in_the_queue_is_never_run(exported: Path) -> None:
    """An image whose deadline passes in the queue never reaches the engine."""
    async with fleet_of(exported, "tiny") as fleet:
        [running] = await fleet.busy()
        hurried = fleet.begin(png(7), within_s=2.0)
        batcher = await fleet.batcher()
        await reached(lambda: batcher.depth == 1)
        await fleet.clock.advance(2.0)
        with pytest.raises(DeadlineExceeded):
            await hurried
        fleet.engines["tiny"].gate.set()
        await running
        assert fleet.engines["tiny"].batches == [1]
        assert fleet.answered() == {("tiny", "deadline_exceeded"): 1, ("tiny", "ok"): 1}
        assert fleet.items() == {("tiny", "expired"): 1, ("tiny", "ok"): 1}


async def test_an_ended_request_leaves_no_timer(exported: Path) -> None:
    """The timer of a deadline ends with its request, whether it is answered or refused."""
    async with fleet_of(exported, "tiny") as fleet:
        await fleet.classify(png(1))
        with pytest.raises(BadImage):
            await fleet.classify(b"?")
        assert fleet.clock.pending == 0


# --- clients that leave ---


@pytest.mark.parametrize("code", ["deadline_exceeded", "cancelled"])
async def test_leaving_while_decoding_frees_the_place(exported: Path, code: str) -> None:
    """A request that ends while its thread still decodes frees its place at once, and its late sample is dropped."""
    async with fleet_of(exported, "tiny", capacity=1) as fleet:
        call, image = await fleet.decoding(within_s=2.0)
        if code == "cancelled":
            call.cancel()
            await settle()
        else:
            await fleet.clock.advance(2.0)
        [ended] = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError if code == "cancelled" else DeadlineExceeded)
        assert (await fleet.batcher()).admitted == 0
        assert best(await fleet.classify(png(2))) == 2
        image.gate.set()
        assert fleet.answered() == {("tiny", code): 1, ("tiny", "ok"): 1}
        assert fleet.items() == {("tiny", "ok"): 1}


async def test_cancelling_before_a_thread_is_free_decodes_nothing(exported: Path) -> None:
    """An image that waits for a decoding thread when its client leaves is never decoded."""
    async with fleet_of(exported, "tiny", threads=1) as fleet:
        call, image = await fleet.decoding()
        gone = fleet.begin(png(3))
        await settle()
        gone.cancel()
        await settle()
        image.gate.set()
        await call
        await fleet.classify(png(4))
        assert fleet.did["decoded"] == 2


async def test_cancelling_in_the_queue_or_in_flight_answers_the_others(exported: Path) -> None:
    """A client that leaves, with its image waiting or running, costs no other client its answer."""
    async with fleet_of(exported, "tiny") as fleet:
        running, *waiting = await fleet.busy(queued=3)
        running.cancel()
        waiting[1].cancel()
        await settle()
        assert (await fleet.batcher()).admitted == 2
        fleet.engines["tiny"].gate.set()
        first, last = await asyncio.gather(waiting[0], waiting[2])
        assert (best(first), best(last)) == (1, 3)
        assert fleet.answered() == fleet.items() == {("tiny", "cancelled"): 2, ("tiny", "ok"): 2}


# --- failures and the end ---


async def test_an_unforeseen_error_is_counted_and_frees_the_place(exported: Path) -> None:
    """A bug in a request counts as an internal error, and its place is free again."""

    class FaultyImage(bytes):
        def __len__(self) -> int:
            raise ZeroDivisionError("a bug")

    async with fleet_of(exported, "tiny") as fleet:
        with pytest.raises(ZeroDivisionError):
            await fleet.classify(FaultyImage(b"?"))
        assert fleet.answered() == {("tiny", "internal"): 1}
        assert (await fleet.batcher()).admitted == 0


async def test_closing_answers_what_is_being_decoded_and_refuses_the_rest(exported: Path) -> None:
    """An image that was accepted before the end is answered, also one that still decodes; later ones are refused."""
    async with fleet_of(exported, "tiny") as fleet:
        call, image = await fleet.decoding()
        closing = asyncio.create_task(fleet.data_plane.aclose(60))
        await settle()
        with pytest.raises(ShuttingDown):
            await fleet.classify(png(2))
        image.gate.set()
        assert best(await call) == 1
        await closing
        assert fleet.engines["tiny"].closed
        with pytest.raises(ShuttingDown):
            await fleet.classify(png(2))
        assert fleet.answered() == {("tiny", "ok"): 1, ("tiny", "shutting_down"): 1, ("unknown", "shutting_down"): 1}


async def test_the_wait_for_a_decoding_thread_counts_as_queue(exported: Path) -> None:
    """An image that waits three seconds for the only decoding thread has them in `queue`, and none in `decode`."""
    async with fleet_of(exported, "tiny", threads=1) as fleet:
        first, image = await fleet.decoding()
        second = fleet.begin(png(2))
        await settle()
        await fleet.clock.advance(3.0)
        image.gate.set()
        slow, quick = await asyncio.gather(first, second)
    assert (slow.timing_ms.decode, slow.timing_ms.queue) == (3000, 0)
    assert (quick.timing_ms.decode, quick.timing_ms.queue) == (0, 3000)
    assert quick.timing_ms.total == 3000


async def test_a_stuck_decode(exported: Path) -> None:
    """A decode that does not return turns readiness off and is a metric; with every thread stuck nothing is alive."""
    async with fleet_of(exported, "tiny") as fleet:
        plane = fleet.data_plane
        plane.check_ready()
        fleet.preprocessor.threads.stuck_after_s = 0.0
        _, first = await fleet.decoding()
        plane.check_alive()
        with pytest.raises(NotReady, match="1 of 2 threads"):
            plane.check_ready()
        assert not plane.ready
        assert [one.labels for one in samples(fleet.metrics, "topfive_stuck_decode_seconds")] == [
            {"thread": "decode_0"}
        ]
        _, second = await fleet.decoding()
        with pytest.raises(NotReady, match="every thread that decodes images is stuck"):
            plane.check_alive()
        first.gate.set()
        second.gate.set()
        await reached(lambda: plane.ready)
        plane.check_alive()


async def test_a_photo_is_let_go_with_its_caller(exported: Path) -> None:
    """The bytes of a request that waits for a decoding thread are released when its caller leaves."""

    gone: list[bool] = []

    class Photo(bytes):
        """Bytes that say when they are released."""

        def __del__(self) -> None:
            gone.append(True)

    async with fleet_of(exported, "tiny", threads=1) as fleet:
        await fleet.decoding()
        photo = Photo(png(3))
        call = fleet.begin(photo)
        del photo
        await settle()
        assert not gone
        call.cancel()
        await asyncio.wait([call])
        del call
        await settle()

        assert gone


async def test_models_are_listed_once_at_a_time(exported: Path) -> None:
    """Callers at the same time share one list, whose reading goes on where one of them leaves; a later one is new."""
    async with fleet_of(exported, "tiny") as fleet:
        leaver = asyncio.ensure_future(fleet.data_plane.models())
        await settle()
        leaver.cancel()
        first, *others = await asyncio.gather(*(fleet.data_plane.models() for _ in range(20)))
        later = await fleet.data_plane.models()

    assert all(one is first for one in others)
    assert later is not first
    assert "tiny" in [model.name for model in first.models]
