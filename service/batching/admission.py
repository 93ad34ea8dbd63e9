"""The places of one model: who is let in before anything is decoded, and what became of the bound on their time."""

from service.batching.cost_model import Pacer
from service.batching.slo import Place, Slo, SloUnattainable
from service.common.clock import Clock
from service.common.errors import BadRequest, Overloaded
from service.common.metrics import BatchMetrics
from service.common.types import BatchLimits, ItemOutcome, SloOutcome


class Admission:
    """At most `capacity` places at once, and with an `slo` no more than answers can be given for in time."""

    def __init__(
        self, limits: BatchLimits, slo: Slo | None, *, pacer: Pacer, clock: Clock, metrics: BatchMetrics
    ) -> None:
        self._limits = limits
        self._slo = slo
        self._pacer = pacer
        self._clock = clock
        self._metrics = metrics
        self.admitted = 0
        """Places taken: by images being decoded, waiting or running."""

    def take(self, count: int, max_batch: int) -> Place:
        """So many places, all or none. Raises Overloaded, or BadRequest where they never can be free at once."""
        if count > self._limits.capacity:
            raise BadRequest(f"{count} crops fit in no --capacity of {self._limits.capacity}; raise it or send 1")
        try:
            place = self._place(count, max_batch)
        except Overloaded as error:
            for _ in range(count):
                self._metrics.ended(ItemOutcome.OVERLOADED)
            if isinstance(error, SloUnattainable):
                self.refused(count)
            raise
        self.admitted += count
        return place

    def give_back(self, place: Place) -> None:
        """Its request has ended, however it did."""
        self.admitted -= place.count
        for _ in range(place.count):
            self._pacer.released(self._clock.now())

    def answered(self, place: Place) -> None:
        """All answers of the request are there."""
        if self._slo is not None:
            within = self._slo.answered(self._clock.now(), place)
            self._metrics.attained(SloOutcome.WITHIN if within else SloOutcome.OVER, place.count)

    def refused(self, count: int) -> None:
        """So many items were refused because of the bound."""
        self._metrics.attained(SloOutcome.REFUSED, count)

    def _place(self, count: int, max_batch: int) -> Place:
        now = self._clock.now()
        if self.admitted + count > self._limits.capacity:
            raise Overloaded(self._pacer.retry_after_s(self.admitted, max_batch, self._limits.slots))
        if self._slo is None:
            return Place(now, count, self.admitted + count)
        return self._slo.place(now, self.admitted, count)
