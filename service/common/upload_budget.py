"""Limits the bytes of all request bodies in memory, before any model admits them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.common.errors import Overloaded

_RETRY_S = 1.0


class UploadBudget:
    """The bytes of request bodies that may be in memory at once, shared by REST and gRPC."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that reserves bytes until the block ends. It raises Overloaded if too few are left."""
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
