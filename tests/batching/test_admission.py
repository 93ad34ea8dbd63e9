"""What a caller is told who is refused because too many images are admitted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.admission import AdmissionControl
from service.batching.cost_model import CostModel
from service.common.errors import Overloaded
from service.common.types import BatchLimits
from tests.batching.test_cost_model import BATCHES
from tests.fakes import ManualClock, Tally


def retry_after_s(batches: list[tuple[int, float]], capacity: int, max_batch: int, slots: int) -> float:
    """What a caller is told when `capacity` images are admitted, after batches of such sizes and times."""
    cost = CostModel()
    for n, took_s in batches:
        cost.observe(n, took_s)
    limits = BatchLimits(slots, max_batch, capacity)
    admissions = AdmissionControl(limits, cost, None, clock=ManualClock(), metrics=Tally())
    admissions.admit(capacity, max_batch)
    with pytest.raises(Overloaded) as refused:
        admissions.admit(1, max_batch)
    return refused.value.retry_after_s


@pytest.mark.parametrize(("capacity", "slots", "expected_s"), [(64, 1, 4.0), (64, 2, 2.0), (8, 4, 0.5)])
def test_retry_after_is_the_time_that_the_queue_takes(capacity: int, slots: int, expected_s: float) -> None:
    """Eight batches of 8 at 0.5 s each: 4 s through one slot, 2 s through two; never less than one batch."""
    assert retry_after_s([(8, 0.5)] * 10, capacity, 8, slots) == pytest.approx(expected_s)


@given(batches=BATCHES, capacity=st.integers(1, 10_000), max_batch=st.integers(1, 128), slots=st.integers(1, 16))
def test_retry_after_is_a_time(batches: list[tuple[int, float]], capacity: int, max_batch: int, slots: int) -> None:
    """It is finite and not negative, and more waiting never makes it shorter."""
    seconds = retry_after_s(batches, capacity, max_batch, slots)
    assert 0 <= seconds < math.inf
    assert retry_after_s(batches, capacity + 1, max_batch, slots) >= seconds


def admissions_of(batch_s: float, *, max_queue_s: float) -> AdmissionControl:
    """Admissions of one slot with batches of 4 that take so long."""
    cost = CostModel()
    cost.observe(4, batch_s)
    limits = BatchLimits(1, 4, 256, max_queue_s=max_queue_s)
    return AdmissionControl(limits, cost, None, clock=ManualClock(), metrics=Tally())


def test_queue_by_time() -> None:
    """With batches of 4 in 0.5 s, 16 images are 2 s: one more is admitted, and the next must wait until one ended."""
    admissions = admissions_of(0.5, max_queue_s=2.0)
    admitted = [admissions.admit(1, 4) for _ in range(17)]
    with pytest.raises(Overloaded, match="the queue is too long") as refused:
        admissions.admit(1, 4)
    admissions.release(admitted[0])
    admissions.admit(1, 4)

    assert refused.value.retry_after_s == pytest.approx(0.125)


def test_an_idle_model_takes_what_lasts() -> None:
    """Images that last longer than the bound are admitted while nothing is in flight, and behind one batch."""
    admissions = admissions_of(60.0, max_queue_s=2.0)
    admissions.admit(10, 4)
    with pytest.raises(Overloaded):
        admissions.admit(1, 4)


def test_no_bound_of_the_queue() -> None:
    """With a bound of 0 only the capacity counts."""
    admissions = admissions_of(60.0, max_queue_s=0.0)
    for _ in range(256):
        admissions.admit(1, 4)
    with pytest.raises(Overloaded, match="at capacity"):
        admissions.admit(1, 4)


@pytest.mark.anyio
async def test_a_pause_is_no_drain_rate() -> None:
    """Images that came one by one, far apart, do not make a sudden queue look slow."""
    clock = ManualClock()
    cost = CostModel()
    cost.observe(4, 0.01)
    limits = BatchLimits(1, 4, 256, max_queue_s=2.0)
    admissions = AdmissionControl(limits, cost, None, clock=clock, metrics=Tally())
    for _ in range(20):
        admissions.release(admissions.admit(1, 4))
        await clock.advance(1.0)
    for _ in range(200):
        admissions.admit(1, 4)

    assert admissions.admitted == 200
