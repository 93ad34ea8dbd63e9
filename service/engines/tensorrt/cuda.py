"""CUDA's runtime on one GPU: memory, streams, events and graphs.

The status of every call is checked, and every allocation is freed once. Knows nothing of TensorRT.
"""

import ctypes
import logging
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.common.gpus import cuda_message
from service.engines.base import CardLostError

S = TypeVar("S", bound=np.generic)


class Loss(NamedTuple):
    """An error after which every call of the process on this GPU fails. `name` and `number` are CUDA's."""

    name: str
    number: int
    meaning: str


LOSSES = (
    Loss("cudaErrorIllegalAddress", 700, "a kernel used an address that is not its own"),
    Loss("cudaErrorMisalignedAddress", 716, "a kernel used a misaligned address"),
    Loss("cudaErrorInvalidAddressSpace", 717, "a kernel used an address of the wrong kind of memory"),
    Loss("cudaErrorInvalidPc", 718, "a kernel jumped out of its code"),
    Loss("cudaErrorIllegalInstruction", 715, "a kernel met an instruction that does not exist"),
    Loss("cudaErrorHardwareStackError", 714, "the stack of a kernel is damaged or full"),
    Loss("cudaErrorAssert", 710, "an assertion of a kernel failed"),
    Loss("cudaErrorLaunchFailure", 719, "a kernel failed while it ran"),
    Loss("cudaErrorLaunchTimeout", 702, "the display's watchdog stopped a kernel"),
    Loss("cudaErrorTensorMemoryLeak", 721, "a kernel left tensor memory behind"),
    Loss("cudaErrorECCUncorrectable", 214, "the GPU's memory has an error that cannot be corrected"),
    Loss("cudaErrorNvlinkUncorrectable", 220, "the link between GPUs has an error that cannot be corrected"),
    Loss("cudaErrorContained", 226, "the GPU's memory failed under this process"),
    Loss("cudaErrorContextIsDestroyed", 709, "the process's context on the GPU is gone"),
    Loss("cudaErrorDeviceUninitialized", 201, "the process has no context on the GPU any more"),
    Loss("cudaErrorDevicesUnavailable", 46, "the GPU is busy or has gone"),
    Loss("cudaErrorNoDevice", 100, "the GPU has gone"),
    Loss("cudaErrorMpsClientTerminated", 810, "the server that shares the GPU has ended this process's part"),
    Loss("cudaErrorMpsRpcFailure", 806, "the server that shares the GPU does not answer"),
    Loss("cudaErrorExternalDevice", 911, "a device that works with the GPU has failed"),
    Loss("cudaErrorUnknown", 999, "the driver knows no reason; a GPU that fell off its bus looks so"),
)
_LOST = MappingProxyType({loss.number: loss for loss in LOSSES})
_QUOTED = re.compile(r"\b(?:CUDA failure|cudaError) (\d+): ")  # how ONNX Runtime and TensorRT quote CUDA

log = logging.getLogger(__name__)


class CudaError(Exception):
    """A call failed, and later ones may succeed. The message has the call, and CUDA's name and text of the error."""


def loss_in(text: str) -> Loss | None:
    """The CUDA error in another library's error text after which the GPU is lost, or None."""
    return next((loss for number in _QUOTED.findall(text) if (loss := _LOST.get(int(number))) is not None), None)


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
        if (loss := loss_in(text)) is None:
            return None
        self.lost = f"{loss.name}: {loss.meaning}: {text}"
        return CardLostError(self.lost)

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
        if (loss := _LOST.get(int(error))) is not None:
            self.lost = f"{what}: {loss.meaning}"
            return CardLostError(self.lost)
        if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            return MemoryError(what)
        return CudaError(what)
