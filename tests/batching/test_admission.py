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
