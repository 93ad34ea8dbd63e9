"""Selects the best classes from a row of probabilities."""

from collections.abc import Sequence

import numpy as np

from models.labels import Label
from service.common.errors import BadRequest
from service.common.types import DEFAULT_TOP_K, Prediction, Probabilities

_FEW = 8


def resolve_top_k(asked: int | None, classes: int, model: str) -> int:
    """The number of classes to return: as asked, else five, or all if there are fewer. Raises BadRequest."""
    if asked is None:
        return min(DEFAULT_TOP_K, classes)
    if not 1 <= asked <= classes:
        raise BadRequest(f"top_k is {asked}; {model} has classes for 1 to {classes}")
    return asked


def top_k(probabilities: Probabilities, labels: Sequence[Label], k: int) -> tuple[Prediction, ...]:
    """The `k` most probable classes of one row [C], best first; of equal ones the lower class id comes first."""
    best: list[int] = []
    if k > _FEW:
        best += (-probabilities).argsort(kind="stable")[:k].tolist()
    else:
        rest = probabilities.copy()
        for _ in range(k):  # for few classes faster than any sort or partition
            best.append(index := int(rest.argmax()))
            rest[index] = -np.inf
    predictions = []
    for rank, index in enumerate(best, start=1):
        label = labels[index]
        predictions.append(Prediction(rank, label.class_id, label.wnid, label.label, probabilities.item(index)))
    return tuple(predictions)
