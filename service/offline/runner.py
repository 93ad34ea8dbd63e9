"""Runs many images through a model in this process, some of them at once, and stores each result in a journal."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from math import ceil

from models.artifact.artifact import WeightRecord
from service.common.clock import Clock
from service.common.errors import BadImage, EngineError, NotReady, TooLarge
from service.common.image_file import read_image_file
from service.common.tasks import together
from service.common.types import Decode, ImageLimits
from service.inference.dataplane import ClassifyOptions
from service.inference.ensemble import ServedModel, member_names
from service.inference.local import LocalDataPlane
from service.inference.topk import resolve_top_k
from service.offline.images import ImageFile
from service.offline.journal import ImageError, ImageResult, Journal
from service.repository.loaded_model import LoadedModel

_UNREADABLE = "unreadable"
_TIMEOUT_S = 86_400.0  # nobody waits for a single answer


class Stopped(Exception):
    """The user stopped a run before its end. The message says how to resume it."""


class RunProgress:
    """Progress of a run: `done` of `total` images, `resumed` of them by an earlier run, `failed` with an error."""

    def __init__(self, total: int, resumed: int, clock: Clock) -> None:
        self.total = total
        self.resumed = resumed
        self.done = resumed
        self.failed = 0
        self._clock = clock
        self._started = clock.now()

    def count(self, result: ImageResult) -> None:
        self.done += 1
        self.failed += result.error is not None

    @property
    def images_per_s(self) -> float | None:
        """The rate of this run, None before its first image."""
        seconds = self._clock.now() - self._started
        return (self.done - self.resumed) / seconds if self.done > self.resumed and seconds > 0 else None

    def __str__(self) -> str:
        rate = self.images_per_s
        counts = f"{self.done:,}/{self.total:,}, {self.failed:,} failed"
        if rate is None:
            return counts
        left_s = round((self.total - self.done) / rate)
        return f"{counts}, {rate:.1f} images/s, {left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02} left"


Display = Callable[[str, RunProgress], AbstractContextManager[Callable[[], None]]]
"""Shows a run with that title until the block ends. The yielded function is called after each image."""


OpenDataPlane = Callable[[], LocalDataPlane]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run: `crops` of each image (1 or 10), at most `capacity` crops in flight."""

    crops: int
    decode: Decode
    limits: ImageLimits
    decoding_threads: int
    capacity: int


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """A loaded model, or ensemble, that gives the `top_k` best classes of many images."""

    data_plane: LocalDataPlane
    model: ServedModel
    options: RunOptions
    top_k: int

    @property
    def provenance(self) -> dict[str, object]:
        """The model's part of a results file: its version or its members, and how images are read."""
        return {"name": self.model.name, **self._versions}

    @property
    def setup(self) -> dict[str, object]:
        """Everything that results depend on. Only a run with the same setup may resume a journal."""
        limits = self.options.limits
        sizes = {"max_image_bytes": limits.max_bytes, "max_image_pixels": limits.max_pixels, "top_k": self.top_k}
        return {"model": self.model.name, **self._versions, **sizes}

    @property
    def _versions(self) -> dict[str, object]:
        members = [{"name": member.name, **_version_of(member)} for member in self.model.members]
        versions = _version_of(self.model.members[0]) if len(members) == 1 else {"members": members}
        return {**versions, "crops": self.options.crops, "decode": self.options.decode}

    @property
    def title(self) -> str:
        """The model and its engine, as text."""
        engine, cards = self.model.engine_info, [member.card for member in self.model.members]
        members = " + ".join(f"{card.name} v{card.version} ({card.weights})" for card in cards)
        return f"{members}, {engine.runtime} {engine.version}, {engine.device}, {engine.precision}"

    async def run(
        self, journal: Journal, images: Sequence[ImageFile], display: Display, stop: asyncio.Event
    ) -> RunProgress:
        """Classify the images that the journal lacks.

        If `stop` is set early, the images in flight are finished and Stopped is raised. Raises a TopfiveError for
        errors not caused by one image, and OfflineError if a result cannot be stored.
        """
        missing, members = journal.missing(images), self.model.members
        progress = RunProgress(len(images), len(images) - len(missing), self.data_plane.clock)
        in_flight = images_in_flight(
            max(member.slots for member in members),
            max(member.batcher.max_batch for member in members),
            self.options,
        )
        with display(self.title, progress) as advance:

            def store(result: ImageResult) -> None:
                journal.append(result)
                progress.count(result)
                advance()

            await classify_all(missing, self.classify, store, in_flight=in_flight, stop=stop)
        if progress.done < progress.total:
            raise Stopped(
                f"stopped: {progress.done:,} of {progress.total:,} are done and kept in {journal.path}; "
                "the same command without --overwrite resumes"
            )
        return progress

    async def classify(self, image: ImageFile) -> ImageResult:
        """The result of one image. It is an error if its file or its pixels are bad, or the engine fails once.

        Raises a TopfiveError if the image is not the cause: the engine fails batch after batch, or the model is
        unloaded.
        """
        try:
            data = await asyncio.to_thread(read_image_file, image.path, self.options.limits)
        except (OSError, ValueError) as error:
            detail = error.strerror if isinstance(error, OSError) else ""
            return _failed(image, _UNREADABLE, detail or str(error))
        except TooLarge as error:
            return _failed(image, error.code, error.detail)
        try:
            options = ClassifyOptions(self.data_plane.clock.now() + _TIMEOUT_S, self.top_k, self.options.crops)
            answer = await self.data_plane.classify(data, self.model.name, options)
        except (BadImage, TooLarge) as error:
            return _failed(image, error.code, error.detail)
        except EngineError as error:
            if failing := [member.name for member in self.model.members if not member.healthy]:
                raise NotReady(f"{' and '.join(failing)} fails on every image; the log has the cause") from error
            return _failed(image, error.code, error.detail)
        return ImageResult(image.name, None, answer.predictions, image.truth)


@asynccontextmanager
async def open_runner(
    name: str, open_data_plane: OpenDataPlane, options: RunOptions, stop: asyncio.Event, top_k: int | None = None
) -> AsyncIterator[ModelRunner]:
    """Load the model or ensemble of that name until the block ends. Without `top_k` it gives five classes.

    Raises a TopfiveError if it cannot be loaded or has fewer classes, and Stopped if `stop` is set while it loads.
    """
    members = member_names(name)
    data_plane = open_data_plane()
    try:
        await _unless(stop, data_plane.repository.start(members))
        model = await data_plane.served(name)
        yield ModelRunner(data_plane, model, options, resolve_top_k(top_k, len(model.labels), model.name))
    finally:
        await data_plane.aclose(0)


def images_in_flight(slots: int, max_batch: int, options: RunOptions) -> int:
    """The number of images to classify at once, so that neither the engine nor a decoding thread is idle.

    It is enough for two batches per slot, of which one runs and one waits, and for one image per decoding thread. It is
    limited so that at most `options.capacity` crops are in flight, and is at least 1.
    """
    busy = ceil(2 * slots * max_batch / options.crops) + options.decoding_threads
    return max(1, min(options.capacity // options.crops, busy))


async def classify_all(
    images: Iterable[ImageFile],
    classify: Callable[[ImageFile], Awaitable[ImageResult]],
    store: Callable[[ImageResult], None],
    *,
    in_flight: int,
    stop: asyncio.Event,
) -> None:
    """Classify images in their order, up to `in_flight` at once, and store each result as it is finished.

    Once `stop` is set, no further image is begun; those in flight are finished. The first error of `classify` or
    `store` cancels the images in flight, and is raised.
    """
    waiting = iter(images)

    async def work() -> None:
        while not stop.is_set() and (image := next(waiting, None)) is not None:
            store(await classify(image))

    await together([work() for _ in range(in_flight)])


def _failed(image: ImageFile, code: str, detail: str) -> ImageResult:
    return ImageResult(image.name, ImageError(code, detail), truth=image.truth)


def _version_of(member: LoadedModel) -> dict[str, object]:
    """The version, weights, runtime and precision of a model, which its answers depend on."""
    return {
        "version": member.artifact.version,
        "weights": _weights(member.artifact.manifest.weights),
        "runtime": member.engine_info.runtime,
        "precision": member.engine_info.precision,
    }


def _weights(weights: WeightRecord) -> str:
    seed = None if weights.seed is None else f"seed {weights.seed}"
    return " ".join(part for part in (weights.source, weights.name, weights.sha256, seed) if part)


async def _unless(stop: asyncio.Event, loading: Awaitable[None]) -> None:
    """Wait until the model is loaded. Raises Stopped as soon as `stop` is set."""
    working, stopped = asyncio.ensure_future(loading), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Stopped("stopped before the model was loaded; nothing was run")
        await working
    finally:
        stopped.cancel()
        working.cancel()
