"""Several models on one image: one decode, one model at a time, an error is its row's own, each row is counted once."""

import asyncio
import shutil
from dataclasses import astuple
from pathlib import Path

import pytest

from models.catalog import InputSpec
from service.common.errors import BadImage, BadRequest, Code, NotReady, TopfiveError
from service.common.types import (
    Classification,
    EngineInfo,
    ImageLimits,
    Latency,
    ModelCard,
    Prediction,
    Preprocessing,
    Probabilities,
    Rows,
    Samples,
    Timing,
)
from service.inference.comparison import Comparison, ComparisonRow, ComparisonTiming, compared
from service.preprocessing.decode import DecodedImage
from tests.conftest import png
from tests.fakes import FakeEngine, ManualClock, reached, settle
from tests.fleet import copy_model, fleet_of

pytestmark = pytest.mark.anyio


def ends(comparison: Comparison) -> list[tuple[str, str]]:
    """How each row ended: `ok`, or the code of its error."""
    return [(row.model, row.result.code if isinstance(row.result, TopfiveError) else "ok") for row in comparison.rows]


def answer_of(*classes: tuple[str, str]) -> Classification:
    """An answer with these (wnid, label) as its best classes."""
    predictions = [Prediction(rank, rank, *names, 0.5 / rank) for rank, names in enumerate(classes, start=1)]
    card = ModelCard("m", 1, "f", 1, 1, 224, "file", None, None, None, Latency(0, None, None, None))
    engine, done = EngineInfo("fake", "1", "cpu", "f32"), Preprocessing("fake", "1/1", "none")
    return Classification(tuple(predictions), card, engine, done, Timing(0, 0, 0, 0), 1, (), ())


@pytest.fixture(scope="module")
def five(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, `twin` with the same recipe, `wide` and `wider` with another one, `digits` with ten classes."""
    root = tmp_path_factory.mktemp("five") / "artifacts"
    shutil.copytree(exported, root)
    copy_model(root, "twin")
    recipe = {"resize": 300, "crop": 299, "interpolation": "bicubic"}
    copy_model(root, "wide", {"input": recipe})
    copy_model(root, "wider", {"input": {**recipe, "mean": [0.5] * 3, "std": [0.5] * 3}})
    copy_model(root, "digits", digits=10)
    return root


def test_agreement() -> None:
    """The class that most models put first leads; a label without a wnid is another class than the same with one."""
    zebra, bee, nameless = ("n1", "zebra"), ("n2", "bee"), ("", "bee")
    rows = [
        (ComparisonRow("a", answer_of(bee, zebra)), "1000"),
        (ComparisonRow("b", answer_of(zebra, bee)), "1000"),
        (ComparisonRow("c", BadRequest("no")), ""),
        (ComparisonRow("d", answer_of(zebra, bee)), "1000"),
        (ComparisonRow("e", answer_of(nameless)), "1000"),
    ]
    comparison = compared(rows, ComparisonTiming(1.0, 2.0))

    found = [(group.wnid, group.label, group.models) for group in comparison.agreement]
    assert found == [("n1", "zebra", ("b", "d")), ("n2", "bee", ("a",)), ("", "bee", ("e",))]
    assert comparison.common == ()
    shared = compared(rows[:4], ComparisonTiming(1.0, 2.0)).common
    assert [one.label for one in shared] == ["zebra", "bee"]
    assert compared([rows[2]], ComparisonTiming(1.0, 2.0)).agreement == ()


def test_models_with_other_classes_stay_out() -> None:
    """The agreement counts the models with the classes that most have; with as many of each, those of the first."""
    zebra, five = ("n1", "zebra"), ("", "5")
    digits = (ComparisonRow("d", answer_of(five)), "10")
    rows = [digits, *((ComparisonRow(name, answer_of(zebra)), "1000") for name in ("a", "b"))]
    comparison = compared(rows, ComparisonTiming(1.0, 2.0))

    assert [(group.label, group.models) for group in comparison.agreement] == [("zebra", ("a", "b"))]
    assert [one.label for one in comparison.common] == ["zebra"]
    for first, second in ((digits, rows[1]), (rows[1], digits)):
        [group] = compared([first, second], ComparisonTiming(1.0, 2.0)).agreement
        assert group.models == (first[0].model,)


async def test_four_models_two_recipes(five: Path) -> None:
    """An image is decoded once and resized once for each distinct recipe; every model has its answer in its row."""
    async with fleet_of(five, "wider", "tiny", "wide", "twin") as fleet:
        comparison = await fleet.compare(png(7), top_k=3)
        assert ends(comparison) == [(name, "ok") for name in ("wider", "tiny", "wide", "twin")]
        assert fleet.did == {"decoded": 1, "resized": 2}
        [group] = comparison.agreement
        assert group.models == ("wider", "tiny", "wide", "twin")
        assert group.wnid == comparison.common[0].wnid == "n01514668"
        assert len(comparison.common) == 3
        assert len(comparison.warnings) == 4
        assert fleet.answered() == {(name, "ok"): 1 for name in ("tiny", "twin", "wide", "wider")}


async def test_all_loaded_models(five: Path) -> None:
    """Without a name the loaded models answer: the configured ones in their order, then the others by name."""
    async with fleet_of(five, "wide", "twin", "tiny", load=False) as fleet:
        with pytest.raises(NotReady, match="no model is loaded"):
            await fleet.compare(png(1))
        await fleet.repository.start(["wide"])
        await fleet.repository.get("twin")
        await fleet.repository.get("tiny")
        assert ends(await fleet.compare(png(1))) == [("wide", "ok"), ("tiny", "ok"), ("twin", "ok")]


async def test_an_error_is_its_rows_own(five: Path) -> None:
    """A model that is unknown, has too few classes, fails or is no ensemble leaves the answers of the others alone."""
    async with fleet_of(five, "tiny", "twin", "digits") as fleet:
        fleet.engines["twin"].script = [RuntimeError("no device")]
        names = ["tinny", "tiny", "alexnet", "digits", "twin", "ensemble:tiny+digits", "ensemble:tiny"]
        comparison = await fleet.compare(png(1), names, top_k=11)
        assert ends(comparison) == [
            ("tinny", Code.MODEL_NOT_FOUND),
            ("tiny", "ok"),
            ("alexnet", Code.MODEL_NOT_FOUND),
            ("digits", Code.BAD_REQUEST),
            ("twin", Code.INTERNAL),
            ("ensemble:tiny+digits", Code.BAD_REQUEST),
            ("ensemble:tiny", Code.BAD_REQUEST),
        ]
        assert sum(fleet.answered().values()) == 7


async def test_without_a_model_nothing_is_decoded(five: Path) -> None:
    """An image that no model asks for is not decoded, and so cannot be refused."""
    async with fleet_of(five, "tiny") as fleet:
        comparison = await fleet.compare(b"not an image", ["tinny", "alexnet"])
        assert ends(comparison) == [("tinny", Code.MODEL_NOT_FOUND), ("alexnet", Code.MODEL_NOT_FOUND)]
        assert fleet.did == {}


async def test_a_bad_image_is_the_whole_requests_error(five: Path) -> None:
    """A bad image is decoded once, counts for each model, and reaches no engine."""
    async with fleet_of(five, "tiny", "wide") as fleet:
        with pytest.raises(BadImage):
            await fleet.compare(b"not an image", ["tiny", "wide", "tinny"])
        assert fleet.did == {"decoded": 1}
        assert fleet.items() == {}
        assert fleet.answered() == {
            ("tiny", "bad_image"): 1,
            ("wide", "bad_image"): 1,
            ("unknown", "model_not_found"): 1,
        }


async def test_bad_requests(five: Path) -> None:
    """A request that no model could answer is refused as a whole."""
    async with fleet_of(five, "tiny") as fleet:
        for crops, top_k in ((2, 5), (1, 0)):
            with pytest.raises(BadRequest):
                await fleet.compare(png(1), ["tiny"], crops=crops, top_k=top_k)
        with pytest.raises(BadRequest, match="at most 64"):
            await fleet.compare(png(1), [f"m{number}" for number in range(65)])
        with pytest.raises(BadRequest, match="650 network inputs"):
            await fleet.compare(png(1), ["ensemble:a+b", *(f"m{number}" for number in range(63))], crops=10)
        assert fleet.did == {}
        assert fleet.answered() == {("unknown", "bad_request"): 4}


async def test_a_model_named_twice_is_one_row(five: Path) -> None:
    """A model has one row however its name is spelt; an ensemble in another order is another model."""
    async with fleet_of(five, "tiny", "twin") as fleet:
        names = ["tiny", "resnet50", "tiny", "resnet50@IMAGENET1K_V2", "ensemble:tiny+twin", "ensemble:twin+tiny"]
        rows = (await fleet.compare(png(1), names)).rows
        assert [row.model for row in rows] == ["tiny", "resnet50", "ensemble:tiny+twin", "ensemble:twin+tiny"]


async def test_rows_with_ten_crops_and_ensembles(five: Path) -> None:
    """Every row takes ten crops, which are made once for each recipe."""
    async with fleet_of(five, "tiny", "wide") as fleet:
        comparison = await fleet.compare(png(4), ["tiny", "wide", "ensemble:tiny+wide"], crops=10)
        assert {end for _, end in ends(comparison)} == {"ok"}
        assert [group.models for group in comparison.agreement] == [("tiny", "wide", "ensemble:tiny+wide")]
        assert fleet.did == {"decoded": 1, "resized": 2}
        assert fleet.items() == {("tiny", "ok"): 20, ("wide", "ok"): 20}


async def test_a_row_without_a_place_is_overloaded(five: Path) -> None:
    """A model that has no room refuses its row; the other row answers."""
    async with fleet_of(five, "tiny", "twin", capacity=1) as fleet:
        await fleet.busy("tiny")
        assert ends(await fleet.compare(png(1), ["tiny", "twin"])) == [("tiny", Code.OVERLOADED), ("twin", "ok")]


class TimedEngine(FakeEngine):
    """An engine that runs for `run_s` seconds of the clock and writes its start and end into `events`."""

    def __init__(self, name: str, run_s: float, clock: ManualClock, events: list[str]) -> None:
        super().__init__(device=name)
        self.run_s = run_s
        self.clock = clock
        self.events = events

    def run(self, rows: Rows) -> Probabilities:
        self.events.append(f"{self.device} begins")
        self.clock.jump(self.run_s)
        answer = super().run(rows)
        self.events.append(f"{self.device} ends")
        return answer


async def test_each_row_takes_the_time_that_it_takes_alone(five: Path) -> None:
    """One engine runs at a time, and every time in a row equals that of a request to its model alone."""
    async with fleet_of(five, "tiny", "wide", "twin", load=False) as fleet:
        events: list[str] = []
        for name, run_s in (("tiny", 0.5), ("wide", 0.25), ("twin", 2.0)):
            fleet.engines[name] = TimedEngine(name, run_s, fleet.clock, events)
        decode, crop = fleet.preprocessor.decode, fleet.preprocessor.crop

        def slow_decode(data: bytes, limits: ImageLimits, needed_side: int | None) -> DecodedImage:
            fleet.clock.jump(0.125)
            return decode(data, limits, needed_side)

        def slow_crop(spec: InputSpec, image: DecodedImage, count: int) -> Samples:
            fleet.clock.jump(spec.crop / 1024)
            return crop(spec, image, count)

        fleet.preprocessor.decode, fleet.preprocessor.crop = slow_decode, slow_crop
        names = ["tiny", "wide", "twin"]
        await fleet.repository.start(names)
        alone = [astuple((await fleet.classify(png(1), name)).timing_ms) for name in names]
        assert alone[1] == pytest.approx((125 + 299000 / 1024, 0, 250, 375 + 299000 / 1024))
        events.clear()
        comparison = await fleet.compare(png(1), names)

        assert events == [f"{name} {event}" for name in names for event in ("begins", "ends")]
        timings = [astuple(row.result.timing_ms) for row in comparison.rows if isinstance(row.result, Classification)]
        assert timings == [pytest.approx(times) for times in alone]
        decode_ms = 125 + (299000 + 32000) / 1024
        assert astuple(comparison.timing_ms) == pytest.approx((decode_ms, decode_ms + 2750))


async def test_a_row_that_waits_takes_no_place(five: Path) -> None:
    """While one model runs, the others have their whole capacity, and the rows that wait keep their models loaded."""
    async with fleet_of(five, "tiny", "twin", "digits", capacity=1) as fleet:
        fleet.engines["digits"].classes = 10
        for engine in fleet.engines.values():
            engine.gate.clear()
        models = [await fleet.repository.get(name) for name in ("tiny", "twin", "digits")]
        call = asyncio.create_task(fleet.compare(png(1), ["tiny", "twin", "digits"]))
        for turn, model in enumerate(models):
            await reached(lambda: fleet.engines[model.name].running == 1)  # noqa: B023
            assert sum(engine.running for engine in fleet.engines.values()) == 1
            assert [other.batcher.admitted for other in models] == [int(other is model) for other in models]
            waiting = [[lease.waits for lease in other.leases] for other in models]
            assert waiting[turn + 1 :] == [[1]] * (2 - turn)
            assert waiting[:turn] == [[]] * turn
            fleet.engines[model.name].gate.set()
        comparison = await call
        assert {end for _, end in ends(comparison)} == {"ok"}
        assert [group.models for group in comparison.agreement] == [("tiny", "twin")]
        assert not any(model.leases for model in models)


async def test_loaded_models_go_first(five: Path) -> None:
    """A model that must be loaded runs after those that are; the rows stay in the order of the request."""
    async with fleet_of(five, "wide", "twin", "tiny", load=False) as fleet:
        await fleet.repository.start(["twin"])
        fleet.opener.gate.clear()
        call = asyncio.create_task(fleet.compare(png(1), ["wide", "twin", "tiny"]))
        await reached(lambda: fleet.answered() == {("twin", "ok"): 1} and fleet.opener.begun == 2)
        assert fleet.did == {"decoded": 1, "resized": 1}
        fleet.opener.gate.set()
        assert ends(await call) == [("wide", "ok"), ("twin", "ok"), ("tiny", "ok")]
        assert fleet.did == {"decoded": 2, "resized": 2}


async def test_the_deadline_bounds_all_rows(five: Path) -> None:
    """A row that runs at the deadline ends with an error, as does one that waits for its turn, and it never runs."""
    async with fleet_of(five, "tiny", "twin", "wide") as fleet:
        fleet.engines["twin"].gate.clear()
        call = asyncio.create_task(fleet.compare(png(1), ["tiny", "twin", "wide"], within_s=2.0))
        await reached(lambda: fleet.engines["twin"].running == 1)
        await fleet.clock.advance(2.0)
        late = Code.DEADLINE_EXCEEDED
        assert ends(await call) == [("tiny", "ok"), ("twin", late), ("wide", late)]
        assert fleet.answered() == {("tiny", "ok"): 1, ("twin", late): 1, ("wide", late): 1}
        assert fleet.engines["wide"].batches == []
        assert [(await fleet.batcher(name)).admitted for name in ("tiny", "twin", "wide")] == [0, 0, 0]
        assert fleet.clock.pending == 1  # the watchdog of the batch that runs


async def test_at_the_deadline_finished_rows_answer(five: Path) -> None:
    """At the deadline a row that waits for its engine ends with an error; the answers that are there stay."""
    async with fleet_of(five, "tiny", "twin") as fleet:
        [running] = await fleet.busy("tiny")
        batcher = await fleet.batcher("tiny")
        call = asyncio.create_task(fleet.compare(png(1), ["twin", "tiny"], within_s=2.0))
        await reached(lambda: batcher.depth == 1 and fleet.answered() == {("twin", "ok"): 1})
        await fleet.clock.advance(2.0)
        assert ends(await call) == [("twin", "ok"), ("tiny", Code.DEADLINE_EXCEEDED)]
        fleet.engines["tiny"].gate.set()
        await running
        assert fleet.items() == {("twin", "ok"): 1, ("tiny", "expired"): 1, ("tiny", "ok"): 1}
        assert fleet.clock.pending == 0


async def test_a_client_that_leaves_ends_every_row(five: Path) -> None:
    """When the client leaves, the row that runs counts as cancelled, no further one begins, and nothing is kept."""
    async with fleet_of(five, "tiny", "wide") as fleet:
        batchers = [await fleet.batcher(name) for name in ("tiny", "wide")]
        for engine in fleet.engines.values():
            engine.gate.clear()
        call = asyncio.create_task(fleet.compare(png(1)))
        await reached(lambda: batchers[0].in_flight == 1)
        call.cancel()
        await settle()
        assert call.cancelled()
        assert [batcher.admitted for batcher in batchers] == [0, 0]
        assert fleet.answered() == {("tiny", "cancelled"): 1}
        assert not any([(await fleet.repository.get(name)).leases for name in ("tiny", "wide")])
        fleet.engines["tiny"].gate.set()
        await reached(lambda: batchers[0].in_flight == 0)
        assert fleet.engines["wide"].batches == []
