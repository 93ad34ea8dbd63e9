"""Keeps responses within a latency bound: refuses requests and queued items that would be late, limits batch sizes.

Only the bound is configured. Everything else is learned from recent measurements. The model of latency is a line: the
total time of a request as a function of (images in flight at its arrival / slots). The total time includes decoding and
the batches of other models on the device.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from service.batching.cost_model import CostModel
from service.batching.queue import Admission, QueuedItem, RequestQueue
from service.common.clock import Clock
from service.common.errors import DeadlineExceeded, Overloaded, TopfiveError
from service.common.metrics import BatchMetrics
from service.common.types import SloOutcome

T = TypeVar("T")
R = TypeVar("R")

_ADMITTED = 0.95  # of the admitted requests should be in time; late ones are refused before they run
_RUN = 0.99  # of the batches that run should be in time
_MEMORY = 0.98  # decay: each new measurement multiplies the weights of all older ones by this
_FAR_OFF = 1.5  # an outlier takes this many times as long as predicted, or less than its inverse
_RUNS_CHANGED, _ANSWERS_CHANGED = 12, 48  # outliers in a row that mean a change; answers of one batch are late together
_WINDOW, _EVERY = 128, 8  # how many last measurements give the spread, and after how many new ones it is computed again
_TIGHTEN, _LOOSEN, _TIGHTEST = 0.98, 1e-4, 0.5  # per late answer, per answer in time, lower limit: 1 late in 200
_SHORTEST_RETRY_S = 0.05


class SloUnattainable(Overloaded):
    """The answer could not be ready within the bound."""

    def __init__(self, bound_s: float, retry_after_s: float) -> None:
        super().__init__(retry_after_s, f"no answer could be ready within the {bound_s * 1000:g} ms of --slo-ms")


class QuantileForecast:
    """Predicts a quantile of the time in seconds at a load `n`: a fitted line times a safety factor (the spread).

    After `change` consecutive outliers it drops all older measurements: the model has become faster or slower.
    """

    def __init__(self, quantile: float, change: int) -> None:
        self._quantile = quantile
        self._change = change
        self._reset()

    def _reset(self) -> None:
        self._line = CostModel(memory=_MEMORY)
        self._latest: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._far_off: list[tuple[float, float]] = []
        self._margin = 1.0
        self._since = 0

    def observe(self, n: float, took_s: float) -> None:
        """Add one measurement."""
        if usual_s := self._line.predict(n):
            if 1 / _FAR_OFF < took_s / usual_s < _FAR_OFF:
                self._far_off.clear()
            else:
                self._far_off.append((n, took_s))
            if len(self._far_off) == self._change:
                far_off = self._far_off
                self._reset()
                for one in far_off:
                    self.observe(*one)
                return
        self._line.observe(n, took_s)
        self._latest.append((n, took_s))
        self._since += 1
        if self._since >= min(_EVERY, len(self._latest)):
            self._since, self._margin = 0, self._spread()

    def predict(self, n: float) -> float | None:
        """The predicted quantile in seconds, or None before any measurement."""
        usual_s = self._line.predict(n)
        return None if usual_s is None else usual_s * self._margin

    def _spread(self) -> float:
        """The quantile of (measured time / time on the line) over the last measurements; at least 1.

        It uses the current line for all of them: the errors of an older line would look like spread.
        """
        ratios = sorted(took_s / max(self._line.predict(n) or 0.0, 1e-9) for n, took_s in self._latest)
        return max(1.0, ratios[math.ceil(self._quantile * len(ratios)) - 1])


class LatencyBound:
    """Keeps the answers of one model within `bound_s` seconds. `slots` is how many of its batches run at once."""

    def __init__(self, bound_s: float, slots: int, *, clock: Clock, metrics: BatchMetrics) -> None:
        self.bound_s = bound_s
        self._aim_s = bound_s
        self._slots = slots
        self._clock = clock
        self._metrics = metrics
        self._answers = QuantileForecast(_ADMITTED, _ANSWERS_CHANGED)
        self._runs = QuantileForecast(_RUN, _RUNS_CHANGED)

    def admit(self, admission: Admission) -> Admission:
        """Set `due`, when the answer must be ready. Raises SloUnattainable if it would be late.

        A request that arrives while nothing else is in flight is always admitted and never refused later. So an idle
        server answers, and a model whose measurements are outdated measures again. Before any measurement, as many
        images are admitted as there are slots.
        """
        if admission.in_flight == admission.count:
            return admission
        expected_s = self._answers.predict(self._rounds(admission))
        if (expected_s or 0.0) > self._aim_s or (expected_s is None and admission.in_flight > self._slots):
            self._metrics.slo_ended(SloOutcome.REFUSED, admission.count)
            raise self._refusal(expected_s)
        return Admission(admission.at, admission.count, admission.in_flight, due=admission.at + self._aim_s)

    @contextmanager
    def watch(
        self, admission: Admission, queue: RequestQueue[T, R], items: Sequence[QueuedItem[T, R]]
    ) -> Iterator[None]:
        """Refuse the `items` that still wait when the answer is due, and count how the request ends."""
        due = admission.due
        timer = None if math.isinf(due) else self._clock.call_at(due, lambda: self._refuse_waiting(queue, items))
        try:
            yield
            self._answered(admission)
        except SloUnattainable:
            self._metrics.slo_ended(SloOutcome.REFUSED, admission.count)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def cut_batch(self, queue: RequestQueue[T, R], now: float, most: int) -> list[QueuedItem[T, R]]:
        """Take items from the front for one batch: at most `most`, and few enough that each is answered in time.

        If even a batch of one would end too late for an item, the item gets SloUnattainable or DeadlineExceeded.
        """
        batch: list[QueuedItem[T, R]] = []
        while queue and len(batch) < most:
            item = next(iter(queue))
            size = self._largest_batch(item, now, most)
            if 0 < size <= len(batch):  # a larger batch would end too late for this item
                break
            del queue[item]
            if item.future.done():  # the caller leaves in this turn of the event loop
                continue
            if size:
                batch.append(item)
                most = size
            else:
                item.settle(self._too_late(item, now))
        return batch

    def batch_ended(self, n: int, took_s: float) -> None:
        """Add the duration of a batch of `n`."""
        self._runs.observe(n, took_s)

    def _answered(self, admission: Admission) -> None:
        """Count an answer and update the forecast. A late one shortens `_aim_s`; one in time lengthens it slightly."""
        took_s = self._clock.now() - admission.at
        self._answers.observe(self._rounds(admission), took_s)
        if took_s <= self.bound_s:
            self._metrics.slo_ended(SloOutcome.WITHIN, admission.count)
            self._aim_s = min(self.bound_s, self._aim_s + _LOOSEN * self.bound_s)
            return
        self._metrics.slo_ended(SloOutcome.OVER, admission.count)
        if not math.isinf(admission.due):
            self._aim_s = max(_TIGHTEST * self.bound_s, self._aim_s * _TIGHTEN)

    def _largest_batch(self, item: QueuedItem[T, R], now: float, most: int) -> int:
        """The largest batch, at most `most`, that ends before the item is due and before its deadline; 0 for none."""
        if item.deadline <= now:
            return 0
        if item.admission is None or math.isinf(item.admission.due):
            return most
        if self._runs.predict(1) is None:
            return 1
        left_s = min(item.admission.due, item.deadline) - now
        return bisect_right(range(1, most + 1), left_s, key=lambda n: self._runs.predict(n) or 0.0)

    def _refuse_waiting(self, queue: RequestQueue[T, R], items: Sequence[QueuedItem[T, R]]) -> None:
        now = self._clock.now()
        for item in items:
            if item in queue:
                del queue[item]
                item.settle(self._too_late(item, now))

    def _too_late(self, item: QueuedItem[T, R], now: float) -> TopfiveError:
        """The error of an item that is dropped because its answer would be late.

        It is DeadlineExceeded if the caller's deadline has passed or comes before `due`. Otherwise it is
        SloUnattainable, and the forecast learns from the time that the item waited.
        """
        admission = item.admission
        if admission is None or item.deadline <= now or item.deadline < admission.due:
            return DeadlineExceeded()
        took_s = now - admission.at + (self._runs.predict(1) or 0.0)
        self._answers.observe(self._rounds(admission), took_s)
        return self._refusal(self._answers.predict(self._rounds(admission)))

    def _rounds(self, admission: Admission) -> float:
        """Images in flight per slot, at least 1: the `n` of the forecast of a request's total time."""
        return max(1.0, admission.in_flight / self._slots)

    def _refusal(self, expected_s: float | None) -> SloUnattainable:
        return SloUnattainable(self.bound_s, max(_SHORTEST_RETRY_S, (expected_s or 0.0) - self._aim_s))
