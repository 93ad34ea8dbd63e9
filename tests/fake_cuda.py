"""A scripted stand-in for `cuda.bindings.runtime` that really moves bytes, and only when a stream is waited for.

Memory of the card and of the host are arrays; a stream is a queue whose work runs when someone waits; a capture keeps
the work, and a launch queues it again. Every call and step can be made to fail, and what is made is counted.
"""

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Work = Callable[[], None]


class Error(IntEnum):
    """The errors of CUDA that tests use, with CUDA's own numbers."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorDevicesUnavailable = 46
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class CopyKind(IntEnum):
    """Directions of a copy."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class CaptureMode(IntEnum):
    """Whom a capture disturbs."""

    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class Refused(NamedTuple):
    """What TensorRT says when a step of it fails."""

    words: str


Fault = Error | Refused


@dataclass
class Script:
    """Which calls fail and how: by their place among all calls, or by name and count. Keeps all names in order."""

    at: dict[int, Fault] = field(default_factory=dict)
    of: dict[tuple[str, int], Fault] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def next(self, name: str) -> Fault | None:
        """Note a call; how it must fail."""
        self.calls.append(name)
        self.counts[name] += 1
        fault = self.at.get(len(self.calls))
        return fault if fault is not None else self.of.get((name, self.counts[name]))

    def fail(self, name: str, fault: Fault, after: int = 0) -> None:
        """Let the next call of that name fail, or that after `after` more."""
        self.of[(name, self.counts[name] + after + 1)] = fault


class Stream:
    """Work that waits, and what is being captured."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.waiting: list[Work] = []
        self.captured: list[Work] | None = None
        self.spoilt = False

    def __int__(self) -> int:
        return self.handle

    def add(self, work: Work) -> None:
        """Queue it, or keep it for the graph."""
        (self.waiting if self.captured is None else self.captured).append(work)

    def run(self) -> None:
        """All that waits, in order."""
        while self.waiting:
            self.waiting.pop(0)()


class FakeCudart:
    """One card of `capacity` bytes. `misused` says what a real card would have punished."""

    cudaError_t = Error
    cudaMemcpyKind = CopyKind
    cudaStreamCaptureMode = CaptureMode
    cudaStreamNonBlocking = 1
    cudaEventBlockingSync = 1
    cudaEventDisableTiming = 2
    cudaHostAllocDefault = 0

    def __init__(self, script: Script | None = None, *, capacity: int = 1 << 30) -> None:
        self.script = script or Script()
        self.capacity = capacity
        self.used = 0
        self.poison: Error | None = None
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.live: dict[int, str] = {}
        self.made: Counter[str] = Counter()
        self.freed: Counter[str] = Counter()
        self.misused: list[str] = []
        self.launched = 0
        self._events: dict[int, Stream] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._handles = count(1)
        self._thread = threading.local()
        self._lock = threading.RLock()
        self.streams: dict[int, Stream] = {}

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, error.name.removeprefix("cudaError").lower().encode()

    def cudaSetDevice(self, device: int) -> tuple[Error]:
        if error := self._begin("cudaSetDevice"):
            return (error,)
        self._thread.device = device
        return (Error.cudaSuccess,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        if error := self._begin("cudaMemGetInfo"):
            return error, None, None
        return Error.cudaSuccess, self.capacity - self.used, self.capacity

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if error := self._begin("cudaMalloc"):
            return error, None
        if not self.reserve(size):
            return Error.cudaErrorMemoryAllocation, None
        return Error.cudaSuccess, self._allocate("device", size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        if error := self._begin("cudaHostAlloc"):
            return error, None
        return Error.cudaSuccess, self._allocate("host", size)

    def cudaFree(self, devPtr: int) -> tuple[Error]:
        error = self._end("cudaFree", devPtr, "device")
        if devPtr in self.memory:
            self.used -= self.memory.pop(devPtr).nbytes
        return (error,)

    def cudaFreeHost(self, ptr: int) -> tuple[Error]:
        error = self._end("cudaFreeHost", ptr, "host")
        self.memory.pop(ptr, None)
        return (error,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        if error := self._begin("cudaStreamCreateWithFlags"):
            return error, None
        stream = Stream(self._make("stream"))
        self.streams[stream.handle] = stream
        return Error.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Error]:
        if stream.waiting:
            self.misused.append("a stream with work was destroyed")
        return (self._end("cudaStreamDestroy", stream.handle, "stream"),)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Error]:
        if error := self._begin("cudaStreamSynchronize"):
            return (error,)
        return (self._run(stream),)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        if error := self._begin("cudaEventCreateWithFlags"):
            return error, None
        if not flags & self.cudaEventBlockingSync:
            self.misused.append("an event whose waiter spins")
        return Error.cudaSuccess, self._make("event")

    def cudaEventDestroy(self, event: int) -> tuple[Error]:
        return (self._end("cudaEventDestroy", event, "event"),)

    def cudaEventRecord(self, event: int, stream: Stream) -> tuple[Error]:
        if error := self._begin("cudaEventRecord"):
            return (error,)
        self._events[event] = stream
        return (Error.cudaSuccess,)

    def cudaEventSynchronize(self, event: int) -> tuple[Error]:
        if error := self._begin("cudaEventSynchronize"):
            return (error,)
        return (self._run(self._events[event]),)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: CopyKind, stream: Stream) -> tuple[Error]:
        if error := self._begin("cudaMemcpyAsync"):
            return (error,)
        up = kind is CopyKind.cudaMemcpyHostToDevice
        if (self.live.get(dst), self.live.get(src)) != (("device", "host") if up else ("host", "device")):
            self.misused.append(f"a copy from {self.live.get(src)} to {self.live.get(dst)} called {kind.name}")

        def copy() -> None:
            self.memory[dst][:count] = self.memory[src][:count]

        stream.add(copy)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: CaptureMode) -> tuple[Error]:
        if error := self._begin("cudaStreamBeginCapture"):
            return (error,)
        if mode is not CaptureMode.cudaStreamCaptureModeThreadLocal:
            self.misused.append("a capture that disturbs other threads")
        stream.captured, stream.spoilt = [], False
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Any, ...]:
        work, stream.captured = stream.captured, None
        if error := self._begin("cudaStreamEndCapture"):
            return error, None
        if work is None or stream.spoilt:
            return Error.cudaErrorStreamCaptureInvalidated, None
        graph = self._make("graph")
        self._graphs[graph] = work
        return Error.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        if error := self._begin("cudaGraphInstantiate"):
            return error, None
        launchable = self._make("launchable")
        self._graphs[launchable] = self._graphs[graph]
        return Error.cudaSuccess, launchable

    def cudaGraphDestroy(self, graph: int) -> tuple[Error]:
        return (self._end("cudaGraphDestroy", graph, "graph"),)

    def cudaGraphExecDestroy(self, graphExec: int) -> tuple[Error]:
        return (self._end("cudaGraphExecDestroy", graphExec, "launchable"),)

    def cudaGraphUpload(self, graphExec: int, stream: Stream) -> tuple[Error]:
        return (self._begin("cudaGraphUpload") or Error.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec: int, stream: Stream) -> tuple[Error]:
        if error := self._begin("cudaGraphLaunch"):
            return (error,)
        self.launched += 1
        for work in self._graphs[graphExec]:
            stream.add(work)
        return (Error.cudaSuccess,)

    def reserve(self, size: int) -> bool:
        """Take memory of the card; False where there is too little."""
        with self._lock:
            if self.used + size > self.capacity:
                return False
            self.used += size
            return True

    def _allocate(self, kind: str, size: int) -> int:
        memory = np.full(size, 0xA5, dtype=np.uint8)  # as fresh memory is: not zero
        address = int(memory.ctypes.data)
        self.memory[address] = memory
        self._make(kind, address)
        return address

    def _make(self, kind: str, handle: int | None = None) -> int:
        with self._lock:
            handle = next(self._handles) if handle is None else handle
            self.live[handle] = kind
            self.made[kind] += 1
            return handle

    def _begin(self, name: str) -> Error | None:
        """Note a call; the error that it must give."""
        with self._lock:
            fault = self.script.next(name)
            if name != "cudaSetDevice" and not hasattr(self._thread, "device"):
                self.misused.append(f"{name} on a thread without a device")
            if self.poison is not None:
                return self.poison
            if fault is Error.cudaErrorIllegalAddress:
                self.poison = fault
            return fault if isinstance(fault, Error) else None

    def _end(self, name: str, handle: int, kind: str) -> Error:
        """Free a thing, also where the call is made to fail: nobody may try twice."""
        error = self._begin(name)
        with self._lock:
            if self.live.pop(handle, None) != kind:
                self.misused.append(f"{name} of no {kind}")
                return Error.cudaErrorInvalidResourceHandle
            self.freed[kind] += 1
        return error or Error.cudaSuccess

    def _run(self, stream: Stream) -> Error:
        if stream.captured is not None:
            stream.spoilt = True
            return Error.cudaErrorStreamCaptureUnsupported
        with suppress(KeyError):  # memory that is gone: what a card calls an illegal address
            stream.run()
            return self.poison or Error.cudaSuccess
        self.poison = Error.cudaErrorIllegalAddress
        return self.poison
