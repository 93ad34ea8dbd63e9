"""What every engine offers, and what can go wrong before it does."""

import ctypes
from typing import Protocol

import numpy as np

from service.common.types import Batch, EngineInfo, Probabilities, Rows

CPU = "cpu"
"""The device of every engine that runs on the processor; a card is `cuda:0`, `cuda:1` and so on."""

# Two models, two runtimes, two slots of 8 rows on a CPU: resident memory was 0.98 to 1.30 times what these two give.
_HELD_PER_GRAPH = 2  # a runtime keeps the weights and, beside them or in their place, a copy in its own layout
_HELD_PER_PIXEL = 128  # two layers of 64 channels at half the input's width and height, in f32
_NO_MEMORY = ("out of memory", "failed to allocate memory", "bad_alloc")


class EngineUnavailableError(Exception):
    """What was asked for cannot run here; the message says why and what to do. Never answered by something else."""


class NoRoomError(EngineUnavailableError, MemoryError):
    """The device has too little free memory for this engine; with more of it free, it would run."""


class CardLostError(Exception):
    """The card answers nothing in this process any more, whichever engine asks; only a new process can use it."""


class Engine(Protocol):
    """Runs batches. `run` may be called from `slots` threads at once.

    `memory_bytes` is what it holds on `device` once it is warm: measured where a runtime can tell, else `held_bytes`.
    """

    slots: int
    max_batch: int
    device: str
    memory_bytes: int

    def run(self, rows: Rows) -> Probabilities:
        """Probabilities [N, C] of N samples. Raises MemoryError where the batch does not fit."""

    def describe(self) -> EngineInfo:
        """Runtime, its version, device and precision: what really runs."""

    def close(self) -> None:
        """Give back memory and threads; no `run` may follow."""


def held_bytes(graph_bytes: int, rows: int = 0, size: int = 0) -> int:
    """About what an engine holds: by its graph file, which has the weights in f32, and what `rows` of its slots need.

    `rows` are those of all slots together, each `size` times `size` pixels.
    """
    return _HELD_PER_GRAPH * graph_bytes + rows * size**2 * _HELD_PER_PIXEL


def as_batch(rows: Rows) -> Batch:
    """The samples in one piece, [N, S, S, 3]; what is in one piece already, as is a single sample, is not copied."""
    if isinstance(rows, np.ndarray):
        return rows
    return rows[0][np.newaxis] if len(rows) == 1 else np.stack(rows)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether that is what it, or what caused it, says; CUDA and its users have words for it and no type."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
            return True
        error = error.__cause__
    return False


def card_lost(error: BaseException | None) -> str | None:
    """Why the card is lost, where that is the error or among its causes; else None."""
    while error is not None:
        if isinstance(error, CardLostError):
            return str(error)
        error = error.__cause__
    return None


def keep_for_ever(thing: object) -> None:
    """Let `thing` live until the process is gone: what calls a lost card when it is let go may abort the process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
