"""Makes the network inputs of a request: its photo is decoded once, and resized once for each distinct recipe."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from models.catalog import InputSpec
from service import image, recipe
from service.clock import Clock
from service.together import together
from service.types import ImageLimits, Pixels, Samples

Decode = Callable[[bytes, ImageLimits], Pixels]
Cut = Callable[[InputSpec, Pixels, int], Samples]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The crops for one recipe, and the seconds that a thread took to make them."""

    samples: Samples
    cut_s: float


class Decoder:
    """Decodes and cuts on `threads` threads of its own."""

    def __init__(
        self,
        limits: ImageLimits,
        *,
        threads: int,
        clock: Clock,
        decode: Decode = image.decode,
        cut: Cut = recipe.crops,
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.decode = decode
        self.cut = cut
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def photo(self, data: bytes, crops: int, askers: Iterable[str]) -> "Photo":
        """The image in `data`, which each of `askers` may ask for once; use it as a context manager."""
        return Photo(self, data, crops, askers)

    def close(self) -> None:
        """End the threads; no photo may follow."""
        self.threads.shutdown(wait=False, cancel_futures=True)


class Photo:
    """The image of one request. Nothing is decoded before it is asked for; what is left at the end is cancelled."""

    def __init__(self, decoder: Decoder, data: bytes, crops: int, askers: Iterable[str]) -> None:
        self._decoder = decoder
        self._data = data
        self._crops = crops
        self._askers = set(askers)
        self._shared = len(self._askers) > 1
        self._pixels: Pixels | None = None
        self._decode_s = 0.0
        self._first: asyncio.Future[Prepared] | None = None
        self._made: dict[object, asyncio.Future[Prepared]] = {}

    def __enter__(self) -> "Photo":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pixels = None
        for made in self._made.values():
            made.cancel()

    @property
    def seconds(self) -> float:
        """What threads have spent on it so far."""
        ended = [made for made in self._made.values() if made.done() and not made.cancelled()]
        return self._decode_s + sum(made.result().cut_s for made in ended if made.exception() is None)

    def check_size(self) -> None:
        """Raise TooLarge where it has more bytes than the limit."""
        image.check_size(len(self._data), self._decoder.limits)

    async def samples(self, asker: str, specs: Sequence[InputSpec]) -> tuple[list[Samples], float]:
        """The crops for each spec, and the seconds of a thread until the last of them; raises BadImage or TooLarge."""
        try:
            prepared = await together([self._prepared(spec) for spec in specs])
        finally:
            self.leave(asker)
        return [one.samples for one in prepared], self._decode_s + max(one.cut_s for one in prepared)

    def leave(self, asker: str) -> None:
        """`asker` will not ask any more; the pixels are let go after the last one, because they are large."""
        self._askers.discard(asker)
        if not self._askers:
            self._pixels = None

    async def _prepared(self, spec: InputSpec) -> Prepared:
        recipe_of = recipe.geometry(spec)
        if (made := self._made.get(recipe_of)) is None:
            loop = asyncio.get_running_loop()
            if self._first is None:
                made = self._first = loop.run_in_executor(self._decoder.threads, self._decode_and_cut, spec)
            else:
                made = loop.create_task(self._cut_later(self._first, spec))
            self._made[recipe_of] = made
        # a row that leaves must not take it from the others; alone, the turn of the loop that a shield takes is saved
        return await (asyncio.shield(made) if self._shared else made)

    async def _cut_later(self, first: asyncio.Future[Prepared], spec: InputSpec) -> Prepared:
        """Once the photo is decoded, on a thread of its own."""
        await asyncio.shield(first)
        assert self._pixels is not None, "an asker that waits has not left"
        return await asyncio.get_running_loop().run_in_executor(
            self._decoder.threads, self._timed_cut, spec, self._pixels
        )

    def _decode_and_cut(self, spec: InputSpec) -> Prepared:
        """On a thread."""
        began = self._decoder.clock.now()
        self._pixels = pixels = self._decoder.decode(self._data, self._decoder.limits)
        self._decode_s = self._decoder.clock.now() - began
        return self._timed_cut(spec, pixels)

    def _timed_cut(self, spec: InputSpec, pixels: Pixels) -> Prepared:
        """On a thread."""
        began = self._decoder.clock.now()
        samples = self._decoder.cut(spec, pixels, self._crops)
        return Prepared(samples, self._decoder.clock.now() - began)
