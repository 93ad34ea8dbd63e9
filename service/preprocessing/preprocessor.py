"""Makes the samples of a request: decodes its image once, and resizes it once for each distinct transform."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from models.catalog import InputSpec
from service.common.clock import Clock
from service.common.errors import NotReady
from service.common.thread_pool import ThreadPool
from service.common.types import Decode, ImageLimits, Preprocessing, Samples
from service.preprocessing.decode import DecodedImage, decode_image
from service.preprocessing.transforms import geometry, make_samples, needed_side

DecodeImage = Callable[[bytes, ImageLimits, int | None], DecodedImage]
MakeSamples = Callable[[InputSpec, DecodedImage, int], Samples]


@dataclass(frozen=True, slots=True)
class PreparedSamples:
    """The samples of an image for one transform, one for each crop, and how they were made.

    `took_s` is the sum of the seconds of decoding and of resizing and cropping. Several transforms may share one
    decoding; each of them counts it.
    """

    samples: Samples
    preprocessing: Preprocessing
    took_s: float


@dataclass(frozen=True, slots=True)
class _Timed:
    """A decoded image, and the seconds of decoding."""

    image: DecodedImage
    decode_s: float


class Preprocessor:
    """Decodes, resizes and crops on `threads` threads of its own."""

    def __init__(
        self,
        limits: ImageLimits,
        *,
        threads: int,
        clock: Clock,
        mode: Decode = Decode.AUTO,
        decode: DecodeImage = decode_image,
        crop: MakeSamples = make_samples,
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.mode = mode
        self.decode = decode
        self.crop = crop
        self.threads = ThreadPool(threads, "decode")

    def check_ready(self) -> None:
        """Raise NotReady if a decode is stuck."""
        if stuck := self.threads.stuck():
            raise NotReady(
                f"{len(stuck)} of {self.threads.count} threads that decode images have not returned from one image for "
                f"{max(stuck.values()):.0f} s"
            )

    @property
    def alive(self) -> bool:
        """Whether any thread can still decode."""
        return len(self.threads.stuck()) < self.threads.count

    def gauges(self) -> list[tuple[str, dict[str, float]]]:
        """The seconds of each stuck decode, by thread."""
        return [(name, {"stuck_decode_seconds": age}) for name, age in self.threads.stuck().items()]

    def close(self) -> None:
        """End the threads. No further image may follow."""
        self.threads.close()


class RequestImage:
    """The image of one request, to be closed. Each of `users`, named by model, asks once for its samples.

    Nothing is decoded before a user asks. The image is decoded
    once for each reduction that the transforms allow, usually once: an answer must not depend on which other models are
    asked.
    """

    def __init__(self, preprocessor: Preprocessor, data: bytes, crops: int, users: Iterable[str]) -> None:
        self._preprocessor = preprocessor
        self._data = data
        self._crops = crops
        self._users = set(users)
        self._shared = len(self._users) > 1
        self._first: asyncio.Future[PreparedSamples] | None = None
        self._decoded: _Timed | None = None
        self._decoded_again: dict[int, asyncio.Future[_Timed]] = {}
        self._made: dict[object, asyncio.Future[PreparedSamples]] = {}
        self._spent_s: list[float] = []

    def close(self) -> None:
        """Cancel the remaining work and let the bytes go."""
        futures: list[asyncio.Future[Any]] = [*self._made.values(), *self._decoded_again.values()]
        for future in futures:
            if not future.cancel() and not future.cancelled():
                future.exception()  # nobody may have asked for the result of those that ended
        self._data = b""  # a job that waits for a thread keeps this object
        self._decoded = None
        self._decoded_again.clear()

    @property
    def seconds(self) -> float:
        """Seconds that threads have spent on the image so far."""
        return sum(self._spent_s)

    async def samples(self, user: str, specs: Sequence[InputSpec]) -> list[PreparedSamples]:
        """The samples for each spec. Raises BadImage or TooLarge."""
        try:
            made = [self._begun(spec) for spec in specs]
            # a user that leaves must not cancel them for the others; for one user, a shield would cost a loop turn
            return [await (asyncio.shield(one) if self._shared else one) for one in made]
        finally:
            self.leave(user)

    def leave(self, user: str) -> None:
        """Record that the user needs no more samples. After the last user the pixels, which are large, are released."""
        self._users.discard(user)
        if not self._users:
            self._decoded = None
            self._decoded_again.clear()

    def _begun(self, spec: InputSpec) -> asyncio.Future[PreparedSamples]:
        key = geometry(spec)
        if (made := self._made.get(key)) is None:
            if self._first is None:
                made = self._first = self._preprocessor.threads.run(self._decode_and_crop, spec)
            else:
                made = asyncio.get_running_loop().create_task(self._crop_later(self._first, spec))
            self._made[key] = made
        return made

    async def _crop_later(self, first: asyncio.Future[PreparedSamples], spec: InputSpec) -> PreparedSamples:
        await asyncio.shield(first)
        decoded = self._decoded
        assert decoded is not None, "a user that waits has not left"
        needed = needed_side(spec, self._preprocessor.mode)
        if (by := decoded.image.reduction_for(needed)) != decoded.image.reduction:
            if by not in self._decoded_again:
                self._decoded_again[by] = self._preprocessor.threads.run(self._decode, needed)
            decoded = await asyncio.shield(self._decoded_again[by])
        return await self._preprocessor.threads.run(self._crop, spec, decoded)

    def _decode_and_crop(self, spec: InputSpec) -> PreparedSamples:
        """On a thread."""
        self._decoded = decoded = self._decode(needed_side(spec, self._preprocessor.mode))
        return self._crop(spec, decoded)

    def _decode(self, needed: int | None) -> _Timed:
        """On a thread."""
        began = self._preprocessor.clock.now()
        image = self._preprocessor.decode(self._data, self._preprocessor.limits, needed)
        decode_s = self._preprocessor.clock.now() - began
        self._spent_s.append(decode_s)
        return _Timed(image, decode_s)

    def _crop(self, spec: InputSpec, decoded: _Timed) -> PreparedSamples:
        """On a thread."""
        began = self._preprocessor.clock.now()
        samples = self._preprocessor.crop(spec, decoded.image, self._crops)
        crop_s = self._preprocessor.clock.now() - began
        self._spent_s.append(crop_s)
        recipe = f"resize {spec.resize} {spec.interpolation}, crop {spec.crop}"
        done = Preprocessing(decoded.image.decoder, f"1/{decoded.image.reduction}", recipe)
        return PreparedSamples(samples, done, decoded.decode_s + crop_s)


def joined(prepared: Sequence[PreparedSamples]) -> Preprocessing:
    """The preprocessing of several models as one: differing values are joined by `+`."""
    parts = [one.preprocessing for one in prepared]
    return Preprocessing(
        decoder="+".join(dict.fromkeys(part.decoder for part in parts)),
        scale="+".join(dict.fromkeys(part.scale for part in parts)),
        recipe="+".join(dict.fromkeys(part.recipe for part in parts)),
    )
