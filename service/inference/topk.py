"""Selects the best classes from a row of probabilities."""

from collections.abc import Sequence

import numpy as np

from models.labels import Label
from service.common.errors import BadRequest
from service.common.types import DEFAULT_TOP_K, Prediction, Probabilities


def resolve_top_k(asked: int | None, classes: int, model: str) -> int:
    """The number of classes to return: as asked, else five, or all if there are fewer. Raises BadRequest."""
    if asked is None:
        return min(DEFAULT_TOP_K, classes)
    if not 1 <= asked <= classes:
        raise BadRequest(f"top_k is {asked}; {model} has classes for 1 to {classes}")
    return asked


def top_k(probabilities: Probabilities, labels: Sequence[Label], k: int) -> tuple[Prediction, ...]:
    """The `k` most probable classes of one row [C], best first; of equal ones the lower class id comes first."""
    last = np.partition(probabilities, -k)[-k]
    chosen = (probabilities >= last).nonzero()[0]  # includes all that equal the last one
    order = sorted(zip((-probabilities[chosen]).tolist(), chosen.tolist(), strict=True))[:k]
    predictions = []
    for rank, (falling, index) in enumerate(order, start=1):
        label = labels[index]
        predictions.append(Prediction(rank, label.class_id, label.wnid, label.label, -falling))
    return tuple(predictions)
