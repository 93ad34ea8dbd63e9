"""What every engine offers, and what can go wrong before it does."""

from typing import Protocol

import numpy as np

from service.types import Batch, EngineInfo, Probabilities, Rows


class EngineUnavailableError(Exception):
    """What was asked for cannot run here; the message says why and what to do. Never answered by something else."""


class Engine(Protocol):
    """Runs batches. `run` may be called from `slots` threads at once."""

    slots: int
    max_batch: int

    def run(self, rows: Rows) -> Probabilities:
        """Probabilities [N, C] of N samples. Raises MemoryError where the batch does not fit."""

    def describe(self) -> EngineInfo:
        """Runtime, its version, device and precision: what really runs."""

    def close(self) -> None:
        """Give back memory and threads; no `run` may follow."""


def as_batch(rows: Rows) -> Batch:
    """The samples in one piece, [N, S, S, 3]; what is in one piece already is not copied."""
    return rows if isinstance(rows, np.ndarray) else np.stack(rows)
