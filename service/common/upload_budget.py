"""Bounds the bytes of all uploads in memory, because a model's admission counts images only after their upload."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from service.common.errors import Overloaded

_RETRY_S = 1.0


class UploadBudget:
    """One budget for both transports: each request takes the bytes that it uploads, and returns them at its end.

    The requests of one address together take at most half of what the others leave, so that one client cannot take all.
    This does not bound an address with only one request.
    """

    def __init__(self, max_bytes: int) -> None:
        self.left = max_bytes
        self.taken: Counter[str] = Counter()
        """Bytes of each address that has any."""

    def share(self, address: str | None = None) -> "UploadShare":
        """The share of one request. Without an address only the total of all requests is bounded."""
        return UploadShare(self, address)


@dataclass(slots=True)
class UploadShare:
    """A context that gives a function which takes bytes, and returns the bytes at its end.

    The function raises Overloaded if too few are left, or left to the address.
    """

    budget: UploadBudget
    address: str | None
    _taken: int = field(default=0, init=False)

    def __enter__(self) -> Callable[[int], None]:
        return self._take

    def __exit__(self, *_exception: object) -> None:
        self.budget.left += self._taken
        if self.address:
            self.budget.taken[self.address] -= self._taken
            if not self.budget.taken[self.address]:
                del self.budget.taken[self.address]

    def _take(self, size_bytes: int) -> None:
        budget, address = self.budget, self.address
        of_address = budget.taken[address] if address else 0
        of_others = of_address > self._taken  # other requests of the address
        if size_bytes > budget.left or (of_others and of_address + size_bytes > (budget.left + of_address) // 2):
            raise Overloaded(_RETRY_S)
        budget.left -= size_bytes
        self._taken += size_bytes
        if address:
            budget.taken[address] += size_bytes
