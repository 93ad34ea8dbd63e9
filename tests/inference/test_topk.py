"""The best classes of a row of probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.labels import Label
from service.common.types import Prediction
from service.inference.topk import top_k

LABELS = tuple(Label(number, f"n{number:08}", f"class {number}") for number in range(10))


def test_order() -> None:
    """The most probable comes first, ranks count from 1, and each carries its label and its probability."""
    row = np.array([0.1, 0.6, 0.0, 0.3], dtype=np.float32)

    assert top_k(row, LABELS, 2) == (
        Prediction(1, 1, "n00000001", "class 1", float(np.float32(0.6))),
        Prediction(2, 3, "n00000003", "class 3", float(np.float32(0.3))),
    )


def test_ties() -> None:
    """Of equal probabilities the lower class id comes first, so that every engine gives the same order."""
    row = np.array([0.2, 0.0, 0.2, 0.4, 0.2], dtype=np.float32)

    assert [prediction.class_id for prediction in top_k(row, LABELS, 5)] == [3, 0, 2, 4, 1]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_k(k: int) -> None:
    """As many as asked for, up to all classes."""
    row = np.full(10, 0.1, dtype=np.float32)

    assert [prediction.class_id for prediction in top_k(row, LABELS, k)] == list(range(k))


def test_plain_numbers() -> None:
    """Probabilities are Python's numbers, with the exact value of the engine's, and the row is left as it was."""
    row = np.random.default_rng(0).dirichlet(np.ones(10)).astype(np.float32)
    before = row.copy()
    for prediction in top_k(row, LABELS, 10):
        assert type(prediction.probability) is float
        assert prediction.probability == row[prediction.class_id]
    assert np.array_equal(row, before)


@given(st.lists(st.floats(0, 1, width=32), min_size=10, max_size=10), st.integers(1, 10))
def test_as_sorted(values: list[float], k: int) -> None:
    """It is what sorting by probability, then class id gives."""
    expected = sorted(range(10), key=lambda number: (-values[number], number))[:k]

    assert [one.class_id for one in top_k(np.array(values, dtype=np.float32), LABELS, k)] == expected
