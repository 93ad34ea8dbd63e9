"""From a row of probabilities to the best classes."""

from collections.abc import Sequence

import numpy as np

from models.labels import Label
from service.common.types import Prediction, Probabilities

DEFAULT_TOP_K = 5


def top_k(probabilities: Probabilities, labels: Sequence[Label], k: int) -> tuple[Prediction, ...]:
    """The `k` most probable classes of one row [C], best first; of equal ones the lower class id comes first."""
    last = np.partition(probabilities, -k)[-k]
    chosen = (probabilities >= last).nonzero()[0]  # all that equal the last one too
    order = sorted(zip((-probabilities[chosen]).tolist(), chosen.tolist(), strict=True))[:k]
    predictions = []
    for rank, (falling, index) in enumerate(order, start=1):
        label = labels[index]
        predictions.append(Prediction(rank, label.class_id, label.wnid, label.label, -falling))
    return tuple(predictions)
