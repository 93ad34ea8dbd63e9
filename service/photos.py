"""What the classifier asks of the photo of a request, wherever that is decoded."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Protocol, TypeVar

from models.catalog import InputSpec
from service.types import Samples

D_contra = TypeVar("D_contra", contravariant=True)


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

    async def samples(self, asker: str, specs: Sequence[InputSpec]) -> tuple[list[Samples], float]:
        """The crops for each spec, and the seconds of a thread until the last of them; raises BadImage or TooLarge."""

    def leave(self, asker: str) -> None:
        """`asker` will not ask any more."""


class Photos(Protocol[D_contra]):
    """Makes photos of what a request brought: its bytes, or a word for where they are."""

    def photo(self, data: D_contra, crops: int, askers: Iterable[str]) -> Photo:
        """The image in `data`, which each of `askers` may ask for once; use it as a context manager."""

    def close(self) -> None:
        """Give back what decodes; no photo may follow."""
