"""What an export and an import share beside the gate: where their progress goes, and the tools they note."""

from typing import Protocol

from service.common.packages import package_version

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


class Reporter(Protocol):
    """Where the progress of an export goes."""

    def step(self, what: str) -> None:
        """A new step began."""

    def download(self, done: int, total: int) -> None:
        """So many bytes of the weights are here; `total` is 0 where the server does not say."""

    def phase(self, what: str, done: int, total: int) -> None:
        """So many parts of a phase of the present step are done; may come from any thread."""


def tool_versions() -> dict[str, str]:
    """The versions of the packages that an artifact depends on, as far as they are installed."""
    return {tool: found for tool in _TOOLS if (found := package_version(tool)) is not None}
