"""Admits or refuses images before they are decoded, because decoding is where memory grows."""

from collections import deque
from itertools import repeat

from service.batching.cost_model import CostModel
from service.batching.queue import Admission
from service.batching.slo import LatencyBound
from service.common.clock import Clock
from service.common.errors import BadRequest, Overloaded
from service.common.metrics import BatchMetrics
from service.common.types import BatchLimits, ItemOutcome

_LATELY_S, _FEWEST, _MOST = 10.0, 8, 64  # images from which the drain rate is measured
_FIRST_RETRY_S = 1.0  # before any batch has been measured


class AdmissionControl:
    """Admits at most `limits.capacity` images of one model at once; none that would queue over `limits.max_queue_s`.

    With a `bound`, it also refuses images whose response would miss the latency bound.
    """

    def __init__(
        self, limits: BatchLimits, cost: CostModel, bound: LatencyBound | None, *, clock: Clock, metrics: BatchMetrics
    ) -> None:
        self._limits = limits
        self._cost = cost
        self._bound = bound
        self._clock = clock
        self._metrics = metrics
        self._released: deque[float] = deque(maxlen=_MOST)  # in time that is not idle: a pause is no drain rate
        self._idle_since, self._idle_s = clock.now(), 0.0
        self.admitted = 0
        """Images in flight: they are decoded, wait, or run now."""

    def admit(self, count: int, max_batch: int) -> Admission:
        """Admit `count` images, all or none. Raises the errors of `check`."""
        admission = self.check(count, max_batch)
        if not self.admitted:
            self._idle_s += admission.at - self._idle_since
        self.admitted = admission.in_flight
        return admission

    def check(self, count: int, max_batch: int) -> Admission:
        """Return the admission that `count` images would get now. `max_batch` serves to estimate times.

        Raises BadRequest if `count` is above the capacity, Overloaded if the free capacity is smaller than `count` or
        the queue is too long, and its subclass SloUnattainable if the response would miss the latency bound.
        """
        if count > self._limits.capacity:
            raise BadRequest(f"{count} inputs exceed --capacity of {self._limits.capacity}; raise it, or send fewer")
        now, in_flight = self._clock.now(), self.admitted + count
        try:
            if in_flight > self._limits.capacity:
                raise Overloaded(self._retry_after_s(max_batch))
            if self.admitted > self._limits.slots * max_batch and self._limits.max_queue_s:
                queue_s = self._retry_after_s(max_batch)
                if queue_s > self._limits.max_queue_s:
                    raise Overloaded(queue_s - self._limits.max_queue_s, "the queue is too long")
            admission = Admission(now, count, in_flight)
            return admission if self._bound is None else self._bound.admit(admission)
        except Overloaded:
            for _ in range(count):
                self._metrics.item_ended(ItemOutcome.OVERLOADED)
            raise

    def release(self, admission: Admission) -> None:
        """End the admission of a request, whatever its outcome."""
        self.admitted -= admission.count
        now = self._clock.now()
        self._released.extend(repeat(now - self._idle_s, admission.count))
        if not self.admitted:
            self._idle_since = now

    def _retry_after_s(self, max_batch: int) -> float:
        """Estimate the seconds until the images in flight have ended.

        The larger of two estimates: the run times of their batches in all slots, and the recent drain rate.
        """
        drained_s = self._drained_s()
        batch_s = self._cost.predict(min(self.admitted, max_batch))
        if batch_s is None:
            return drained_s or _FIRST_RETRY_S
        return max(batch_s, batch_s * self.admitted / max_batch / self._limits.slots, drained_s)

    def _drained_s(self) -> float:
        """Seconds for the images in flight at the recent drain rate; 0 if too few have ended to measure it."""
        lately = [at for at in self._released if self._released[-1] - at <= _LATELY_S]
        if len(lately) < _FEWEST:
            return 0.0
        return self.admitted * (lately[-1] - lately[0]) / (len(lately) - 1)
