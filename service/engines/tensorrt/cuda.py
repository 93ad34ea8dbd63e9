"""CUDA's runtime on one GPU: memory, streams, events and graphs.

The status of every call is checked, and every allocation is freed once. Knows nothing of TensorRT.
"""

import ctypes
import logging
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.common.gpus import cuda_message
from service.engines.base import CardLostError

S = TypeVar("S", bound=np.generic)


_LOST = frozenset(  # CUDA's numbers of the errors after which every call of the process on this GPU fails
    (
        *(700, 716, 717, 718, 715, 714, 710, 719, 702, 721),  # a kernel broke a rule, failed or was stopped
        *(214, 220, 226),  # memory or a link failed
        *(709, 201, 46, 100),  # the context or the GPU is gone
        *(806, 810, 911, 999),  # MPS, an external device, or a reason that the driver does not know
    )
)
_QUOTED = re.compile(r"\b(?:CUDA failure|cudaError) (\d+): ")  # how ONNX Runtime and TensorRT quote CUDA

log = logging.getLogger(__name__)


class CudaError(Exception):
    """A call failed, and later ones may succeed. The message has the call, and CUDA's name and text of the error."""


def tells_of_loss(text: str) -> bool:
    """Whether another library's error text quotes an error of CUDA after which the GPU is lost."""
    return any(int(number) in _LOST for number in _QUOTED.findall(text))


class Cuda:
    """Calls the CUDA runtime for one GPU. `runtime` is `cuda.bindings.runtime` or a module with its functions.

    Every method raises MemoryError if the GPU or the pinned memory is full, CardLostError if the GPU is lost, else
    CudaError. What a method allocates belongs to `owner`, which frees it when it closes. Once the GPU is lost nothing
    is freed: the calls would fail, and the end of the process frees everything.
    """

    def __init__(self, runtime: Any, index: int) -> None:
        self._runtime = runtime
        self.index = index
        self.lost: str | None = None

    def enter(self) -> None:
        """Make the GPU current in the calling thread. CUDA keeps a current GPU for each thread."""
        self._call("cudaSetDevice", self.index)

    def device_memory(self, owner: ExitStack, size_bytes: int) -> int:
        """Allocate memory on the GPU and return its address."""
        return int(self._owned(owner, "cudaFree", self._call("cudaMalloc", size_bytes)))

    def pinned(self, owner: ExitStack, shape: tuple[int, ...], dtype: type[S]) -> NDArray[S]:
        """An array of zeros in pinned host memory, which the GPU reads and writes directly."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        allocated = self._call("cudaHostAlloc", size, self._runtime.cudaHostAllocDefault)
        memory = (ctypes.c_uint8 * size).from_address(int(self._owned(owner, "cudaFreeHost", allocated)))
        view: NDArray[S] = np.ndarray(shape, dtype, buffer=memoryview(memory))
        view[:] = 0
        return view

    def stream(self, owner: ExitStack) -> Any:
        """A stream that does not wait for the default stream."""
        made = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        return self._owned(owner, "cudaStreamDestroy", made)

    def event(self, owner: ExitStack) -> Any:
        """An event whose waiter sleeps. By default it would spin."""
        flags = self._runtime.cudaEventBlockingSync | self._runtime.cudaEventDisableTiming
        return self._owned(owner, "cudaEventDestroy", self._call("cudaEventCreateWithFlags", flags))

    # The copy is only queued. `rows` must be contiguous in pinned memory.
    def upload(self, address: int, rows: NDArray[Any], stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, rows.ctypes.data, rows.nbytes, kind, stream)

    def download(self, rows: NDArray[Any], address: int, stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", rows.ctypes.data, address, rows.nbytes, kind, stream)

    def finish(self, event: Any, stream: Any) -> None:
        """Wait until all queued work has run. Other threads go on, because cuda-bindings releases the GIL."""
        self._call("cudaEventRecord", event, stream)
        self._call("cudaEventSynchronize", event)

    def loss(self, text: str) -> CardLostError | None:
        """Check another library's error text for a lost GPU.

        If it says so, the GPU is marked as lost, and a CardLostError is returned for the caller to raise. Else None.
        """
        if not tells_of_loss(text):
            return None
        self.lost = text
        return CardLostError(text)

    def drain(self, stream: Any) -> None:
        """Wait for all work of a stream. After that nothing uses its buffers."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, owner: ExitStack, stream: Any, work: Callable[[], None]) -> Any:
        """Record what `work` queues on `stream` as a CUDA graph. None of it runs. Other threads may go on."""
        # In global capture mode an allocation in any other thread would fail.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            with suppress(CudaError, MemoryError):  # the capture has failed already
                self._free("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            launchable = self._owned(owner, "cudaGraphExecDestroy", self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._free("cudaGraphDestroy", graph)
        self._call("cudaGraphUpload", launchable, stream)
        return launchable

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def _owned(self, owner: ExitStack, free: str, handle: Any) -> Any:
        owner.callback(self._free, free, handle)
        return handle

    def _free(self, function: str, handle: Any) -> None:
        """Free one object. A failure is only logged."""
        if self.lost is not None:
            return
        try:
            self._call(function, handle)
        except (CudaError, CardLostError, MemoryError) as error:
            log.warning("not freed: %s", error)

    def _call(self, function: str, *arguments: Any) -> Any:
        """The value that a call returns, or None if it returns none."""
        error, *values = getattr(self._runtime, function)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise self._failure(function, error)
        return values[0] if values else None

    def _failure(self, function: str, error: Any) -> Exception:
        what = f"{function} on GPU {self.index}: {error.name} ({cuda_message(self._runtime, error)})"
        if int(error) in _LOST:
            self.lost = what
            return CardLostError(what)
        if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            return MemoryError(what)
        return CudaError(what)
