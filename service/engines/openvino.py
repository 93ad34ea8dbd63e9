"""OpenVINO on the CPU, the default if there is no accelerator.

bf16 uses AMX or AVX-512-BF16 instructions, int8 uses AMX or VNNI on a graph of its own.
"""

import queue
from pathlib import Path
from threading import Lock

import numpy as np
import openvino as ov
from openvino import CompiledModel, Core, InferRequest

from models.artifact.artifact import Artifact
from service.common.types import EngineInfo, Precision, Probabilities, Rows, Runtime
from service.engines.base import CPU, Engine, EngineUnavailableError, held_bytes

_DEVICE = "CPU"

# OpenVINO sets the locale of the process to C while it reads or writes a graph, and then restores the old one. Two
# threads that do so at once may leave the process with C, in which Python reads text files and pipes as ASCII.
_ONE_AT_A_TIME = Lock()


def has_bf16() -> bool:
    """Whether OpenVINO reports that this CPU computes in bf16."""
    return "BF16" in Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine(Engine):
    """One compiled model with `slots` streams of `threads` threads each.

    `graph` is the int8 graph of the artifact for int8, and its model.onnx otherwise.
    """

    def __init__(
        self,
        artifact: Artifact,
        precision: Precision,
        *,
        slots: int,
        threads: int,
        max_batch: int,
        graph: Path | None = None,
    ) -> None:
        graph = graph or artifact.graph
        self.slots = slots
        self.max_batch = max_batch
        self.device = CPU
        if precision is Precision.BF16 and not has_bf16():
            raise EngineUnavailableError("this CPU has no bf16 instructions (AMX or AVX-512-BF16); use --precision f32")
        # Without the precision OpenVINO would choose bf16 by itself on a CPU that has it. Layers of an int8 graph that
        # are not quantized run in f32: bf16 there was 0.7 times as fast.
        hint = str(Precision.F32 if precision is Precision.INT8 else precision)
        properties: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": slots,
            "INFERENCE_NUM_THREADS": slots * threads,
            "ENABLE_CPU_PINNING": False,  # with pinning an inference was once seen never to return
        }
        try:
            with _ONE_AT_A_TIME:
                compiled = Core().compile_model(graph, _DEVICE, properties)
        except RuntimeError as error:
            raise EngineUnavailableError(f"OpenVINO cannot run {graph}: {_reason(error)}") from error
        if (got := compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()) != hint:
            raise EngineUnavailableError(f"OpenVINO was asked for {hint} but chose {got}")
        self.input_size = artifact.manifest.input.crop
        self.memory_bytes = held_bytes(artifact.graph.stat().st_size, slots * max_batch, self.input_size)
        self._compiled: CompiledModel | None = compiled
        self._requests: queue.SimpleQueue[InferRequest] = queue.SimpleQueue()
        for _ in range(slots):
            self._requests.put(compiled.create_infer_request())
        self._precision = precision

    def run(self, rows: Rows) -> Probabilities:
        if self._compiled is None:
            raise RuntimeError("the engine is closed")  # its requests are gone, so waiting for one would never end
        request = self._requests.get()
        try:
            result = request.infer([np.ascontiguousarray(rows)], share_inputs=True)
            return np.array(result[0], dtype=np.float32)
        except RuntimeError as error:
            if "alloc" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise
        finally:
            self._requests.put(request)

    def describe(self) -> EngineInfo:
        return EngineInfo(Runtime.OPENVINO, ov.__version__.partition("-")[0], self.device, self._precision)

    def close(self) -> None:
        while not self._requests.empty():
            self._requests.get_nowait()
        self._compiled = None


def _reason(error: RuntimeError) -> str:
    """OpenVINO's reason in one line, without the names of its source files."""
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith("Exception from"))
