"""ONNX Runtime on the CPU or on an NVIDIA GPU. Never falls back to another device."""

import numpy as np
import onnxruntime as ort

from models.artifact.artifact import Artifact
from service.common.gpus import Card
from service.common.types import EngineInfo, Probabilities, Rows, Runtime
from service.engines.base import (
    CPU,
    CardLostError,
    Engine,
    EngineUnavailableError,
    held_bytes,
    keep_for_ever,
)
from service.engines.tensorrt.cuda import tells_of_loss

_PROVIDERS = {Runtime.ONNXRUNTIME: "CPUExecutionProvider", Runtime.ONNXRUNTIME_CUDA: "CUDAExecutionProvider"}
_CUDA_OPTIONS = {
    "use_tf32": "0",  # else GPUs since Ampere round the inputs of convolutions to 10 bits, and still report f32
    "cudnn_conv_algo_search": "HEURISTIC",  # the default searches again at each new batch size
}
_NO_FALLBACK = "session.disable_cpu_ep_fallback"
_SPINNING = "session.intra_op.allow_spinning"


def has_cuda() -> bool:
    """Whether this ONNX Runtime was built with CUDA. Only opening an engine shows whether there is a GPU."""
    return _PROVIDERS[Runtime.ONNXRUNTIME_CUDA] in ort.get_available_providers()


def providers() -> tuple[str, ...]:
    """The execution providers that this ONNX Runtime was built with, by ONNX Runtime's names."""
    return tuple(ort.get_available_providers())


def version() -> str:
    """The version of ONNX Runtime, whichever package brought it."""
    return str(ort.__version__)


class OnnxRuntimeEngine(Engine):
    """One session, called by `slots` threads. Together they use `slots` times `threads` threads."""

    def __init__(
        self,
        artifact: Artifact,
        runtime: Runtime,
        *,
        slots: int,
        threads: int,
        max_batch: int,
        card: Card | None = None,
    ) -> None:
        self.slots = slots
        self.max_batch = max_batch
        index = card.index if card else 0
        self.device = f"cuda:{index}" if runtime is Runtime.ONNXRUNTIME_CUDA else CPU
        self._runtime = runtime
        provider = _PROVIDERS[runtime]
        options = ort.SessionOptions()
        # The session's pool is shared by its callers, each of which works too: together slots * threads.
        options.intra_op_num_threads = slots * (threads - 1) + 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; they are raised as well
        options.add_session_config_entry(_SPINNING, "0")  # spinning would take the cores that decode images
        provider_options: dict[str, str] = {}
        if runtime is Runtime.ONNXRUNTIME_CUDA:
            options.add_session_config_entry(_NO_FALLBACK, "1")
            provider_options = {**_CUDA_OPTIONS, "device_id": str(index)}
            ort.preload_dlls()
        try:
            self._session = ort.InferenceSession(artifact.graph, options, providers=[(provider, provider_options)])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class but this
            raise EngineUnavailableError(f"ONNX Runtime cannot run {provider}: {error}") from error
        # Without the CUDA libraries or a driver ONNX Runtime logs a line and takes the CPU.
        if (got := self._session.get_providers()[0]) != provider:
            raise EngineUnavailableError(f"ONNX Runtime was asked for {provider} and chose {got}; see its log above")
        self.input_size = artifact.manifest.input.crop
        self.memory_bytes = held_bytes(artifact.graph.stat().st_size, slots * max_batch, self.input_size)

    def run(self, rows: Rows) -> Probabilities:
        try:
            (probabilities,) = self._session.run(["probabilities"], {"image": np.asarray(rows)})
        except Exception as error:
            if "Failed to allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            if tells_of_loss(str(error)):
                keep_for_ever(self._session)  # freeing it calls the GPU; if that fails, ONNX Runtime aborts
                raise CardLostError(f"ONNX Runtime: {error}") from error
            raise
        return np.asarray(probabilities, dtype=np.float32)

    def describe(self) -> EngineInfo:
        return EngineInfo(self._runtime, ort.__version__, self.device, "f32")

    def close(self) -> None:
        del self._session
