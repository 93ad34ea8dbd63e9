"""The cost model, as a pure function of given times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.cost_model import CostModel

BATCHES = st.lists(st.tuples(st.integers(1, 128), st.floats(0, 100, allow_nan=False)), min_size=1, max_size=60)


def test_the_fit_recovers_a_line() -> None:
    """From noisy batches of many sizes, a + b * n is found within a few per cent."""
    rng = np.random.default_rng(0)
    model = CostModel()
    for n in rng.integers(1, 33, 400):
        model.observe(int(n), float((0.004 + 0.001 * n) * rng.normal(1, 0.02)))
    for n in (1, 8, 32):
        assert model.predict(n) == pytest.approx(0.004 + 0.001 * n, rel=0.05)


def test_nothing_is_predicted_before_a_batch() -> None:
    """A guess would be worse than saying that there is none."""
    assert CostModel().predict(1) is None


def test_one_size_alone_scales_in_proportion() -> None:
    """Batches of one size say nothing about the fixed part: none is assumed."""
    model = CostModel()
    for _ in range(10):
        model.observe(4, 0.2)
    assert model.predict(4) == pytest.approx(0.2)
    assert model.predict(8) == pytest.approx(0.4)


def test_old_batches_fade() -> None:
    """An engine that has become ten times slower is known as such after some dozens of batches."""
    model = CostModel()
    for n in [1, 8] * 100:
        model.observe(n, 0.01 * n)
    for n in [1, 8] * 50:
        model.observe(n, 0.1 * n)
    assert model.predict(8) == pytest.approx(0.8, rel=0.05)


def test_a_batch_of_more_never_costs_less() -> None:
    """Where larger batches happened to be faster, a constant is predicted, not a falling line."""
    model = CostModel()
    for n, took_s in [(1, 0.3), (8, 0.1)] * 20:
        model.observe(n, took_s)
    assert model.predict(100) == pytest.approx(model.predict(1))


@given(batches=BATCHES, n=st.integers(1, 1024))
def test_a_prediction_is_never_negative_and_never_falls(batches: list[tuple[int, float]], n: int) -> None:
    """Whatever was measured, a prediction is a time, and one item more does not make it shorter."""
    model = CostModel()
    for size, took_s in batches:
        model.observe(size, took_s)
    here, next_one = model.predict(n), model.predict(n + 1)
    assert here is not None
    assert next_one is not None
    assert 0 <= here <= next_one
