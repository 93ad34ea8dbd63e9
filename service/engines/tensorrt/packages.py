"""Imports TensorRT or TensorRT for RTX, which have the same interface. Uses no GPU."""

import ctypes
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from models.artifact.engine_plan import Flavour
from service.common.packages import package_version
from service.engines.base import INSTALL, EngineUnavailableError

# The packages that have the library's version; any of them may be installed
_PACKAGES = {
    Flavour.TENSORRT: ("tensorrt_cu13_bindings", "tensorrt_cu13", "tensorrt"),
    Flavour.TENSORRT_RTX: ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13", "tensorrt_rtx"),
}
# NVIDIA's plugin for ONNX Runtime contains the libraries that the bindings of the same version need.
_RTX_BINDINGS, _RTX_LIBRARIES = "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
_RTX_FILES = ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")


def is_installed(flavour: Flavour) -> bool:
    """Whether the packages of the flavour are installed. Imports nothing."""
    if flavour is Flavour.TENSORRT:
        return find_spec("tensorrt") is not None
    return find_spec("tensorrt_rtx") is not None or all(map(find_spec, (_RTX_BINDINGS, _RTX_LIBRARIES)))


def installed_version(flavour: Flavour) -> str | None:
    """The installed version, or None if there is none or it is unknown.

    If pip did not make the installation, the module is imported and asked. Its libraries take a second to load.
    """
    if not is_installed(flavour):
        return None
    if (found := package_version(*_PACKAGES[flavour])) is not None:
        return found
    try:
        return str(module(flavour).__version__)
    except EngineUnavailableError:
        return None


def module(flavour: Flavour) -> ModuleType:
    """The Python module of the flavour. Raises EngineUnavailableError if it is not installed or its libraries fail."""
    if not is_installed(flavour):
        raise EngineUnavailableError(f"{flavour} is not installed; run: {INSTALL[flavour]}")
    try:
        if flavour is Flavour.TENSORRT:
            return import_module("tensorrt")
        if find_spec("tensorrt_rtx") is not None:
            return import_module("tensorrt_rtx")
        _load_rtx_libraries()
        return import_module(_RTX_BINDINGS)
    except (ImportError, OSError) as error:
        raise EngineUnavailableError(f"{flavour} is installed but cannot be loaded: {error}") from error


def _load_rtx_libraries() -> None:
    """Load the libraries for the whole process. The bindings then find them without LD_LIBRARY_PATH."""
    spec = find_spec(_RTX_LIBRARIES)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0])
    for pattern in _RTX_FILES:
        if not (found := sorted(folder.glob(pattern))):
            raise ImportError(f"{folder} holds no {pattern}")
        ctypes.CDLL(str(found[-1]), ctypes.RTLD_GLOBAL)


@dataclass(frozen=True, slots=True)
class TensorRtLog:
    """The errors and warnings that TensorRT logged. Most failing calls only return None and log the reason."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def last(self, count: int = 3) -> str:
        """The last errors, or a sentence that there are none."""
        return "; ".join(self.errors[-count:]) or "TensorRT gave no reason"

    def clear(self) -> None:
        """Drop earlier messages, which would not explain a later failure."""
        self.errors.clear()
        self.warnings.clear()


def logger(trt: ModuleType, log: TensorRtLog) -> Any:
    """A logger of that module that writes to `log`, from any thread, and prints nothing."""
    severity = trt.ILogger.Severity

    class Listener(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                log.errors.append(message)
            elif level == severity.WARNING:
                log.warnings.append(message)

    return Listener()
