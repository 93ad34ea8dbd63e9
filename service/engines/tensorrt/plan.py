"""Loads a plan with TensorRT, checks it against the graph contract, and makes execution contexts."""

import logging
from dataclasses import dataclass
from typing import Any

from models.artifact.engine_plan import BatchProfile, EnginePlan, PlanError
from models.artifact.files import CacheFile
from service.engines.base import EngineUnavailableError, keep_for_ever
from service.engines.tensorrt.cuda import Cuda
from service.engines.tensorrt.packages import TensorRtLog, logger

IMAGE, PROBABILITIES = "image", "probabilities"
LARGEST_CACHE_BYTES = 100 << 20
"""Limit of the cache of TensorRT for RTX: NVIDIA says that reading a larger one takes longer than it saves."""

_MEMORY = ("outofmemory", "out of memory", "cudaerrormemoryallocation")

log = logging.getLogger(__name__)


class TensorRtError(Exception):
    """TensorRT refused a step. The message is TensorRT's."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The tensors of the model `name`: images of `size` x `size` in, probabilities of `classes` classes out."""

    name: str
    size: int
    classes: int

    @property
    def image(self) -> tuple[int, int, int]:
        return (self.size, self.size, 3)


class LoadedPlan:
    """A TensorRT runtime, an engine and, for RTX, the runtime configuration and cache of its contexts.

    `cache` is the file of RTX's cache, None for TensorRT. Raises EngineUnavailableError if the plan cannot be read or
    does not follow the contract, and the errors of `require`.
    """

    def __init__(self, trt: Any, cuda: Cuda, plan: EnginePlan, contract: Contract, cache: CacheFile | None) -> None:
        self._trt = trt
        self._cuda = cuda
        self._plan = plan
        self._cache_file = cache
        self._log = TensorRtLog()
        self._logger = logger(trt, self._log)
        keep_for_ever(
            self._logger
        )  # TensorRT may use the first logger of a process even after all objects made with it are freed
        self._runtime: Any = None
        self._engine: Any = None
        # The configuration does not keep the cache alive, nor a context the configuration. Without these references
        # TensorRT would read freed memory, and the process would crash.
        self._config: Any = None
        self._cache: Any = None
        try:
            self._load()
            self.profile = self._checked(contract)
            if cache is not None:
                self._configure(cache)
        except BaseException:
            self.close()
            raise

    @property
    def weights_bytes(self) -> int:
        """The memory of the weights on the GPU. If TensorRT cannot report it, the size of the plan."""
        found = int(self._engine.get_engine_stat(self._trt.EngineStat.TOTAL_WEIGHTS_SIZE))
        return found if found > 0 else self._plan.record.size_bytes

    @property
    def activations_bytes(self) -> int:
        """The memory of each context on the GPU."""
        return int(self._engine.device_memory_size_v2)

    def context(self) -> Any:
        """A new context, for one stream. Drop it before `close`. Raises the errors of `require`."""
        if self._config is None:
            made = self._engine.create_execution_context()
        else:
            made = self._engine.create_execution_context(self._config)
        self.require(made, "no execution context")
        self._log.clear()  # TensorRT may have logged errors of layouts that did not fit before it found one that does
        return made

    def require(self, value: Any, refusal: str) -> Any:
        """The value that a step returned. A failed step returns None or False, and the log has the reason.

        Raises CardLostError, MemoryError or TensorRtError then, depending on the log.
        """
        if value is not None and value is not False:
            return value
        text = f"{refusal}: {self._log.last()}"
        lost = self._cuda.loss(" ".join(self._log.errors))
        short = any(sign in error.lower() for error in self._log.errors for sign in _MEMORY)
        self._log.clear()
        raise lost or (MemoryError(text) if short else TensorRtError(text))

    def keep_cache(self) -> None:
        """Write RTX's cache to its file, unless it is too large."""
        if self._cache is None or self._cache_file is None or (content := self._cache.serialize()) is None:
            return
        cache = bytes(content)
        if len(cache) > LARGEST_CACHE_BYTES:
            log.warning("a cache of %d MB is too large to be kept in %s", len(cache) >> 20, self._cache_file.path)
        else:
            self._cache_file.write(cache)

    def close(self) -> None:
        """Free everything in the order of dependencies, unless the GPU is lost. No context may be left."""
        if self._cuda.lost is not None:
            keep_for_ever(self)
            return
        self._config = None
        self._cache = None
        self._engine = None
        self._runtime = None

    def _load(self) -> None:
        try:
            content = self._plan.content()
        except PlanError as error:
            raise EngineUnavailableError(str(error)) from error
        try:
            self._runtime = self._trt.Runtime(self._logger)
        except TypeError as error:  # the binding raises it if TensorRT returned no object
            raise EngineUnavailableError(f"TensorRT does not start: {self._log.last()}") from error
        refusal = f"{self._plan.path} cannot be loaded"
        self._engine = self.require(self._runtime.deserialize_cuda_engine(content), refusal)

    def _checked(self, contract: Contract) -> BatchProfile:
        """The batch profile. Raises EngineUnavailableError if the engine differs from the contract or the record."""
        # No local variable may hold the engine here: a traceback would keep it alive longer than its runtime.
        trt, record, found = self._trt, self._plan.record, self._tensors()
        expected = {
            IMAGE: (trt.TensorIOMode.INPUT, trt.DataType.UINT8, (-1, *contract.image)),
            PROBABILITIES: (trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT, (-1, contract.classes)),
        }
        if found != expected:
            why = f"its tensors are {_named(found)}, not {_named(expected)}"
        else:
            profiles = [
                [tuple(shape) for shape in self._engine.get_tensor_profile_shape(IMAGE, index)]
                for index in range(self._engine.num_optimization_profiles)
            ]
            sizes = record.profile.smallest, record.profile.best, record.profile.largest
            wanted = [(size, *contract.image) for size in sizes]
            if profiles == [wanted]:
                return record.profile
            why = f"its batches are {profiles}, not the {wanted} of its record"
        again = f"topfive export {contract.name} --engine {record.flavour}"
        raise EngineUnavailableError(f"{self._plan.path} is no engine of {contract.name}: {why}; run: {again}")

    def _tensors(self) -> dict[str, tuple[Any, Any, tuple[int, ...]]]:
        """Mode, type and shape of each input and output tensor, by name."""
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {
            name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name)))
            for name in names
        }

    def _configure(self, file: CacheFile) -> None:
        """Configure RTX: its own CUDA graphs, kernels for the shapes that occur, and the cache of kernels."""
        trt = self._trt
        self._config = self.require(self._engine.create_runtime_config(), "no runtime configuration")
        self._cache = self.require(self._config.create_runtime_cache(), "no runtime cache")
        if (saved := file.read()) is not None and not self._cache.deserialize(saved):
            self._log.clear()  # another driver or version wrote it: the file is replaced
        self.require(self._config.set_runtime_cache(self._cache), "the runtime cache was not taken")
        lazy = trt.DynamicShapesKernelSpecializationStrategy.LAZY
        self._config.dynamic_shapes_kernel_specialization_strategy = lazy
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE


def _named(tensors: dict[str, tuple[Any, Any, tuple[int, ...]]]) -> str:
    """The name, type and shape of each tensor, in one line."""
    lines = [f"{name} {kind.name} {list(shape)}" for name, (_, kind, shape) in sorted(tensors.items())]
    return ", ".join(lines) or "none"
