"""A slot on a GPU: runs one batch at a time, with its own context, stream and buffers."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from itertools import takewhile
from typing import Any

import numpy as np

from service.common.types import Probabilities, Rows
from service.engines.base import CardLostError, keep_for_ever
from service.engines.tensorrt.cuda import Cuda, CudaError
from service.engines.tensorrt.plan import IMAGE, PROBABILITIES, Contract, LoadedPlan, TensorRtError

_BYTES_PER_PROBABILITY = 4

log = logging.getLogger(__name__)


class Launch(StrEnum):
    """How batches are launched on the GPU: one CUDA graph for each size, or call by call."""

    GRAPH = "graph"
    CALLS = "calls"


def buckets(smallest: int, max_batch: int) -> tuple[int, ...]:
    """The batch sizes that really run, ascending: powers of two and the largest. Others are padded to the next."""
    largest = max(smallest, max_batch)
    powers = takewhile(lambda size: size < largest, (2**power for power in range(largest.bit_length() + 1)))
    return (*(size for size in powers if size >= smallest), largest)


class CardSlot:
    """Runs one batch at a time. A new slot is warm: each bucket has run once, and with Launch.GRAPH is captured.

    Raises MemoryError if its buffers or its context do not fit, TensorRtError or CudaError if it does not run.
    """

    def __init__(
        self, cuda: Cuda, plan: LoadedPlan, contract: Contract, sizes: tuple[int, ...], launch: Launch
    ) -> None:
        self._cuda = cuda
        self._plan = plan
        self._image = contract.image
        self._sizes = sizes
        self._graphs: dict[int, Any] = {}
        self._shaped: int | None = None
        self._context: Any = None
        self._owned = ExitStack()
        try:
            self._allocate(contract)
            for size in reversed(sizes):  # the largest first, so that a lack of memory shows at once
                self._warm(size, launch)
        except BaseException:
            self.close()
            raise

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes that are launched as graphs, ascending."""
        return tuple(sorted(self._graphs))

    @staticmethod
    def buffers_bytes(contract: Contract, largest: int) -> int:
        """The memory of a slot's input and output buffers on the GPU."""
        return largest * (int(np.prod(contract.image)) + contract.classes * _BYTES_PER_PROBABILITY)

    def run(self, rows: Rows) -> Probabilities:
        """Probabilities [N, C] of N rows, at most the largest bucket, in an array that the caller owns."""
        count = len(rows)
        self._copy_in(rows)
        size = next(size for size in self._sizes if size >= count)
        graph = self._graphs.get(size)
        if graph is None:
            self._finish(lambda: self._queue(size))
        else:
            self._finish(lambda: self._cuda.launch(graph, self._stream))
        answer: Probabilities = self._answers[:count].copy()
        return answer

    def drain(self) -> None:
        """Wait for the stream. Raises CardLostError if the GPU is lost: then nothing of the slot may be freed."""
        self._cuda.drain(self._stream)

    def close(self) -> None:
        """Free everything, unless the GPU is lost. Nothing may run."""
        if self._cuda.lost is not None:
            keep_for_ever(self)
            return
        self._graphs.clear()
        self._context = None
        self._owned.close()

    def _allocate(self, contract: Contract) -> None:
        largest, cuda = self._sizes[-1], self._cuda
        self._stream = cuda.stream(self._owned)
        self._event = cuda.event(self._owned)
        self._images = cuda.pinned(self._owned, (largest, *contract.image), np.uint8)
        self._answers = cuda.pinned(self._owned, (largest, contract.classes), np.float32)
        self._images_there = cuda.device_memory(self._owned, self._images.nbytes)
        self._answers_there = cuda.device_memory(self._owned, self._answers.nbytes)
        self._context = self._plan.context()
        addresses = {IMAGE: self._images_there, PROBABILITIES: self._answers_there}
        for name, address in addresses.items():
            self._plan.require(self._context.set_tensor_address(name, address), f"no address for {name}")

    def _copy_in(self, rows: Rows) -> None:
        """Copy the rows to pinned memory; no other copy is needed."""
        shapes = {row.shape for row in rows}
        if shapes != {self._image} or any(row.dtype != np.uint8 for row in rows):
            raise ValueError(f"rows must be uint8 {list(self._image)}, not of shapes {sorted(shapes)}")
        np.stack(list(rows), out=self._images[: len(rows)])

    def _warm(self, size: int, launch: Launch) -> None:
        self._finish(
            lambda: self._queue(size)
        )  # the first run of a shape sets things up that must not be part of a graph
        if launch is Launch.CALLS:
            return
        try:
            self._graphs[size] = self._cuda.capture(self._owned, self._stream, lambda: self._queue(size))
        except (CudaError, MemoryError, TensorRtError) as error:
            log.warning("batches of %d run without a CUDA graph: %s", size, error)

    def _finish(self, work: Callable[[], None]) -> None:
        """Queue `work` and wait for it. If it fails, wait for the part that was queued."""
        try:
            work()
            self._cuda.finish(self._event, self._stream)
        except (CudaError, MemoryError, TensorRtError) as error:
            self._shaped = None
            try:
                self.drain()  # before the buffers are used again
            except CardLostError as lost:
                raise lost from error
            except (CudaError, MemoryError) as another:
                log.warning("after %s: %s", error, another)
            raise

    def _queue(self, size: int) -> None:
        """Queue the copies and the run of one batch. Old buffer contents pad it."""
        self._cuda.upload(self._images_there, self._images[:size], self._stream)
        if self._shaped != size:
            taken = self._context.set_input_shape(IMAGE, (size, *self._image))
            self._plan.require(taken, f"no batch of {size}")
            self._shaped = size
        self._plan.require(self._context.execute_async_v3(int(self._stream)), f"a batch of {size} did not run")
        self._cuda.download(self._answers[:size], self._answers_there, self._stream)
