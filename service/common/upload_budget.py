"""Bounds the bytes of all images that are in memory before any model can count them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.common.errors import Overloaded

_RETRY_S = 1.0


class UploadBudget:
    """Shared by both transports: each request takes the bytes that it brings, and gives them back at its end."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that takes bytes for one request; it raises Overloaded where they are not left."""
        taken = 0

        def take(size_bytes: int) -> None:
            nonlocal taken
            if size_bytes > self._left:
                raise Overloaded(_RETRY_S)
            self._left -= size_bytes
            taken += size_bytes

        try:
            yield take
        finally:
            self._left += taken
