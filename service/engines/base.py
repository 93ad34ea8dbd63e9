"""The interface of every engine, and the errors of opening and running one."""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from service.common.types import EngineInfo, Probabilities, Rows, Runtime

CPU = "cpu"
"""The device name of every engine that runs on the CPU. A GPU is `cuda:0`, `cuda:1` and so on."""

INSTALL: Mapping[str, str] = MappingProxyType(
    {
        Runtime.TENSORRT: "pip install '.[tensorrt]'",
        Runtime.TENSORRT_RTX: "pip install '.[tensorrt-rtx]'",
        Runtime.OPENVINO: "pip install openvino",
        Runtime.ONNXRUNTIME: "pip install '.[cpu]'",
        Runtime.ONNXRUNTIME_CUDA: "pip install '.[gpu]'",
        Runtime.TORCH: "pip install '.[export]'",
    }
)
"""The command that installs each runtime."""

# Two models, two runtimes, two slots of 8 rows on a CPU: resident memory was 0.98 to 1.30 times what these two give.
_COPIES_OF_GRAPH = 2  # a runtime keeps the weights, and often a copy in its own layout
_BYTES_PER_PIXEL = 128  # two layers of 64 channels at half the input's width and height, in f32
_NO_MEMORY = ("out of memory", "failed to allocate memory", "bad_alloc")


class EngineUnavailableError(Exception):
    """The requested engine cannot run here. The message says why and what to do. No other engine replaces it."""


class NoRoomError(EngineUnavailableError, MemoryError):
    """The device has too little free memory for this engine. With more free memory the engine would run."""


class CardLostError(Exception):
    """The GPU fails every call of this process, whichever engine makes it. Only a new process can use the GPU."""


class Engine(ABC):
    """Runs batches. `run` may be called from `slots` threads at once.

    `memory_bytes` is what the engine holds on `device` once it is warm: measured if the runtime can, else `held_bytes`.
    `input_size` is the width and height of a sample.
    """

    slots: int
    max_batch: int
    device: str
    memory_bytes: int
    input_size: int

    @abstractmethod
    def run(self, rows: Rows) -> Probabilities:
        """Probabilities [N, C] of N samples. Raises MemoryError if the batch does not fit."""

    def warm_up(self) -> None:
        """Run a batch of one and one of `max_batch`, so that no request waits for memory and compilation."""
        for batch in (1, self.max_batch):
            self.run(np.zeros((batch, self.input_size, self.input_size, 3), dtype=np.uint8))

    @abstractmethod
    def describe(self) -> EngineInfo:
        """The runtime, its version, the device and the precision that are really in use."""

    @abstractmethod
    def close(self) -> None:
        """Free memory and threads. No `run` may follow."""


def held_bytes(graph_bytes: int, rows: int = 0, size: int = 0) -> int:
    """Estimate the memory that an engine holds from the size of its graph file, which has the weights in f32.

    `rows` is the number of images in all slots together, each of `size` times `size` pixels.
    """
    return _COPIES_OF_GRAPH * graph_bytes + rows * size**2 * _BYTES_PER_PIXEL


def out_of_memory(error: BaseException | None) -> bool:
    """Whether the error or one of its causes is a lack of memory. CUDA reports that only in the message."""
    return any(
        isinstance(one, MemoryError) or any(words in str(one).lower() for words in _NO_MEMORY)
        for one in _with_causes(error)
    )


def card_lost(error: BaseException | None) -> str | None:
    """The reason if the error or one of its causes is CardLostError, else None."""
    return next((str(one) for one in _with_causes(error) if isinstance(one, CardLostError)), None)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def keep_for_ever(thing: object) -> None:
    """Keep `thing` until the process ends: freeing an object that calls a lost GPU may abort the process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
