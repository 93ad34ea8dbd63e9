"""TensorRT and TensorRT for RTX on an NVIDIA GPU: one engine, and a context, a stream and buffers for each slot."""

import logging
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.artifact.artifact import Artifact
from models.artifact.engine_plan import EnginePlan, Flavour
from models.artifact.files import CacheFile, file_name
from service.common.gpus import Card, cuda_runtime, driver_version
from service.common.types import EngineInfo, Probabilities, Rows, Runtime
from service.engines.base import CardLostError, Engine, EngineUnavailableError, NoRoomError, keep_for_ever
from service.engines.tensorrt import packages
from service.engines.tensorrt.cuda import Cuda, CudaError
from service.engines.tensorrt.plan import Contract, LoadedPlan, TensorRtError
from service.engines.tensorrt.slot import CardSlot, Launch, buckets

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Libraries:
    """The libraries of an engine: TensorRT's module, CUDA's runtime, and the version of the driver."""

    trt: Any
    cudart: Any
    driver: str

    @classmethod
    def installed(cls, flavour: Flavour) -> "Libraries":
        """Imports the libraries. Raises EngineUnavailableError if one is not installed."""
        try:
            return cls(packages.module(flavour), cuda_runtime(), driver_version() or "unknown")
        except ImportError as error:
            raise EngineUnavailableError(str(error)) from error


class TensorRtEngine(Engine):
    """Runs a plan on one GPU, at most `slots` batches at once.

    `max_batch` is at most the largest of the plan's profile. There are fewer slots than requested if the GPU lacks
    memory for more. `memory_bytes` is the weights plus the activations and buffers of each slot, as TensorRT reports
    them. TensorRT for RTX keeps what it compiles in the folder `cache`.

    Raises EngineUnavailableError if the plan cannot run here, NoRoomError if the GPU has too little memory,
    CardLostError if the GPU is lost.
    """

    def __init__(
        self,
        plan: EnginePlan,
        artifact: Artifact,
        *,
        card: Card,
        slots: int,
        max_batch: int,
        cache: Path,
        libraries: Libraries | None = None,
        launch: Launch = Launch.GRAPH,
    ) -> None:
        self._record = plan.record
        self._libraries = libraries or Libraries.installed(plan.record.flavour)
        self._card = card
        self.device = f"cuda:{card.index}"
        self._cuda = Cuda(self._libraries.cudart, card.index)
        manifest = artifact.manifest
        self.input_size = manifest.input.crop
        self._contract = Contract(manifest.name, self.input_size, manifest.classes)
        self._lock = threading.Lock()
        self._running = 0
        self._closed = False
        self._slots: list[CardSlot] = []
        self._free: queue.SimpleQueue[CardSlot] = queue.SimpleQueue()
        self._plan: LoadedPlan | None = None
        try:
            self._cuda.enter()
        except (CudaError, CardLostError, MemoryError) as error:  # the first use: the GPU may be busy rather than lost
            raise EngineUnavailableError(f"the GPU cannot be used: {error}") from error
        try:
            self._open(plan, self._cache_file(cache), (slots, max_batch), launch)
        except BaseException:
            self._release()
            raise

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes that every slot launches as a CUDA graph. TensorRT for RTX makes graphs by itself."""
        common = set.intersection(*(set(slot.captured) for slot in self._slots)) if self._slots else set()
        return tuple(sorted(common))

    def run(self, rows: Rows) -> Probabilities:
        """Probabilities [N, C] of N samples. Raises MemoryError if memory lacks, CardLostError if the GPU is lost."""
        if not 1 <= len(rows) <= self.max_batch:
            raise ValueError(f"a batch holds 1 to {self.max_batch} rows, not {len(rows)}")
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._running += 1
        try:
            slot = self._free.get()
            try:
                self._cuda.enter()
                return slot.run(rows)
            finally:
                self._free.put(slot)
        finally:
            self._end_run()

    def describe(self) -> EngineInfo:
        device, trt = f"{self.device} {self._card.name}", self._libraries.trt
        return EngineInfo(Runtime(self._record.flavour), str(trt.__version__), device, self._record.precision)

    def close(self) -> None:
        """Free the GPU's memory: at once, or when the last running batch has ended."""
        with self._lock:
            last = not self._closed and not self._running
            self._closed = True
        if last:
            self._release()

    def _end_run(self) -> None:
        with self._lock:
            self._running -= 1
            last = self._closed and not self._running
        if last:
            self._release()

    def _cache_file(self, folder: Path) -> CacheFile | None:
        """The file for the kernels that TensorRT for RTX compiles from this plan, for this GPU model and driver."""
        if self._record.flavour is not Flavour.TENSORRT_RTX:
            return None
        name = f"{self._record.sha256}-{file_name(self._card.name, self._libraries.driver)}.cache"
        return CacheFile(folder / "tensorrt-rtx" / name, "kernels are compiled again at each start")

    def _open(self, plan: EnginePlan, cache: CacheFile | None, asked: tuple[int, int], launch: Launch) -> None:
        slots, max_batch = asked
        try:
            self._plan = LoadedPlan(self._libraries.trt, self._cuda, plan, self._contract, cache)
            self.max_batch = min(max_batch, self._plan.profile.largest)
            sizes = buckets(self._plan.profile.smallest, self.max_batch)
            # RTX makes graphs by itself, and nested graphs are an error.
            self._add_slots(self._plan, slots, sizes, launch if cache is None else Launch.CALLS)
            self._plan.keep_cache()
        except MemoryError as error:
            raise NoRoomError(f"{plan.path} does not fit on {self.device} ({self._card.name}): {error}") from error
        except (CudaError, TensorRtError) as error:
            raise EngineUnavailableError(f"{plan.path.name} does not run on {self.device}: {error}") from error
        self.slots = len(self._slots)
        each = self._plan.activations_bytes + CardSlot.buffers_bytes(self._contract, sizes[-1])
        self.memory_bytes = self._plan.weights_bytes + self.slots * each

    def _add_slots(self, plan: LoadedPlan, slots: int, sizes: tuple[int, ...], launch: Launch) -> None:
        """Make as many of the slots as fit, at least one."""
        for number in range(1, slots + 1):
            try:
                slot = CardSlot(self._cuda, plan, self._contract, sizes, launch)
            except MemoryError as error:
                if number == 1:
                    raise
                log.warning("%s has memory for %d of %d slots: %s", self.device, number - 1, slots, error)
                return
            self._slots.append(slot)
            self._free.put(slot)

    def _release(self) -> None:
        """Free contexts before the engine, and the engine before the runtime. Nothing is freed on a lost GPU."""
        try:
            self._cuda.enter()
            for slot in self._slots:
                slot.drain()
        except CardLostError as error:
            log.error("nothing is given back: %s", error)
            keep_for_ever(self)
            return
        except (CudaError, MemoryError) as error:
            log.warning("before closing: %s", error)
        if self._plan is not None and self._slots:
            self._plan.keep_cache()
        while not self._free.empty():
            self._free.get_nowait()
        while self._slots:
            self._slots.pop().close()
        if self._plan is not None:
            self._plan.close()
            self._plan = None
