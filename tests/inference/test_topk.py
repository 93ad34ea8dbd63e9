"""The best classes of a row of probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.labels import Label
from service.common.errors import BadRequest
from service.common.types import Prediction
from service.inference.topk import resolve_top_k, top_k

LABELS = tuple(Label(number, f"n{number:08}", f"class {number}") for number in range(20))


def test_a_prediction() -> None:
    """Ranks count from 1, and each class carries its label and, as Python's number, the probability of the row."""
    row = np.array([0.1, 0.6, 0.0, 0.3], dtype=np.float32)
    before = row.copy()
    predictions = top_k(row, LABELS, 2)

    assert predictions == (
        Prediction(1, 1, "n00000001", "class 1", float(np.float32(0.6))),
        Prediction(2, 3, "n00000003", "class 3", float(np.float32(0.3))),
    )
    assert {type(prediction.probability) for prediction in predictions} == {float}
    assert np.array_equal(row, before)


@given(st.lists(st.floats(0, 1, width=32), min_size=20, max_size=20), st.integers(1, 20))
def test_order(values: list[float], k: int) -> None:
    """The most probable class comes first; of equal ones, so that every engine agrees, that with the lower id."""
    expected = sorted(range(20), key=lambda number: (-values[number], number))[:k]

    assert [one.class_id for one in top_k(np.array(values, dtype=np.float32), LABELS, k)] == expected


def test_ties() -> None:
    """Equal probabilities are in the order of their class ids, also where not all of them are asked for."""
    row = np.array([0.2, 0.0, 0.2, 0.4, 0.2], dtype=np.float32)

    assert [[one.class_id for one in top_k(row, LABELS, k)] for k in (3, 5)] == [[3, 0, 2], [3, 0, 2, 4, 1]]


@pytest.mark.parametrize(("asked", "classes", "k"), [(None, 1000, 5), (None, 3, 3), (1, 10, 1), (10, 10, 10)])
def test_how_many(asked: int | None, classes: int, k: int) -> None:
    """Any number of classes up to all of them may be asked for; the default is five, or all of fewer."""
    assert resolve_top_k(asked, classes, "tiny") == k


@pytest.mark.parametrize("asked", [-1, 0, 11])
def test_too_many(asked: int) -> None:
    """A number of classes that there is not is refused with the range."""
    with pytest.raises(BadRequest, match=f"top_k is {asked}; tiny has classes for 1 to 10"):
        resolve_top_k(asked, 10, "tiny")
