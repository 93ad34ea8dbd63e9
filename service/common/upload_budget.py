"""Bounds the bytes of all uploads in memory, because a model's admission counts images only after their upload."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.common.errors import Overloaded

_RETRY_S = 1.0


class UploadBudget:
    """One budget for both transports: each request takes the bytes that it uploads, and returns them at its end.

    The requests of one address together take at most half of what the others leave, so that one client cannot take all.
    This does not bound an address with only one request.
    """

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._taken: Counter[str] = Counter()  # bytes of each address that has any

    @contextmanager
    def share(self, address: str | None = None) -> Iterator[Callable[[int], None]]:
        """A function that takes bytes for one request. It raises Overloaded if too few are left, or left to `address`.

        Without an address only the total of all requests is bounded.
        """
        taken = 0

        def take(size_bytes: int) -> None:
            nonlocal taken
            of_address = self._taken[address] if address else 0
            of_others = of_address > taken  # other requests of the address
            if size_bytes > self._left or (of_others and of_address + size_bytes > (self._left + of_address) // 2):
                raise Overloaded(_RETRY_S)
            self._left -= size_bytes
            taken += size_bytes
            if address:
                self._taken[address] += size_bytes

        try:
            yield take
        finally:
            self._left += taken
            if address:
                self._taken[address] -= taken
                if not self._taken[address]:
                    del self._taken[address]
