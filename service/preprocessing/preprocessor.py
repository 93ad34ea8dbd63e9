"""Makes the samples of a request: decodes its image once, and resizes it once for each distinct transform."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from models.catalog import InputSpec, Interpolation, ResizeMode
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

    `took_s` has the seconds of each step: decoding, and resizing and cropping. Several transforms may share one
    decoding; each of them has it.
    """

    samples: Samples
    preprocessing: Preprocessing
    took_s: Mapping[str, float]


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


@dataclass(slots=True, eq=False)
class RequestImage:
    """The image of one request, to be closed. Models ask for their samples in turn.

    Nothing is decoded before one asks. Then one job on a thread decodes the image and makes its samples and those of
    the `expected` transforms, so that no pixels outlive the job. The image is decoded once for each reduction that the
    transforms allow, usually once: an answer must not depend on which other models are asked.
    """

    preprocessor: Preprocessor
    data: bytes
    crops: int
    expected: Sequence[InputSpec] = ()
    seconds: float = field(default=0.0, init=False)
    """Seconds that threads have spent on the image so far."""
    _jobs: dict[object, asyncio.Future[dict[object, PreparedSamples]]] = field(default_factory=dict, init=False)

    def close(self) -> None:
        """Let the bytes go."""
        for job in self._jobs.values():
            if not job.cancel() and not job.cancelled():
                job.exception()  # a caller that left has not asked for it
        self.data = b""  # a job that waits for a thread keeps this object

    async def samples(self, specs: Sequence[InputSpec]) -> list[PreparedSamples]:
        """The samples for each spec. Raises BadImage or TooLarge."""
        missing = {key: spec for spec in specs if (key := geometry(spec)) not in self._jobs}
        if missing:
            missing |= {key: spec for spec in self.expected if (key := geometry(spec)) not in self._jobs}
            self._jobs.update(dict.fromkeys(missing, self.preprocessor.threads.run(self._make, missing)))
        return [(await self._jobs[key])[key] for key in map(geometry, specs)]

    def _make(self, specs: Mapping[object, InputSpec]) -> dict[object, PreparedSamples]:
        """On a thread."""
        decodings: list[_Timed] = []
        made: dict[object, PreparedSamples] = {}
        for key, spec in specs.items():
            needed = needed_side(spec, self.preprocessor.mode)
            fitting = (one for one in decodings if one.image.reduction_for(needed) == one.image.reduction)
            if (decoded := next(fitting, None)) is None:
                decodings.append(decoded := self._decode(needed))
            made[key] = self._crop(spec, decoded)
        return made

    def _decode(self, needed: int | None) -> _Timed:
        """On a thread."""
        began = self.preprocessor.clock.now()
        image = self.preprocessor.decode(self.data, self.preprocessor.limits, needed)
        decode_s = self.preprocessor.clock.now() - began
        self.seconds += decode_s
        return _Timed(image, decode_s)

    def _crop(self, spec: InputSpec, decoded: _Timed) -> PreparedSamples:
        """On a thread."""
        began = self.preprocessor.clock.now()
        samples = self.preprocessor.crop(spec, decoded.image, self.crops)
        crop_s = self.preprocessor.clock.now() - began
        self.seconds += crop_s
        done = _described(decoded.image.decoder, decoded.image.reduction, *geometry(spec))
        return PreparedSamples(samples, done, {done.scale: decoded.decode_s, done.recipe: crop_s})


@cache
def _described(
    decoder: str, reduction: int, resize: int, crop: int, interpolation: Interpolation, fit: ResizeMode
) -> Preprocessing:
    size = f"{resize}x{resize}" if fit is ResizeMode.SQUASH else str(resize)
    return Preprocessing(decoder, f"1/{reduction}", f"resize {size} {interpolation}, crop {crop}")


def joined(prepared: Sequence[PreparedSamples]) -> Preprocessing:
    """The preprocessing of several models as one: differing values are joined by `+`."""
    parts = [one.preprocessing for one in prepared]
    return Preprocessing(
        decoder="+".join(dict.fromkeys(part.decoder for part in parts)),
        scale="+".join(dict.fromkeys(part.scale for part in parts)),
        recipe="+".join(dict.fromkeys(part.recipe for part in parts)),
    )
