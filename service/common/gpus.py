"""The NVIDIA GPUs of this machine, as CUDA reports them. Without a driver there are none."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from models.artifact.engine_plan import ComputeCapability

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU: its CUDA index, name and compute capability, and its total and free memory in bytes when queried."""

    index: int
    name: str
    target: ComputeCapability
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Cards:
    """The GPUs that can be used. `reason` says why there are none, or why some cannot be used."""

    found: tuple[Card, ...]
    reason: str = ""


def cuda_runtime() -> ModuleType:
    """Imports `cuda.bindings.runtime`. Raises ImportError with the pip command if it is not installed."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        raise ImportError("cuda-bindings is not installed; run: pip install '.[gpu]'")
    return import_module("cuda.bindings.runtime")


def cuda_message(cudart: Any, error: Any) -> str:
    """CUDA's description of an error code. `cudart` is `cuda.bindings.runtime` or a module with its functions."""
    _, text = cudart.cudaGetErrorString(error)
    return text.decode() if isinstance(text, bytes) else str(text)


def cards(cudart: ModuleType | None = None) -> Cards:
    """Finds the GPUs that this process may use. `cudart` is `cuda.bindings.runtime` or a module with its functions."""
    try:
        cudart = cudart or cuda_runtime()
        count = _checked(cudart, cudart.cudaGetDeviceCount())
    except (ImportError, _CallError) as error:
        return Cards((), str(error))
    found, refused = [], []
    for index in range(count):
        try:
            found.append(_card(cudart, index))
        except _CallError as error:
            refused.append(f"GPU {index} cannot be used: {error}")
    return Cards(tuple(found), "; ".join(refused) if count else "there is no GPU")


def driver_version(file: Path = _DRIVER) -> str | None:
    """The version of the kernel driver, such as 580.82.07, or None without an NVIDIA driver."""
    try:
        line = file.read_text().partition("\n")[0]
    except OSError:
        return None
    return next((word for word in line.split() if word[:1].isdigit() and "." in word), line)


class _CallError(Exception):
    """A CUDA call failed; the message is CUDA's."""


def _card(cudart: ModuleType, index: int) -> Card:
    properties = _checked(cudart, cudart.cudaGetDeviceProperties(index))
    _checked(cudart, cudart.cudaSetDevice(index))
    free, total = _checked(cudart, cudart.cudaMemGetInfo())
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    capability = ComputeCapability(int(properties.major), int(properties.minor))
    return Card(index, name.rstrip("\0"), capability, int(total), int(free))


def _checked(cudart: ModuleType, result: tuple[Any, ...]) -> Any:
    """The values that a call returned. Raises _CallError."""
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        raise _CallError(cuda_message(cudart, error))
    return values[0] if len(values) == 1 else tuple(values)
