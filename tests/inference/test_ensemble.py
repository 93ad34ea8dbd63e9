"""Ten crops and ensembles: plain averages, all places or none, and every image that is submitted ends once."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.common.errors import BadRequest, EngineError, ModelNotFound, Overloaded
from service.common.types import Classification, ImageLimits, Prediction
from service.inference.dataplane import ClassifyOptions
from service.inference.ensemble import mean
from service.preprocessing import decode, transforms
from tests.conftest import png
from tests.fakes import FakeEngine, reached, settle
from tests.fleet import copy_model, fleet_of

pytestmark = pytest.mark.anyio


def probabilities(answer: Classification) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """All classes in their order."""
    by_class = sorted(answer.predictions, key=lambda prediction: prediction.class_id)
    return np.array([prediction.probability for prediction in by_class], dtype=np.float32)


def row(seed: int, classes: int = 1000) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The probabilities of a batch of one."""
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    values = np.random.default_rng(seed).random((1, classes), dtype=np.float32)
    values /= values.sum()
    return values


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.integers(1, 20))
def test_mean(seeds: list[int], classes: int) -> None:
    """The average of probabilities is one of probabilities, within the rows, and that of equal rows is the row."""
    rows = [row(seed, classes)[0] for seed in seeds]
    average = mean(rows)

    assert average.dtype == np.float32
    assert abs(float(average.sum()) - 1) < 1e-5
    assert (average <= np.max(rows, axis=0)).all()
    assert (average >= np.min(rows, axis=0)).all()
    assert np.array_equal(mean([rows[0]] * len(rows)), rows[0])


async def test_ten_crops_are_the_mean_of_ten_runs(exported: Path, photo: bytes) -> None:
    """The answer is the average over the crops run one by one; the ten share batches, and count as ten images."""
    async with fleet_of(exported, "tiny") as fleet:
        answer = await fleet.classify(photo, "tiny", top_k=1000, crops=10)
        manifest = (await fleet.repository.get("tiny")).artifact.manifest
        crops = transforms.ten_crops(manifest.input, decode.decode_pixels(photo, ImageLimits()))
        expected = np.mean([FakeEngine().run(crop[np.newaxis])[0] for crop in crops], axis=0, dtype=np.float64)

        assert np.abs(probabilities(answer) - expected).max() < 1e-7
        assert fleet.engines["tiny"].batches == [8, 2]
        assert answer.batch_size == 8
        assert answer.members == ()
        assert fleet.items() == {("tiny", "ok"): 10}
        assert fleet.answered() == {("tiny", "ok"): 1}
        assert fleet.did == {"decoded": 1, "resized": 1}


@pytest.mark.parametrize("crops", [0, 2, 11, -1])
async def test_other_numbers_of_crops(exported: Path, crops: int) -> None:
    """One or ten: anything else is refused with both, and nothing is decoded."""
    async with fleet_of(exported, "tiny") as fleet:
        with pytest.raises(BadRequest, match="send 1 or 10"):
            await fleet.classify(png(1), "tiny", crops=crops)
        assert fleet.did == {}
        assert fleet.answered() == {("tiny", "bad_request"): 1}


async def test_ten_places_or_none(exported: Path) -> None:
    """With one place taken of ten, ten crops are refused and take none; a house of nine can never hold them."""
    async with fleet_of(exported, "tiny", capacity=10) as fleet:
        fleet.engines["tiny"].gate.clear()
        batcher = (await fleet.repository.get("tiny")).batcher
        holder = asyncio.create_task(fleet.classify(png(1), "tiny"))
        await reached(lambda: batcher.in_flight == 1)
        with pytest.raises(Overloaded):
            await fleet.classify(png(2), "tiny", crops=10)
        assert batcher.admitted == 1
        fleet.engines["tiny"].gate.set()
        await holder
        await fleet.classify(png(2), "tiny", crops=10)
        assert batcher.admitted == 0
        assert fleet.items() == {("tiny", "ok"): 11, ("tiny", "overloaded"): 10}
    async with fleet_of(exported, "tiny", capacity=9) as fleet:
        with pytest.raises(BadRequest, match="--capacity"):
            await fleet.classify(png(2), "tiny", crops=10)
        assert fleet.did == {}


async def test_one_crop_fails_and_the_others_end(exported: Path) -> None:
    """The first batch fails: the crops that wait are cancelled, the answer is the error, every place is free."""
    async with fleet_of(exported, "tiny") as fleet:
        fleet.engines["tiny"].script = [RuntimeError("no device")]
        with pytest.raises(EngineError):
            await fleet.classify(png(1), "tiny", crops=10)
        batcher = (await fleet.repository.get("tiny")).batcher
        await reached(lambda: batcher.in_flight == 0)
        assert (batcher.admitted, batcher.depth) == (0, 0)
        assert fleet.items() == {("tiny", "failed"): 8, ("tiny", "cancelled"): 2}
        assert fleet.answered() == {("tiny", "internal"): 1}


async def test_a_caller_who_leaves_takes_ten_crops_along(exported: Path) -> None:
    """Waiting or running, each is cancelled once; the next caller finds every place free."""
    async with fleet_of(exported, "tiny", capacity=10) as fleet:
        fleet.engines["tiny"].gate.clear()
        batcher = (await fleet.repository.get("tiny")).batcher
        call = asyncio.create_task(fleet.classify(png(1), "tiny", crops=10))
        await reached(lambda: batcher.in_flight + batcher.depth == 10)
        call.cancel()
        await settle()
        assert call.cancelled()
        assert (batcher.admitted, batcher.depth) == (0, 0)
        fleet.engines["tiny"].gate.set()
        await fleet.classify(png(1), "tiny", crops=10)
        assert fleet.items() == {("tiny", "cancelled"): 10, ("tiny", "ok"): 10}


async def test_crops_add_up_to_the_wall_time(exported: Path) -> None:
    """From the first start to the last end is inference: with the engine held for 0.3 s, all ten took that long."""
    async with fleet_of(exported, "tiny") as fleet:
        fleet.engines["tiny"].gate.clear()
        batcher = (await fleet.repository.get("tiny")).batcher
        call = asyncio.create_task(fleet.classify(png(1), "tiny", crops=10))
        await reached(lambda: batcher.in_flight + batcher.depth == 10)
        await fleet.clock.advance(0.3)
        fleet.engines["tiny"].gate.set()
        timing = (await call).timing_ms
        assert (timing.decode, timing.queue) == (0, 0)
        assert timing.inference == pytest.approx(300)
        assert timing.total == pytest.approx(300)


@pytest.fixture
def pair(artifacts: Path) -> Path:
    """`tiny` and `other`, which has the same classes and another recipe, and `digits`, which has ten classes."""
    other = {"resize": 300, "crop": 299, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    weights = {"source": "file", "name": "mine.safetensors"}
    copy_model(artifacts, "other", {"input": other, "weights": weights, "acc1": 70.0, "acc5": 90.0})
    copy_model(artifacts, "digits", digits=10)
    return artifacts


async def test_an_ensemble_is_the_mean_of_its_members(pair: Path) -> None:
    """Two engines that disagree: the answer is the average, each through its own recipe, and the card sums them up."""
    async with fleet_of(pair, "tiny", "other") as fleet:
        fleet.engines["tiny"].script, fleet.engines["other"].script = [row(1)], [row(2)]
        answer = await fleet.classify(png(3), "ensemble:other+tiny", top_k=1000)
        tiny = (await fleet.repository.get("tiny")).artifact.manifest

        assert np.abs(probabilities(answer) - (row(1)[0].astype(np.float64) + row(2)[0]) / 2).max() < 1e-9
        card = answer.model
        assert (card.name, card.family, card.version) == ("ensemble:other+tiny", "ensemble", 0)
        assert (card.parameters, card.macs) == (2 * tiny.parameters, 2 * tiny.macs)
        assert (card.input_size, card.weights) == (299, "mixed")
        assert (card.acc1, card.acc5, card.acc_dataset) == (None, None, None)
        assert card.latency_ms.count == 1
        assert [member.name for member in answer.members] == ["other", "tiny"]
        assert answer.members[0].acc1 == 70.0
        assert answer.engine.runtime == "fake"
        [warning] = answer.warnings
        assert warning.startswith("tiny has untrained weights")
        assert fleet.did == {"decoded": 1, "resized": 2}
        assert fleet.answered() == {("ensemble", "ok"): 1}
        assert fleet.items() == {("tiny", "ok"): 1, ("other", "ok"): 1}


async def test_an_ensemble_takes_ten_crops(pair: Path) -> None:
    """Ten crops for each of two members are twenty images."""
    async with fleet_of(pair, "tiny", "other") as fleet:
        answer = await fleet.classify(png(3), "ensemble:tiny+other", crops=10)
        assert answer.predictions[0].class_id == 3
        assert fleet.items() == {("tiny", "ok"): 10, ("other", "ok"): 10}


async def test_members_are_named_by_their_plain_name(pair: Path) -> None:
    """A name with its default weights spelt out is the plain name, so it is the same member twice."""
    async with fleet_of(pair, "tiny") as fleet:
        with pytest.raises(BadRequest, match="resnet50 is in the ensemble twice"):
            await fleet.classify(png(1), "ensemble:resnet50+resnet50@IMAGENET1K_V2")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("ensemble:tiny", BadRequest, "2 to 8 members"),
        ("ensemble:", BadRequest, "2 to 8 members"),
        ("ensemble:tiny+", BadRequest, "2 to 8 members"),
        ("ensemble:a+b+c+d+e+f+g+h+i", BadRequest, "2 to 8 members"),
        ("ensemble:tiny+tiny", BadRequest, "tiny is in the ensemble twice"),
        ("ensemble:tiny+tinny", ModelNotFound, "'tinny'"),
        ("ensemble:tiny+alexnet", ModelNotFound, "alexnet is not exported"),
        ("ensemble:tiny+digits", BadRequest, "tiny and digits have different classes"),
    ],
)
async def test_no_ensemble(pair: Path, name: str, error: type[Exception], words: str) -> None:
    """What cannot be one is refused with the reason, and its name is no label."""
    async with fleet_of(pair, "tiny", "digits") as fleet:
        with pytest.raises(error, match=words):
            await fleet.classify(png(1), name)
        assert {model for model, _ in fleet.answered()} == {"ensemble"}
        assert fleet.did == {}


async def test_a_member_without_a_place_frees_the_others(pair: Path) -> None:
    """All members or none: the member that had room has no place taken."""
    async with fleet_of(pair, "tiny", "other", capacity=1) as fleet:
        fleet.engines["other"].gate.clear()
        busy = (await fleet.repository.get("other")).batcher
        holder = asyncio.create_task(fleet.classify(png(1), "other"))
        await reached(lambda: busy.in_flight == 1)
        with pytest.raises(Overloaded):
            await fleet.classify(png(1), "ensemble:tiny+other")
        assert (await fleet.repository.get("tiny")).batcher.admitted == 0
        fleet.engines["other"].gate.set()
        await holder


async def test_latency_of_few_ensembles_is_kept(artifacts: Path) -> None:
    """An ensemble remembers its answers, until 64 others have been asked for: clients make up the names."""
    names = [f"m{number}" for number in range(12)]
    for name in names:
        copy_model(artifacts, name)
    async with fleet_of(artifacts, *names) as fleet:

        async def count(first: str, second: str) -> int:
            return (await fleet.classify(png(1), f"ensemble:{first}+{second}")).model.latency_ms.count

        assert [await count("m0", "m1"), await count("m0", "m1"), await count("m1", "m0")] == [1, 2, 1]
        others = [(one, two) for one in names for two in names if one != two and {one, two} != {"m0", "m1"}]
        for one, two in others[:63]:
            await count(one, two)
        assert await count("m1", "m0") == 2
        assert await count("m0", "m1") == 1


async def test_trained_ten_crops(trained: Path, shared_data: Path, tmp_path: Path) -> None:
    """With trained weights ten crops name every labelled photo rightly."""
    from service.common.settings import Settings
    from service.server.data_plane import build_data_plane

    data_plane = build_data_plane(Settings(artifacts=trained, cache=tmp_path, models=("squeezenet1_1",), cpus=2))
    rows = [line.split(",") for line in (shared_data / "photos" / "labels.csv").read_text().splitlines()[1:]]
    best: list[Prediction] = []
    await data_plane.repository.start(["squeezenet1_1"])
    for file, *_ in rows:
        data = (shared_data / "photos" / file).read_bytes()
        answer = await data_plane.classify(data, None, ClassifyOptions(crops=10, deadline=data_plane.clock.now() + 60))
        best.append(answer.predictions[0])
    await data_plane.aclose(5)
    assert [prediction.class_id for prediction in best] == [int(class_id) for _, class_id, *_ in rows]
    assert len(rows) == 10
