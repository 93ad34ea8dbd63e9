"""Makes the network inputs of a request: its photo is decoded once, and resized once for each distinct recipe."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from models.catalog import InputSpec
from service.common.clock import Clock
from service.common.tasks import together
from service.common.thread_pool import ThreadPool
from service.common.types import Decode, ImageLimits, Preprocessing, Samples, check_size
from service.preprocessing import decode, transforms
from service.preprocessing.decode import Picture

Read = Callable[[bytes, ImageLimits, int | None], Picture]
Cut = Callable[[InputSpec, Picture, int], Samples]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The crops for one recipe, and what was done for them in how many seconds of a thread."""

    samples: Samples
    preprocessing: Preprocessing
    took_s: float


def joined(prepared: Sequence[Prepared]) -> Preprocessing:
    """What was done for several models: each part once, joined by `+` where they differ."""
    parts = [one.preprocessing for one in prepared]
    return Preprocessing(
        decoder="+".join(dict.fromkeys(part.decoder for part in parts)),
        scale="+".join(dict.fromkeys(part.scale for part in parts)),
        recipe="+".join(dict.fromkeys(part.recipe for part in parts)),
    )


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded photo, and the seconds that a thread took for it."""

    picture: Picture
    decode_s: float


class Decoder:
    """Decodes and cuts on `threads` threads of its own."""

    def __init__(
        self,
        limits: ImageLimits,
        *,
        threads: int,
        clock: Clock,
        decode: Decode = Decode.AUTO,
        read: Read = decode.picture,
        cut: Cut = transforms.crops,
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.decode = decode
        self.read = read
        self.cut = cut
        self.threads = ThreadPool(threads, "decode")

    def photo(self, data: bytes, crops: int, askers: Iterable[str]) -> "Photo":
        """The image in `data`, which each of `askers` may ask for once; use it as a context manager."""
        return Photo(self, data, crops, askers)

    def close(self) -> None:
        """End the threads; no photo may follow."""
        self.threads.close()


class Photo:
    """The image of one request. Nothing is decoded before it is asked for; what is left at the end is cancelled.

    It is decoded once for each reduction that the recipes allow, most often once: an answer must not depend on which
    other models are asked.
    """

    def __init__(self, decoder: Decoder, data: bytes, crops: int, askers: Iterable[str]) -> None:
        self._decoder = decoder
        self._data = data
        self._crops = crops
        self._askers = set(askers)
        self._shared = len(self._askers) > 1
        self._spent_s: list[float] = []
        self._first: asyncio.Future[Prepared] | None = None
        self._opened: Decoded | None = None
        self._others: dict[int, asyncio.Future[Decoded]] = {}
        self._made: dict[object, asyncio.Future[Prepared]] = {}

    def __enter__(self) -> "Photo":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for made in self._made.values():
            made.cancel()
        for other in self._others.values():
            other.cancel()
        self._let_go()

    @property
    def seconds(self) -> float:
        """What threads have spent on it so far."""
        return sum(self._spent_s)

    def check_size(self) -> None:
        """Raise TooLarge where it has more bytes than the limit."""
        check_size(len(self._data), self._decoder.limits)

    async def samples(self, asker: str, specs: Sequence[InputSpec]) -> list[Prepared]:
        """The crops for each spec; raises BadImage or TooLarge."""
        try:
            return await together([self._prepared(spec) for spec in specs])
        finally:
            self.leave(asker)

    def leave(self, asker: str) -> None:
        """`asker` will not ask any more; the pixels are let go after the last one, because they are large."""
        self._askers.discard(asker)
        if not self._askers:
            self._let_go()

    def _let_go(self) -> None:
        self._opened = None
        self._others.clear()

    async def _prepared(self, spec: InputSpec) -> Prepared:
        recipe_of = transforms.geometry(spec)
        if (made := self._made.get(recipe_of)) is None:
            if self._first is None:
                made = self._first = self._decoder.threads.run(self._decode_and_cut, spec)
            else:
                made = asyncio.get_running_loop().create_task(self._cut_later(self._first, spec))
            self._made[recipe_of] = made
        # a row that leaves must not take it from the others; alone, the turn of the loop that a shield takes is saved
        return await (asyncio.shield(made) if self._shared else made)

    async def _cut_later(self, first: asyncio.Future[Prepared], spec: InputSpec) -> Prepared:
        """Once the photo is decoded, on a thread of its own."""
        await asyncio.shield(first)
        decoded = self._opened
        assert decoded is not None, "an asker that waits has not left"
        enough = transforms.enough(spec, self._decoder.decode)
        if (by := decoded.picture.reduction_for(enough)) != decoded.picture.reduction:
            if by not in self._others:
                self._others[by] = self._decoder.threads.run(self._timed_decode, enough)
            decoded = await asyncio.shield(self._others[by])
        return await self._decoder.threads.run(self._timed_cut, spec, decoded)

    def _decode_and_cut(self, spec: InputSpec) -> Prepared:
        """On a thread."""
        self._opened = opened = self._timed_decode(transforms.enough(spec, self._decoder.decode))
        return self._timed_cut(spec, opened)

    def _timed_decode(self, enough: int | None) -> Decoded:
        """On a thread."""
        began = self._decoder.clock.now()
        picture = self._decoder.read(self._data, self._decoder.limits, enough)
        decode_s = self._decoder.clock.now() - began
        self._spent_s.append(decode_s)
        return Decoded(picture, decode_s)

    def _timed_cut(self, spec: InputSpec, decoded: Decoded) -> Prepared:
        """On a thread."""
        began = self._decoder.clock.now()
        picture = decoded.picture
        samples = self._decoder.cut(spec, picture, self._crops)
        cut_s = self._decoder.clock.now() - began
        self._spent_s.append(cut_s)
        done = Preprocessing(picture.decoder, f"1/{picture.reduction}", transforms.described(spec))
        return Prepared(samples, done, decoded.decode_s + cut_s)
