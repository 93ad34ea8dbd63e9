"""What every engine offers, and what can go wrong before it does."""

from typing import Protocol

from service.types import Batch, EngineInfo, Probabilities


class EngineUnavailableError(Exception):
    """What was asked for cannot run here; the message says why and what to do. Never answered by something else."""


class Engine(Protocol):
    """Runs batches. `run` may be called from `slots` threads at once."""

    slots: int
    max_batch: int

    def run(self, batch: Batch) -> Probabilities:
        """Probabilities [N, C] of a batch [N, S, S, 3]. Raises MemoryError where the batch does not fit."""

    def describe(self) -> EngineInfo:
        """Runtime, its version, device and precision: what really runs."""

    def close(self) -> None:
        """Give back memory and threads; no `run` may follow."""
