"""What the classifier asks of the photo of a request, wherever that is decoded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeVar

from models.catalog import InputSpec
from service.common.types import Preprocessing, Samples

D_contra = TypeVar("D_contra", contravariant=True)


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


class Photo(Protocol):
    """The image of one request; what is left of its making at the end of the block is given up."""

    def __enter__(self) -> "Photo": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def seconds(self) -> float:
        """What threads have spent on it so far."""

    def check_size(self) -> None:
        """Raise TooLarge where it has more bytes than the limit."""

    async def samples(self, asker: str, specs: Sequence[InputSpec]) -> list[Prepared]:
        """The crops for each spec; raises BadImage or TooLarge."""

    def leave(self, asker: str) -> None:
        """`asker` will not ask any more."""


class Photos(Protocol[D_contra]):
    """Makes photos of what a request brought: its bytes, or a word for where they are."""

    def photo(self, data: D_contra, crops: int, askers: Iterable[str]) -> Photo:
        """The image in `data`, which each of `askers` may ask for once; use it as a context manager."""

    def close(self) -> None:
        """Give back what decodes; no photo may follow."""
