"""From a row of probabilities to the best classes."""

from collections.abc import Sequence

import numpy as np

from models.labels import Label
from service.types import Prediction, Probabilities

DEFAULT_TOP_K = 5


def top_k(probabilities: Probabilities, labels: Sequence[Label], k: int) -> tuple[Prediction, ...]:
    """The `k` most probable classes of one row [C], best first; of equal ones the lower class id comes first."""
    falling = -probabilities
    chosen = np.flatnonzero(falling <= np.partition(falling, k - 1)[k - 1])  # all that equal the last one too
    order = chosen[np.argsort(falling[chosen], kind="stable")[:k]]
    return tuple(
        Prediction(rank, label.class_id, label.wnid, label.label, float(probabilities[label.class_id]))
        for rank, label in enumerate((labels[int(index)] for index in order), start=1)
    )
