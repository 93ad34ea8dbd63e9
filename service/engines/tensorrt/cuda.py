"""CUDA's runtime on one card: memory, streams, events and graphs.

Each call's status is checked, and what is made is given back once. Knows nothing of TensorRT.
"""

import ctypes
import logging
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.engines.base import CardLostError, EngineUnavailableError

S = TypeVar("S", bound=np.generic)


class Loss(NamedTuple):
    """An error after which every call of the process on this card fails: CUDA's name and number, and what it means."""

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
    Loss("cudaErrorECCUncorrectable", 214, "the card's memory has an error that cannot be corrected"),
    Loss("cudaErrorNvlinkUncorrectable", 220, "the link between cards has an error that cannot be corrected"),
    Loss("cudaErrorContained", 226, "the card's memory failed under this process"),
    Loss("cudaErrorContextIsDestroyed", 709, "the process's context on the card is gone"),
    Loss("cudaErrorDeviceUninitialized", 201, "the process has no context on the card any more"),
    Loss("cudaErrorDevicesUnavailable", 46, "the card is busy or has gone"),
    Loss("cudaErrorNoDevice", 100, "the card has gone"),
    Loss("cudaErrorMpsClientTerminated", 810, "the server that shares the card has ended this process's part"),
    Loss("cudaErrorMpsRpcFailure", 806, "the server that shares the card does not answer"),
    Loss("cudaErrorExternalDevice", 911, "a device that works with the card has failed"),
    Loss("cudaErrorUnknown", 999, "the driver knows no reason; a card that fell off its bus looks so"),
)
_LOST = MappingProxyType({loss.number: loss for loss in LOSSES})
_TOLD = re.compile(r"\b(?:CUDA failure|cudaError) (\d+): ")  # how ONNX Runtime and TensorRT quote CUDA

log = logging.getLogger(__name__)


class CudaError(Exception):
    """A call failed, and others may go on; the message has the call, and CUDA's own name and words."""


def bindings() -> Any:
    """The module `cuda.bindings.runtime`. Raises EngineUnavailableError where it is not installed."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        raise EngineUnavailableError("cuda-bindings is not installed; run: pip install '.[gpu]'")
    return import_module("cuda.bindings.runtime")


def loss_in(text: str) -> Loss | None:
    """The loss of a card that another library tells of in its own error, None where it tells of none."""
    told = (_LOST.get(int(number)) for number in _TOLD.findall(text))
    return next((loss for loss in told if loss is not None), None)


class Cuda:
    """One card through `runtime`, which is `cuda.bindings.runtime` or what stands for it.

    Every method raises MemoryError where the card or the pinned memory is full, CardLostError where the card is lost,
    else CudaError. What a method makes belongs to `owner`, which gives it back when it closes. Once the card is lost
    nothing is given back: calls would fail, and the end of the process frees all.
    """

    def __init__(self, runtime: Any, index: int) -> None:
        self._runtime = runtime
        self.index = index
        self.lost: str | None = None

    def enter(self) -> None:
        """Make the card that of the calling thread. CUDA forgets it with the thread, and a thread may have several."""
        self._call("cudaSetDevice", self.index)

    def device_memory(self, owner: ExitStack, size_bytes: int) -> int:
        """The address of memory on the card."""
        address = int(self._call("cudaMalloc", size_bytes))
        owner.callback(self._give_back, "cudaFree", address)
        return address

    def pinned(self, owner: ExitStack, shape: tuple[int, ...], dtype: type[S]) -> NDArray[S]:
        """Zeros in pinned memory of the host, which the card reads and writes by itself, until `owner` closes."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self._call("cudaHostAlloc", size, self._runtime.cudaHostAllocDefault))
        owner.callback(self._give_back, "cudaFreeHost", address)
        memory = (ctypes.c_uint8 * size).from_address(address)
        view: NDArray[S] = np.ndarray(shape, dtype, buffer=memoryview(memory))
        view[:] = 0
        return view

    def stream(self, owner: ExitStack) -> Any:
        """A stream that does not wait for the default one."""
        stream = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        owner.callback(self._give_back, "cudaStreamDestroy", stream)
        return stream

    def event(self, owner: ExitStack) -> Any:
        """An event whose waiter sleeps: by default it would use up a core."""
        flags = self._runtime.cudaEventBlockingSync | self._runtime.cudaEventDisableTiming
        event = self._call("cudaEventCreateWithFlags", flags)
        owner.callback(self._give_back, "cudaEventDestroy", event)
        return event

    def upload(self, address: int, rows: NDArray[Any], stream: Any) -> None:
        """Queue a copy of `rows`, which lie in pinned memory in one piece, to the card."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, rows.ctypes.data, rows.nbytes, kind, stream)

    def download(self, rows: NDArray[Any], address: int, stream: Any) -> None:
        """Queue a copy from the card to `rows`, which lie in pinned memory in one piece."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", rows.ctypes.data, address, rows.nbytes, kind, stream)

    def finish(self, event: Any, stream: Any) -> None:
        """Wait until all that was queued has run. Other threads go on: cuda-bindings lets go of the interpreter."""
        self._call("cudaEventRecord", event, stream)
        self._call("cudaEventSynchronize", event)

    def told(self, text: str) -> CardLostError | None:
        """What to raise where another library's words tell that the card is lost; None where they do not."""
        if (loss := loss_in(text)) is None:
            return None
        self.lost = f"{loss.name}: {loss.meaning}: {text}"
        return CardLostError(self.lost)

    def drain(self, stream: Any) -> None:
        """Wait for a stream after a failure, so that nothing touches its buffers any more."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, owner: ExitStack, stream: Any, work: Callable[[], None]) -> Any:
        """What `work` queues on `stream`, as a graph to launch; nothing of it runs. Other threads may go on."""
        # In the global mode of capture an allocation in any other thread would fail.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            with suppress(CudaError, MemoryError):  # a capture that failed cannot be ended any better
                self._give_back("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        with ExitStack() as made:
            try:
                launchable = self._call("cudaGraphInstantiate", graph, 0)
                made.callback(self._give_back, "cudaGraphExecDestroy", launchable)
            finally:
                self._give_back("cudaGraphDestroy", graph)
            self._call("cudaGraphUpload", launchable, stream)
            owner.callback(made.pop_all().close)
        return launchable

    def launch(self, graph: Any, stream: Any) -> None:
        """Queue all that a graph holds."""
        self._call("cudaGraphLaunch", graph, stream)

    def _give_back(self, function: str, handle: Any) -> None:
        """Free one thing; where that fails, nothing better can be done than to say so."""
        if self.lost is not None:
            return
        try:
            self._call(function, handle)
        except (CudaError, CardLostError, MemoryError) as error:
            log.warning("not given back: %s", error)

    def _call(self, function: str, *arguments: Any) -> Any:
        """The value of a call, None where it has none."""
        error, *values = getattr(self._runtime, function)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise self._failure(function, error)
        return values[0] if values else None

    def _failure(self, function: str, error: Any) -> Exception:
        """That error as an exception of ours."""
        _, text = self._runtime.cudaGetErrorString(error)
        words = text.decode() if isinstance(text, bytes) else str(text)
        what = f"{function} on card {self.index}: {error.name} ({words})"
        if (loss := _LOST.get(int(error))) is not None:
            self.lost = f"{what}: {loss.meaning}"
            return CardLostError(self.lost)
        if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            return MemoryError(what)
        return CudaError(what)
