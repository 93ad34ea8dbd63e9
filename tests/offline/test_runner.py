"""A run of many images through one model: images in flight, stops, errors and full batches."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest

from service.common.errors import NotReady
from service.common.settings import Settings
from service.engines.selection.opening import OpenEngine
from service.offline.images import ImageFile, OfflineError
from service.offline.journal import ImageResult, Journal
from service.offline.runner import (
    ModelRunner,
    RunOptions,
    classify_all,
    open_runner,
)
from service.server.data_plane import build_data_plane
from tests.conftest import png
from tests.fakes import FakeEngine, Opener, opener, reached, settle
from tests.offline.results import good

pytestmark = pytest.mark.anyio


class Answers:
    """Classifies each image once `release` is called for it; `waiting` are those in flight."""

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Future[ImageResult]] = {}
        self.begun: list[str] = []
        self.stored: list[str] = []

    async def __call__(self, image: ImageFile) -> ImageResult:
        self.begun.append(image.name)
        self.waiting[image.name] = asyncio.get_running_loop().create_future()
        try:
            return await self.waiting[image.name]
        finally:
            del self.waiting[image.name]

    async def release(self, *names: str) -> None:
        for name in names:
            self.waiting[name].set_result(good(name))
            await settle()

    def run(self, count: int, in_flight: int) -> asyncio.Task[None]:
        """Classify images 0, 1, 2, ..."""
        images = [ImageFile(str(number), Path(str(number))) for number in range(count)]
        store: Callable[[ImageResult], None] = lambda result: self.stored.append(result.path)  # noqa: E731
        return asyncio.create_task(classify_all(images, self, store, in_flight=in_flight))


async def test_in_flight() -> None:
    """At most the allowed images are in flight, one begins as another ends, and each result is stored at once."""
    answers = Answers()
    task = answers.run(6, in_flight=3)
    await settle()
    assert sorted(answers.waiting) == ["0", "1", "2"]
    await answers.release("2")
    assert (answers.stored, sorted(answers.waiting)) == (["2"], ["0", "1", "3"])
    await answers.release("0", "1", "3", "5", "4")
    await task
    assert answers.stored == ["2", "0", "1", "3", "5", "4"]
    assert answers.begun == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), OfflineError("the disk is full")])
async def test_end(error: BaseException) -> None:
    """A run that is cancelled, or cannot store a result, leaves no image in flight."""
    answers = Answers()
    task = answers.run(5, in_flight=3)
    await settle()
    if isinstance(error, OfflineError):
        answers.waiting["1"].set_exception(error)
    else:
        task.cancel()
    with pytest.raises(type(error)):
        await task
    assert answers.waiting == {}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of the class 7."""
    (tmp_path / "a.png").write_bytes(png(7))
    return tmp_path / "a.png"


@asynccontextmanager
async def opened(
    artifacts: Path, opening: OpenEngine, crops: int = 1, capacity: int = 256
) -> AsyncIterator[ModelRunner]:
    """The model tiny on two CPUs."""
    settings = Settings(models=("tiny",), artifacts=artifacts, cpus=2, capacity=capacity)
    open_data_plane = lambda: build_data_plane(settings, open_engine=opening)  # noqa: E731
    display = lambda *_: nullcontext(lambda: None)  # noqa: E731
    options = RunOptions(crops, settings.decode, settings.limits, 2, capacity, open_data_plane, display)
    async with open_runner("tiny", options) as runner:
        yield runner


async def run(runner: ModelRunner, image: Path, count: int) -> list[ImageResult]:
    """The results of so many copies of the image, in their order."""
    images = [ImageFile(str(number), image, 7) for number in range(count)]

    with Journal(image.with_name("journal"), runner.setup) as journal:
        await runner.run(journal, images)
        return list(journal.results(images))


async def test_stop_while_loading(artifacts: Path) -> None:
    """A stop does not wait for a model that loads; the engine is closed once it is there."""
    opening = Opener()
    opening.gate.clear()

    async def work() -> None:
        async with opened(artifacts, opening):
            raise AssertionError("the model is not there yet")

    task = asyncio.create_task(work())
    await reached(lambda: opening.begun == 1)
    task.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        opening.gate.set()
    await reached(lambda: [engine.closed for engine in opening.opened] == [True])


async def test_engine_that_fails(artifacts: Path, image: Path) -> None:
    """A failed batch is the error of its image; three failures in a row end the run."""
    engine = FakeEngine()
    engine.script = [RuntimeError("broken")] * 3
    async with opened(artifacts, opener(engine)) as runner:
        for _ in range(2):
            result = await runner.classify(ImageFile("a.png", image, 7))
            assert result.error is not None
            assert (result.error.code, result.truth) == ("internal", 7)
        with pytest.raises(NotReady, match="tiny fails on every image"):
            await runner.classify(ImageFile("a.png", image, 7))
        result = await runner.classify(ImageFile("a.png", image, 7))
        assert result.predictions[0].class_id == 7


async def test_crops_find_their_places(artifacts: Path, image: Path) -> None:
    """Ten crops an image and a capacity of twenty-five crops refuse no image."""
    engine = FakeEngine(max_batch=8)
    async with opened(artifacts, opener(engine), crops=10, capacity=25) as runner:
        results = await run(runner, image, 12)

    assert [result.error for result in results] == [None] * 12
    assert sum(engine.batches) == 120


async def test_batches_are_full(artifacts: Path, image: Path) -> None:
    """A run keeps enough images in flight for full batches."""
    engine = FakeEngine(max_batch=8)
    engine.gate.clear()
    async with opened(artifacts, opener(engine)) as runner:
        batcher = runner.model.members[0].batcher
        task = asyncio.create_task(run(runner, image, 33))
        try:
            await reached(lambda: batcher.depth + batcher.in_flight == 18)
        finally:
            engine.gate.set()
        assert len(await task) == sum(engine.batches) == 33
    assert engine.batches[1:3] == [8, 8]
