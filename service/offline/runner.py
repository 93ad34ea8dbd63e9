"""Runs many images through a model in this process, some of them at once, and stores each result in a journal."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from math import ceil
from time import monotonic

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

Display = Callable[[str, int, int], AbstractContextManager[Callable[[], None]]]
"""Shows a run until the block ends: its title, its images, and how many of them an earlier run has done.

The yielded function is called after each image.
"""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run: `crops` of each image (1 or 10), at most `capacity` crops in flight."""

    crops: int
    decode: Decode
    limits: ImageLimits
    decoding_threads: int
    capacity: int
    open_data_plane: Callable[[], LocalDataPlane]
    display: Display


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
        members = [{"name": member.name, **_version_of(member)} for member in self.model.members]
        versions = members[0] if len(members) == 1 else {"name": self.model.name, "members": members}
        return {**versions, "crops": self.options.crops, "decode": self.options.decode}

    @property
    def setup(self) -> dict[str, object]:
        """Everything that results depend on. Only a run with the same setup may resume a journal."""
        limits = self.options.limits
        sizes = {"max_image_bytes": limits.max_bytes, "max_image_pixels": limits.max_pixels, "top_k": self.top_k}
        return {**self.provenance, **sizes}

    @property
    def _title(self) -> str:
        engine, cards = self.model.engine_info, [member.card for member in self.model.members]
        members = " + ".join(f"{card.name} v{card.version} ({card.weights})" for card in cards)
        return f"{members}, {engine.runtime} {engine.version}, {engine.device}, {engine.precision}"

    @property
    def _in_flight(self) -> int:
        """The number of images to classify at once, so that neither the engine nor a decoding thread is idle.

        Two batches per slot, of which one runs and one waits, and one image per decoding thread; no more crops than the
        capacity.
        """
        options = self.options
        slots = max(member.slots for member in self.model.members)
        most = max(member.batcher.max_batch for member in self.model.members)
        busy = ceil(2 * slots * most / options.crops) + options.decoding_threads
        return max(1, min(options.capacity // options.crops, busy))

    async def run(self, journal: Journal, images: Sequence[ImageFile]) -> float | None:
        """Classify the images that the journal lacks. Returns the images per second, None if it lacks none.

        Raises a TopfiveError for errors not caused by one image, and OfflineError if a result cannot be stored.
        """
        missing, started = journal.missing(images), monotonic()
        with self.options.display(self._title, len(images), len(images) - len(missing)) as advance:

            def store(result: ImageResult) -> None:
                journal.append(result)
                advance()

            await classify_all(missing, self.classify, store, in_flight=self._in_flight)
        return len(missing) / (monotonic() - started) if missing else None

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
async def open_runner(name: str, options: RunOptions, top_k: int | None = None) -> AsyncIterator[ModelRunner]:
    """Load the model or ensemble of that name until the block ends. Without `top_k` it gives five classes.

    Raises a TopfiveError if it cannot be loaded or has fewer classes.
    """
    members = member_names(name)
    data_plane = options.open_data_plane()
    try:
        await data_plane.repository.start(members)
        model = await data_plane.served(name)
        yield ModelRunner(data_plane, model, options, resolve_top_k(top_k, len(model.labels), model.name))
    finally:
        await data_plane.aclose(0)


async def classify_all(
    images: Iterable[ImageFile],
    classify: Callable[[ImageFile], Awaitable[ImageResult]],
    store: Callable[[ImageResult], None],
    *,
    in_flight: int,
) -> None:
    """Classify images in their order, up to `in_flight` at once, and store each result as it is finished.

    The first error of `classify` or `store` cancels the images in flight, and is raised.
    """
    waiting = iter(images)

    async def work() -> None:
        for image in waiting:
            store(await classify(image))

    await together([work() for _ in range(in_flight)])


def _failed(image: ImageFile, code: str, detail: str) -> ImageResult:
    return ImageResult(image.name, ImageError(code, detail), truth=image.truth)


def _version_of(member: LoadedModel) -> dict[str, object]:
    """The version, weights, runtime and precision of a model, which its answers depend on."""
    weights = member.artifact.manifest.weights
    seed = None if weights.seed is None else f"seed {weights.seed}"
    return {
        "version": member.artifact.version,
        "weights": " ".join(part for part in (weights.source, weights.name, weights.sha256, seed) if part),
        "runtime": member.engine_info.runtime,
        "precision": member.engine_info.precision,
    }
