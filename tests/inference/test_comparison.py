"""Many models beside each other: one decode, an error is its row's own, and each row is counted once."""

import asyncio
from pathlib import Path

import pytest

from service.common.errors import BadImage, BadRequest, Code, NotReady, TopfiveError
from service.common.types import Classification, EngineInfo, Latency, ModelCard, Prediction, Preprocessing, Timing
from service.inference.comparison import Comparison, ComparisonRow, ComparisonTiming, compared
from tests.conftest import png
from tests.fakes import reached, settle
from tests.fleet import copy_model, fleet_of

pytestmark = pytest.mark.anyio


def codes(comparison: Comparison) -> list[tuple[str, str]]:
    """How each row ended."""
    return [
        (row.model, row.result.code if isinstance(row.result, TopfiveError) else type(row.result).__name__)
        for row in comparison.rows
    ]


def answer_of(*classes: tuple[str, str]) -> Classification:
    """An answer with these (wnid, label) as its best classes."""
    predictions = [Prediction(rank, rank, *names, 0.5 / rank) for rank, names in enumerate(classes, start=1)]
    card = ModelCard("m", 1, "f", 1, 1, 224, "file", None, None, None, Latency(0, None, None, None))
    engine, done = EngineInfo("fake", "1", "cpu", "f32"), Preprocessing("fake", "1/1", "none")
    return Classification(tuple(predictions), card, engine, done, Timing(0, 0, 0, 0), 1, (), ())


@pytest.fixture
def four(artifacts: Path) -> Path:
    """`tiny`, `twin` with the same recipe, `wide` and `wider` with another one, `digits` with ten classes."""
    copy_model(artifacts, "twin")
    recipe = {"resize": 300, "crop": 299, "interpolation": "bicubic"}
    copy_model(artifacts, "wide", {"input": recipe})
    copy_model(artifacts, "wider", {"input": {**recipe, "mean": [0.5] * 3, "std": [0.5] * 3}})
    copy_model(artifacts, "digits", digits=10)
    return artifacts


def test_agreement() -> None:
    """The class that most call the best comes first; the same label without a wnid is not the class with one."""
    zebra, bee, five = ("n1", "zebra"), ("n2", "bee"), ("", "5")
    rows = [
        ComparisonRow("a", answer_of(bee, zebra)),
        ComparisonRow("b", answer_of(zebra, bee)),
        ComparisonRow("c", BadRequest("no")),
        ComparisonRow("d", answer_of(zebra, bee)),
        ComparisonRow("e", answer_of(five)),
    ]
    comparison = compared(rows, ComparisonTiming(1.0, 2.0))

    said = [(group.label, group.models) for group in comparison.agreement]
    assert said == [("zebra", ("b", "d")), ("bee", ("a",)), ("5", ("e",))]
    assert comparison.common == ()
    shared = compared(rows[:4], ComparisonTiming(1.0, 2.0)).common
    assert [same.label for same in shared] == ["zebra", "bee"]
    assert compared([rows[2]], ComparisonTiming(1.0, 2.0)).agreement == ()


async def test_four_models_two_recipes(four: Path) -> None:
    """The photo is decoded once and resized once for each of the two recipes; every row has its answer."""
    async with fleet_of(four, "wider", "tiny", "wide", "twin") as fleet:
        comparison = await fleet.compare(png(7), top_k=3)
        assert codes(comparison) == [(name, "Classification") for name in ("wider", "tiny", "wide", "twin")]
        assert fleet.did == {"decoded": 1, "resized": 2}
        [group] = comparison.agreement
        assert group.models == ("wider", "tiny", "wide", "twin")
        assert group.wnid == "n01514668"
        assert comparison.common[0].wnid == "n01514668"
        assert len(comparison.common) == 3
        assert len(comparison.warnings) == 4
        assert fleet.answered() == {(name, "ok"): 1 for name in ("tiny", "twin", "wide", "wider")}


async def test_all_loaded_models(four: Path) -> None:
    """Without a name those that are loaded answer: the configured ones in their order, then the others by name."""
    async with fleet_of(four, "wide", "twin", "tiny", load=False) as fleet:
        with pytest.raises(NotReady, match="no model is loaded"):
            await fleet.compare(png(1))
        await fleet.repository.start(["wide"])
        await fleet.repository.get("twin")
        await fleet.repository.get("tiny")
        assert [row.model for row in (await fleet.compare(png(1))).rows] == ["wide", "tiny", "twin"]


async def test_an_error_is_its_rows_own(four: Path) -> None:
    """Unknown, not exported, too few classes, a failing engine, no ensemble: the others answer all the same."""
    async with fleet_of(four, "tiny", "twin", "digits") as fleet:
        fleet.engines["twin"].script = [RuntimeError("no device")]
        names = ["tinny", "tiny", "alexnet", "digits", "twin", "ensemble:tiny+digits", "ensemble:tiny"]
        comparison = await fleet.compare(png(1), names, top_k=11)
        assert codes(comparison) == [
            ("tinny", Code.MODEL_NOT_FOUND),
            ("tiny", "Classification"),
            ("alexnet", Code.MODEL_NOT_FOUND),
            ("digits", Code.BAD_REQUEST),
            ("twin", Code.INTERNAL),
            ("ensemble:tiny+digits", Code.BAD_REQUEST),
            ("ensemble:tiny", Code.BAD_REQUEST),
        ]
        assert sum(fleet.answered().values()) == 7


async def test_nobody_asks_for_the_photo(four: Path) -> None:
    """Where every row fails before, the photo, bad as it is, is never decoded."""
    async with fleet_of(four, "tiny") as fleet:
        comparison = await fleet.compare(b"not an image", ["tinny", "alexnet"])
        assert codes(comparison) == [("tinny", Code.MODEL_NOT_FOUND), ("alexnet", Code.MODEL_NOT_FOUND)]
        assert fleet.did == {}


async def test_a_bad_image_is_the_whole_requests_error(four: Path) -> None:
    """It is decoded once, counted for each model, and no engine sees it."""
    async with fleet_of(four, "tiny", "wide") as fleet:
        with pytest.raises(BadImage):
            await fleet.compare(b"not an image", ["tiny", "wide", "tinny"])
        assert fleet.did == {"decoded": 1}
        assert fleet.answered() == {
            ("tiny", "bad_image"): 1,
            ("wide", "bad_image"): 1,
            ("unknown", "model_not_found"): 1,
        }
        assert fleet.items() == {}


async def test_bad_questions(four: Path) -> None:
    """What no model could answer is refused as a whole."""
    async with fleet_of(four, "tiny") as fleet:
        for crops, top_k in ((2, 5), (1, 0)):
            with pytest.raises(BadRequest):
                await fleet.compare(png(1), ["tiny"], crops=crops, top_k=top_k)
        with pytest.raises(BadRequest, match="at most 64"):
            await fleet.compare(png(1), [f"m{number}" for number in range(65)])
        assert fleet.answered() == {("unknown", "bad_request"): 3}


async def test_a_model_named_twice_is_one_row(four: Path) -> None:
    """However it is spelt; an ensemble in another order is another one."""
    async with fleet_of(four, "tiny", "twin") as fleet:
        names = ["tiny", "resnet50", "tiny", "resnet50@IMAGENET1K_V2", "ensemble:tiny+twin", "ensemble:twin+tiny"]
        rows = (await fleet.compare(png(1), names)).rows
        assert [row.model for row in rows] == ["tiny", "resnet50", "ensemble:tiny+twin", "ensemble:twin+tiny"]


async def test_rows_with_ten_crops_and_ensembles(four: Path) -> None:
    """Every row takes ten crops, and they are made once for each recipe."""
    async with fleet_of(four, "tiny", "wide") as fleet:
        comparison = await fleet.compare(png(4), ["tiny", "wide", "ensemble:tiny+wide"], crops=10)
        assert {kind for _, kind in codes(comparison)} == {"Classification"}
        assert fleet.did == {"decoded": 1, "resized": 2}
        assert fleet.items() == {("tiny", "ok"): 20, ("wide", "ok"): 20}


async def test_a_row_without_a_place_is_overloaded(four: Path) -> None:
    """The other row still answers; the place of the busy model is not its."""
    async with fleet_of(four, "tiny", "twin", capacity=1) as fleet:
        fleet.engines["tiny"].gate.clear()
        busy = (await fleet.repository.get("tiny")).batcher
        holder = asyncio.create_task(fleet.classify(png(1), "tiny"))
        await reached(lambda: busy.in_flight == 1)
        comparison = await fleet.compare(png(1), ["tiny", "twin"])
        assert codes(comparison) == [("tiny", Code.OVERLOADED), ("twin", "Classification")]
        fleet.engines["tiny"].gate.set()
        await holder


async def test_at_the_deadline_rows_that_are_done_answer(four: Path) -> None:
    """The model that waits for its engine is told; the other's answer stays."""
    async with fleet_of(four, "tiny", "twin") as fleet:
        fleet.engines["tiny"].gate.clear()
        holder = asyncio.create_task(fleet.classify(png(1), "tiny"))
        batcher = (await fleet.repository.get("tiny")).batcher
        await reached(lambda: batcher.in_flight == 1)
        call = asyncio.create_task(fleet.compare(png(1), ["tiny", "twin"], within_s=2.0))
        await reached(lambda: batcher.depth == 1 and fleet.answered() == {("twin", "ok"): 1})
        await fleet.clock.advance(2.0)
        assert codes(await call) == [("tiny", Code.DEADLINE_EXCEEDED), ("twin", "Classification")]
        fleet.engines["tiny"].gate.set()
        await holder
        assert fleet.items() == {("twin", "ok"): 1, ("tiny", "expired"): 1, ("tiny", "ok"): 1}
        assert fleet.clock.pending == 0


async def test_a_caller_who_leaves_frees_every_row(four: Path) -> None:
    """Each row is counted as cancelled, every place is free."""
    async with fleet_of(four, "tiny", "wide") as fleet:
        batchers = [(await fleet.repository.get(name)).batcher for name in ("tiny", "wide")]
        for engine in fleet.engines.values():
            engine.gate.clear()
        call = asyncio.create_task(fleet.compare(png(1)))
        await reached(lambda: all(batcher.in_flight == 1 for batcher in batchers))
        call.cancel()
        await settle()
        assert call.cancelled()
        assert [batcher.admitted for batcher in batchers] == [0, 0]
        assert fleet.answered() == {("tiny", "cancelled"): 1, ("wide", "cancelled"): 1}


async def test_many_comparisons_at_once(four: Path) -> None:
    """Twenty photos by three models at the same time: nobody gets another's answer, each photo is decoded once."""
    async with fleet_of(four, "tiny", "twin", "wide") as fleet:
        comparisons = await asyncio.gather(*(fleet.compare(png(shade)) for shade in range(20)))
        for shade, comparison in enumerate(comparisons):
            best = [
                row.result.predictions[0].class_id for row in comparison.rows if isinstance(row.result, Classification)
            ]
            assert best == [shade] * 3
        assert fleet.did == {"decoded": 20, "resized": 40}


async def test_closing_while_comparing(four: Path) -> None:
    """What runs is answered; a comparison that comes later has no model that takes it."""
    async with fleet_of(four, "tiny", "twin") as fleet:
        fleet.engines["tiny"].gate.clear()
        batcher = (await fleet.repository.get("tiny")).batcher
        call = asyncio.create_task(fleet.compare(png(1)))
        await reached(lambda: batcher.in_flight == 1)
        closing = asyncio.create_task(fleet.repository.aclose(60))
        await settle()
        late = await fleet.compare(png(1), ["tiny", "twin"])
        assert codes(late) == [("tiny", Code.SHUTTING_DOWN), ("twin", Code.SHUTTING_DOWN)]
        fleet.engines["tiny"].gate.set()
        assert {kind for _, kind in codes(await call)} == {"Classification"}
        await closing
