"""A scripted stand-in for TensorRT's runtime, in both flavours, over a `FakeCudart`.

Its network is a known function of each image's bytes. Objects keep nothing alive that they need, so that letting go in
the wrong order shows; every step can be made to fail as TensorRT fails: with None or False and a line of its log.
"""

import json
import weakref
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from models.artifact.engine_plan import Flavour
from service.common.types import Probabilities, Rows
from tests.fake_cuda import Error, FakeCudart, Refused

OUT_OF_MEMORY = Refused("Error Code 2: OutOfMemory (Requested size was 4096 bytes.)")
BROKEN = Refused("Error Code 1: Internal Error (the script says so)")
ACTIVATIONS_BYTES = 4096
WEIGHTS_BYTES = 10_000


def network(rows: Rows, classes: int) -> Probabilities:
    """What the fake computes for each image by itself: positive numbers that depend on all bytes and their places."""
    given = []
    for row in rows:
        flat = row.astype(np.int64).ravel()
        key = int((flat * (np.arange(len(flat)) % 251 + 1)).sum())
        scores = (key * (np.arange(classes, dtype=np.int64) + 7)) % 9973 + 1
        given.append((scores / scores.sum()).astype(np.float32))
    return np.stack(given)


def plan_bytes(size: int, classes: int, profile: tuple[int, int, int], **changes: Any) -> bytes:
    """A plan of the fake; `changes` make it another than the contract asks for."""
    tensors = {
        "image": ["INPUT", "UINT8", [-1, size, size, 3]],
        "probabilities": ["OUTPUT", "FLOAT", [-1, classes]],
    }
    profiles = [[[batch, size, size, 3] for batch in profile]]
    return json.dumps({"tensors": tensors, "profiles": profiles, **changes}).encode()


class Severity(IntEnum):
    """Levels of the log."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class Logger:
    """The base of a logger."""

    Severity = Severity

    def log(self, level: IntEnum, message: str) -> None:
        """Overridden."""


class Mode(Enum):
    """Directions of tensors."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class Kind(Enum):
    """Types of tensors."""

    FLOAT = 0
    HALF = 1
    UINT8 = 2


class Stat(Enum):
    """Figures of an engine."""

    TOTAL_WEIGHTS_SIZE = 0


class FakeTensorRt:
    """The module. `alive` holds the names of its objects that are not yet let go; `misused` is the card's list."""

    ILogger = Logger
    TensorIOMode = Mode
    DataType = Kind
    EngineStat = Stat
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy", EAGER="eager", NONE="none")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled", WHOLE_GRAPH_CAPTURE="whole")

    def __init__(self, cudart: FakeCudart, flavour: Flavour = Flavour.TENSORRT) -> None:
        self.cudart = cudart
        self.flavour = flavour
        self.__version__ = "11.4.0.106" if flavour is Flavour.TENSORRT else "1.7.1.116"
        self.alive: list[str] = []
        self.compiled: set[int] = set()
        self.ran: list[int] = []
        self.contexts: list[dict[str, Any]] = []
        self.loggers: list[weakref.ref[Logger]] = []

    def Runtime(self, logger: Logger) -> Any:
        """A runtime, or the binding's way to say that there is none."""
        if self.refused("Runtime", logger):
            raise TypeError("factory function returned nullptr")
        self.loggers.append(weakref.ref(logger))
        return _Runtime(self, logger)

    def refused(self, step: str, logger: Logger) -> bool:
        """Whether the script lets this step fail; its words go to the log."""
        fault = self.cudart.script.next(step)
        if fault is None:
            return False
        if isinstance(fault, Refused):
            logger.log(Severity.ERROR, fault.words)
            return True
        words = "out of memory" if fault is Error.cudaErrorMemoryAllocation else fault.name
        logger.log(
            Severity.ERROR, f"Error Code 1: Cuda Runtime (In launch at a.cpp:1 (cudaError {int(fault)}: {words}))"
        )
        if fault is Error.cudaErrorIllegalAddress:
            self.cudart.poison = fault
        return True

    def assert_clean(self) -> None:
        """Nothing is left on the card, and nothing was done that a real one punishes."""
        assert self.cudart.live == {}
        assert self.cudart.made == self.cudart.freed
        assert self.cudart.used == 0
        assert self.alive == []
        assert self.cudart.misused == []


class _Object:
    """Something of TensorRT's; what it `needs` must outlive it."""

    name = "object"
    needs: tuple[str, ...] = ()

    def __init__(self, trt: FakeTensorRt, logger: Logger) -> None:
        self.trt = trt
        self._logger = logger
        trt.alive.append(self.name)

    def refused(self, step: str) -> bool:
        """Whether the script lets this step fail."""
        return self.trt.refused(step, self._logger)

    def __del__(self) -> None:
        self.trt.alive.remove(self.name)
        for other in self.needs:
            if other not in self.trt.alive:
                self.trt.cudart.misused.append(f"{self.name} outlived {other}")


class _Runtime(_Object):
    name = "runtime"

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        if self.refused("deserialize_cuda_engine"):
            return None
        if not self.trt.cudart.reserve(WEIGHTS_BYTES):
            self._logger.log(Severity.ERROR, OUT_OF_MEMORY.words)
            return None
        return _Engine(self.trt, self._logger, json.loads(serialized_engine))


class _Engine(_Object):
    name = "engine"
    needs = ("runtime",)
    device_memory_size_v2 = ACTIVATIONS_BYTES

    def __init__(self, trt: FakeTensorRt, logger: Logger, plan: dict[str, Any]) -> None:
        super().__init__(trt, logger)
        self.plan = plan

    def __del__(self) -> None:
        self.trt.cudart.used -= WEIGHTS_BYTES
        super().__del__()

    @property
    def num_io_tensors(self) -> int:
        return len(self.plan["tensors"])

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return str(list(self.plan["tensors"])[index])

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode[self.plan["tensors"][name][0]]

    def get_tensor_dtype(self, name: str) -> Kind:
        return Kind[self.plan["tensors"][name][1]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.plan["tensors"][name][2])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return list(self.plan["profiles"][profile_index])

    def get_engine_stat(self, stat: Stat) -> int:
        return WEIGHTS_BYTES

    def create_runtime_config(self) -> Any:
        return None if self.refused("create_runtime_config") else _Config(self.trt, self._logger)

    def create_execution_context(self, config: Any = None) -> Any:
        if self.refused("create_execution_context"):
            return None
        if not self.trt.cudart.reserve(ACTIVATIONS_BYTES):
            self._logger.log(Severity.ERROR, OUT_OF_MEMORY.words)
            return None
        return _Context(self.trt, self._logger, self.plan, config)


class _Config(_Object):
    name = "config"
    needs = ("engine",)

    def __init__(self, trt: FakeTensorRt, logger: Logger) -> None:
        super().__init__(trt, logger)
        self.cuda_graph_strategy = "disabled"
        self.dynamic_shapes_kernel_specialization_strategy = "eager"
        self.has_cache = False

    def create_runtime_cache(self) -> Any:
        return None if self.refused("create_runtime_cache") else _Cache(self.trt, self._logger)

    def set_runtime_cache(self, cache: Any) -> bool:
        self.has_cache = not self.trt.refused("set_runtime_cache", self._logger)
        return self.has_cache


class _Cache(_Object):
    """The kernels of the batch sizes that ran."""

    name = "cache"
    needs = ("engine",)

    def deserialize(self, blob: bytes) -> bool:
        if self.refused("deserialize"):
            return False
        self.trt.compiled |= set(json.loads(blob))
        return True

    def serialize(self) -> bytes | None:
        if self.refused("serialize"):
            return None
        return json.dumps(sorted(self.trt.compiled)).encode()


class _Context(_Object):
    name = "context"

    def __init__(self, trt: FakeTensorRt, logger: Logger, plan: dict[str, Any], config: Any) -> None:
        self.needs = ("engine", "runtime") if config is None else ("config", "cache", "engine", "runtime")
        super().__init__(trt, logger)
        self._limits = [shape[0] for shape in plan["profiles"][0]]
        self._size, self._classes = plan["tensors"]["image"][2][1], plan["tensors"]["probabilities"][2][1]
        self._addresses: dict[str, int] = {}
        self._batch = 0
        settings = {} if config is None else dict(vars(config))
        trt.contexts.append({name: value for name, value in settings.items() if name not in ("trt", "_logger")})

    def __del__(self) -> None:
        self.trt.cudart.used -= ACTIVATIONS_BYTES
        super().__del__()

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self.refused("set_tensor_address"):
            return False
        self._addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.refused("set_input_shape"):
            self._batch = 0  # what it holds then is not said
            return False
        self._batch = shape[0]
        return bool(self._limits[0] <= shape[0] <= self._limits[2])

    def execute_async_v3(self, stream_handle: int) -> bool:
        cudart = self.trt.cudart
        if self.refused("execute_async_v3"):
            cudart.streams[stream_handle].spoilt = True
            return False
        batch, size, classes = self._batch, self._size, self._classes
        images, answers = self._addresses["image"], self._addresses["probabilities"]
        self.trt.compiled.add(batch)
        self.trt.ran.append(batch)

        def compute() -> None:
            given = cudart.memory[images][: batch * size * size * 3].reshape(batch, size, size, 3)
            content = network(given, classes).tobytes()
            cudart.memory[answers][: len(content)] = np.frombuffer(content, dtype=np.uint8)

        cudart.streams[stream_handle].add(compute)
        return True
