"""A photo that is decoded in a front process: its crops are asked for over the link, once for each distinct recipe."""

import asyncio
from collections.abc import Iterable, Sequence
from types import TracebackType

from models.catalog import InputSpec
from service.common.types import ImageLimits, Samples
from service.front.link import Link
from service.front.messages import Made, NotMade, Wanted, packed_specs
from service.preprocessing import decode, transforms
from service.preprocessing.interface import Prepared


class Sent:
    """Stands for the image of one call, whose bytes are in the front behind `link`."""

    def __init__(self, call: int, size_bytes: int, link: Link) -> None:
        self.size_bytes = size_bytes
        self.spent_s = 0.0
        self._call = call
        self._link = link
        self._cuts: list[asyncio.Future[list[Prepared]]] = []

    def want(self, specs: Sequence[InputSpec], *, last: bool) -> asyncio.Future[list[Prepared]]:
        """Ask for the crops for these specs; after the `last` question there is no other one."""
        crops: asyncio.Future[list[Prepared]] = asyncio.get_running_loop().create_future()
        self._link.send(Wanted(self._call, len(self._cuts), packed_specs(tuple(specs)), last))
        self._cuts.append(crops)
        return crops

    def made(self, made: Made, samples: list[Samples]) -> None:
        """They are there."""
        self.spent_s = made.spent_s
        if not (crops := self._cuts[made.cut]).done():  # else nobody waits for them any more
            crops.set_result(
                [Prepared(one, crop.preprocessing, crop.took_s) for one, crop in zip(samples, made.crops, strict=True)]
            )

    def not_made(self, failure: NotMade) -> None:
        """They will not come."""
        if not (crops := self._cuts[failure.cut]).done():
            crops.set_exception(failure.error)

    def close(self) -> None:
        """Nobody waits for crops any more."""
        for crops in self._cuts:
            if not crops.cancel() and not crops.cancelled():
                crops.exception()  # its askers may have left before they saw it
        self._cuts.clear()


class FrontPhotos:
    """Photos of what fronts were sent, within these limits."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits

    def photo(self, data: Sent, crops: int, askers: Iterable[str]) -> "FrontPhoto":
        """The image that `data` stands for; the front knows how many `crops` were asked for."""
        del crops
        return FrontPhoto(data, askers, self._limits)

    def close(self) -> None:
        """Nothing is held here."""


class FrontPhoto:
    """`service.preprocessing.interface.Photo` of an image in a front."""

    def __init__(self, sent: Sent, askers: Iterable[str], limits: ImageLimits) -> None:
        self._sent = sent
        self._askers = set(askers)
        self._shared = len(self._askers) > 1
        self._limits = limits
        self._made: dict[object, tuple[asyncio.Future[list[Prepared]], int]] = {}

    def __enter__(self) -> "FrontPhoto":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._made.clear()
        self._sent.close()

    @property
    def seconds(self) -> float:
        """What the front's threads had spent on it when they last said so."""
        return self._sent.spent_s

    def check_size(self) -> None:
        """Raise TooLarge where it has more bytes than the limit."""
        decode.check_size(self._sent.size_bytes, self._limits)

    async def samples(self, asker: str, specs: Sequence[InputSpec]) -> list[Prepared]:
        """The crops for each spec; raises BadImage or TooLarge."""
        try:
            self._want(specs, last=self._askers == {asker})
            return [await self._crops(spec) for spec in specs]
        finally:
            self.leave(asker)

    def leave(self, asker: str) -> None:
        """`asker` will not ask any more."""
        self._askers.discard(asker)

    def _want(self, specs: Sequence[InputSpec], *, last: bool) -> None:
        new = {transforms.geometry(spec): spec for spec in specs if transforms.geometry(spec) not in self._made}
        if new:
            crops = self._sent.want(tuple(new.values()), last=last)
            self._made.update({geometry: (crops, place) for place, geometry in enumerate(new)})

    async def _crops(self, spec: InputSpec) -> Prepared:
        crops, place = self._made[transforms.geometry(spec)]
        # a row that leaves must not take them from the others
        return (await (asyncio.shield(crops) if self._shared else crops))[place]
