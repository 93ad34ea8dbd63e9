"""The requests with images that gRPC has accepted and not answered yet, of all its services."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from service.common.clock import Clock
from service.common.errors import ShuttingDown
from service.common.metrics import Metrics
from service.common.types import ImageLimits, check_size
from service.common.upload_budget import UploadBudget
from service.rpc.errors import Context


class RequestsInFlight:
    """Counts requests and their bytes, and gives them deadlines. After `close` it refuses them."""

    def __init__(
        self, *, limits: ImageLimits, budget: UploadBudget, timeout_s: float, clock: Clock, metrics: Metrics
    ) -> None:
        self._limits = limits
        self.metrics = metrics
        self._budget = budget
        self._timeout_s = timeout_s
        self._clock = clock
        self._owed = 0
        self._closing = False

    @property
    def owed(self) -> int:
        """Requests accepted and not answered yet."""
        return self._owed

    def close(self) -> None:
        """Refuse every request from now on; those accepted are still answered."""
        self._closing = True

    @contextmanager
    def accepted(self, size_bytes: int) -> Iterator[None]:
        """Count a request and the bytes of its images. Counts and raises ShuttingDown, TooLarge or Overloaded."""
        with self._budget.share() as take:
            with self.metrics.refusals():
                if self._closing:
                    raise ShuttingDown
                check_size(size_bytes, self._limits)
                take(size_bytes)
            self._owed += 1
            try:
                yield
            finally:
                self._owed -= 1

    def deadline(self, context: Context, timeout_s: float = math.inf) -> float:
        """The caller's deadline, at most `timeout_s` and the server's timeout from now."""
        left_s = context.time_remaining()
        return self._clock.now() + min(self._timeout_s, timeout_s, math.inf if left_s is None else left_s)
