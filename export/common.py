"""Shared by exports, imports and engine builds: errors, a request, progress, and the recorded versions of tools."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from google.protobuf.message import Message

from service.common.packages import package_version

OPSET = 20  # torch's default; TensorRT reads 9 to 24
_TOOLS = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "numpy",
    "pillow",
)


class ExportError(Exception):
    """An export, an import or an engine build fails and writes nothing; the message names the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class QuantizationRequest:
    """The int8 graph to make for CPUs: calibrated on at most `samples` photos below `calibration`.

    Without a folder the photos that come with topfive calibrate it.
    """

    calibration: Path | None = None
    samples: int = 300


class Reporter(Protocol):
    """Receives the progress of an export."""

    def step(self, what: str) -> None:
        """A new step begins."""

    def phase(self, what: str, done: int, total: int) -> None:
        """`done` of `total` parts of the current step are done, of 0 if unknown; any thread may call it."""


def tool_versions() -> dict[str, str]:
    """The versions of the installed packages that an artifact depends on."""
    return {tool: found for tool in _TOOLS if (found := package_version(tool)) is not None}


def strip_metadata(message: Message) -> None:
    """Remove the exporter's notes from an ONNX message: they hold stack traces and paths of the exporting machine."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                strip_metadata(child)
