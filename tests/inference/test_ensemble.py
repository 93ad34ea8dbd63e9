"""Ten crops and ensembles: plain averages, all places or none, and every image that is submitted ends once."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalog import CATALOG
from service.common.errors import BadRequest, EngineError, ModelNotFound, Overloaded
from service.common.types import Classification, ImageLimits, Probabilities
from service.inference.dataplane import ClassifyOptions
from service.inference.ensemble import mean
from service.preprocessing import decode, transforms
from tests.conftest import png
from tests.fakes import FakeEngine, reached, settle
from tests.fleet import copy_model, fleet_of

pytestmark = pytest.mark.anyio


def probabilities(answer: Classification) -> Probabilities:
    """All classes in their order."""
    by_class = sorted(answer.predictions, key=lambda prediction: prediction.class_id)
    return np.array([prediction.probability for prediction in by_class], dtype=np.float32)


def row(seed: int, classes: int = 1000) -> Probabilities:
    """The probabilities of a batch of one."""
    values: Probabilities = np.random.default_rng(seed).random((1, classes), dtype=np.float32)
    values /= values.sum()
    return values


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.integers(1, 20))
def test_mean(seeds: list[int], classes: int) -> None:
    """The mean of rows sums to one and lies between them, and the mean of equal rows is that row."""
    rows = [row(seed, classes)[0] for seed in seeds]
    average = mean(rows)

    assert average.dtype == np.float32
    assert abs(float(average.sum()) - 1) < 1e-5
    assert (average <= np.max(rows, axis=0)).all()
    assert (average >= np.min(rows, axis=0)).all()
    assert np.array_equal(mean([rows[0]] * len(rows)), rows[0])


# --- ten crops ---


async def test_ten_crops_are_the_mean_of_ten_runs(exported: Path, photo: bytes) -> None:
    """Ten crops give the average of ten single runs; they share batches and count as ten images."""
    async with fleet_of(exported, "tiny") as fleet:
        answer = await fleet.classify(photo, top_k=1000, crops=10)
        crops = transforms.make_samples(CATALOG["tiny"].input, decode.decode_image(photo, ImageLimits()), 10)
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
    """Any number of crops but one and ten is refused, and nothing is decoded."""
    async with fleet_of(exported, "tiny") as fleet:
        with pytest.raises(BadRequest, match="send 1 or 10"):
            await fleet.classify(png(1), crops=crops)
        assert fleet.did == {}
        assert fleet.answered() == {("tiny", "bad_request"): 1}


async def test_ten_places_or_none(exported: Path) -> None:
    """Ten crops take ten places at once or none; a capacity of nine can never take them, and the refusal says so."""
    async with fleet_of(exported, "tiny", capacity=10) as fleet:
        [running] = await fleet.busy()
        with pytest.raises(Overloaded):
            await fleet.classify(png(2), crops=10)
        assert (await fleet.batcher()).admitted == 1
        fleet.engines["tiny"].gate.set()
        await running
        await fleet.classify(png(2), crops=10)
        assert (await fleet.batcher()).admitted == 0
        assert fleet.items() == {("tiny", "ok"): 11, ("tiny", "overloaded"): 10}
    async with fleet_of(exported, "tiny", capacity=9) as fleet:
        with pytest.raises(BadRequest, match="--capacity"):
            await fleet.classify(png(2), crops=10)
        assert fleet.did == {}


async def test_one_crop_fails_and_the_others_end(exported: Path) -> None:
    """When the first batch fails, the answer is the error, the crops that wait are cancelled, and places are free."""
    async with fleet_of(exported, "tiny") as fleet:
        fleet.engines["tiny"].script = [RuntimeError("no device")]
        with pytest.raises(EngineError):
            await fleet.classify(png(1), crops=10)
        batcher = await fleet.batcher()
        await reached(lambda: batcher.in_flight == 0)
        assert (batcher.admitted, batcher.depth) == (0, 0)
        assert fleet.items() == {("tiny", "failed"): 8, ("tiny", "cancelled"): 2}
        assert fleet.answered() == {("tiny", "internal"): 1}


async def test_a_client_that_leaves_takes_ten_crops_along(exported: Path) -> None:
    """When the client leaves, each of its crops is cancelled once, waiting or running, and every place is free."""
    async with fleet_of(exported, "tiny", capacity=10) as fleet:
        fleet.engines["tiny"].gate.clear()
        batcher = await fleet.batcher()
        call = fleet.begin(png(1), crops=10)
        await reached(lambda: batcher.in_flight + batcher.depth == 10)
        call.cancel()
        await settle()
        assert call.cancelled()
        assert (batcher.admitted, batcher.depth) == (0, 0)
        fleet.engines["tiny"].gate.set()
        await fleet.classify(png(1), crops=10)
        assert fleet.items() == {("tiny", "cancelled"): 10, ("tiny", "ok"): 10}


async def test_crops_add_up_to_the_wall_time(exported: Path) -> None:
    """The inference time of ten crops is the time from their first start to their last end, not a sum of batches."""
    async with fleet_of(exported, "tiny") as fleet:
        fleet.engines["tiny"].gate.clear()
        batcher = await fleet.batcher()
        call = fleet.begin(png(1), crops=10)
        await reached(lambda: batcher.in_flight + batcher.depth == 10)
        await fleet.clock.advance(0.3)
        fleet.engines["tiny"].gate.set()
        timing = (await call).timing_ms
        assert (timing.decode, timing.queue) == (0, 0)
        assert (timing.inference, timing.total) == pytest.approx((300, 300))


async def test_trained_ten_crops(trained: Path, shared_data: Path, tmp_path: Path) -> None:
    """With trained weights ten crops name every labelled photo rightly."""
    from service.common.settings import Settings
    from service.server.data_plane import build_data_plane

    data_plane = build_data_plane(Settings(artifacts=trained, cache=tmp_path, models=("squeezenet1_1",), cpus=2))
    rows = [line.split(",") for line in (shared_data / "photos" / "labels.csv").read_text().splitlines()[1:]]
    best: list[int] = []
    await data_plane.repository.start(["squeezenet1_1"])
    for file, *_ in rows:
        data = (shared_data / "photos" / file).read_bytes()
        answer = await data_plane.classify(data, None, ClassifyOptions(crops=10, deadline=data_plane.clock.now() + 60))
        best.append(answer.predictions[0].class_id)
    await data_plane.aclose(5)
    assert best == [int(class_id) for _, class_id, *_ in rows]
    assert len(rows) == 10


# --- ensembles ---


@pytest.fixture(scope="module")
def members(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, `other` with the same classes and another recipe, `digits` with ten classes, five copies of `tiny`."""
    root = tmp_path_factory.mktemp("members") / "artifacts"
    shutil.copytree(exported, root)
    other = {"resize": 300, "crop": 299, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    weights = {"source": "file", "name": "mine.safetensors"}
    copy_model(root, "other", {"input": other, "weights": weights, "acc1": 70.0, "acc5": 90.0})
    copy_model(root, "digits", digits=10)
    for name in "abcde":
        copy_model(root, name)
    return root


async def test_an_ensemble_is_the_mean_of_its_members(members: Path) -> None:
    """An ensemble gives the average of members that each have their own recipe, and its card sums up theirs."""
    async with fleet_of(members, "tiny", "other") as fleet:
        fleet.engines["tiny"].script, fleet.engines["other"].script = [row(1)], [row(2)]
        answer = await fleet.classify(png(3), "ensemble:other+tiny", top_k=1000)
        tiny = CATALOG["tiny"]

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


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("ensemble:tiny", BadRequest, "2 to 8 members"),
        ("ensemble:", BadRequest, "2 to 8 members"),
        ("ensemble:tiny+", BadRequest, "2 to 8 members"),
        ("ensemble:a+b+c+d+e+f+g+h+i", BadRequest, "2 to 8 members"),
        ("ensemble:tiny+tiny", BadRequest, "tiny is in the ensemble twice"),
        ("ensemble:resnet50+resnet50@IMAGENET1K_V2", BadRequest, "resnet50 is in the ensemble twice"),
        ("ensemble:tiny+tinny", ModelNotFound, "'tinny'"),
        ("ensemble:tiny+alexnet", ModelNotFound, "alexnet is not exported"),
        ("ensemble:tiny+digits", BadRequest, "tiny and digits have different classes"),
    ],
)
async def test_no_ensemble(members: Path, name: str, error: type[Exception], words: str) -> None:
    """A name that cannot be an ensemble is refused with the reason, and becomes no label of the metrics."""
    async with fleet_of(members, "tiny", "digits") as fleet:
        with pytest.raises(error, match=words):
            await fleet.classify(png(1), name)
        assert {model for model, _ in fleet.answered()} == {"ensemble"}
        assert fleet.did == {}


async def test_a_member_without_a_place_frees_the_others(members: Path) -> None:
    """A request takes places of all members or of none: where one member is full, the others keep their places."""
    async with fleet_of(members, "tiny", "other", capacity=1) as fleet:
        await fleet.busy("other")
        with pytest.raises(Overloaded):
            await fleet.classify(png(1), "ensemble:tiny+other")
        assert (await fleet.batcher("tiny")).admitted == 0


async def test_latency_of_few_ensembles_is_kept(members: Path) -> None:
    """An ensemble remembers its latency until 64 others were asked for: clients make up the names."""
    async with fleet_of(members, *"abcde") as fleet:

        async def count(*names: str) -> int:
            return (await fleet.classify(png(1), f"ensemble:{'+'.join(names)}")).model.latency_ms.count

        assert [await count("a", "b"), await count("a", "b"), await count("b", "a")] == [1, 2, 1]
        others = [names for size in (2, 3) for names in itertools.permutations("abcde", size) if set(names) != {*"ab"}]
        for names in others[:63]:
            await count(*names)
        assert await count("b", "a") == 2
        assert await count("a", "b") == 1
