"""What the tests of single networks share: a seeded build, learned values, and the exported file's answers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

import service.engines  # noqa: F401 - it turns the statistics of openvino off, so it comes before openvino
from service.common.types import Batch, Probabilities


def seeded(builder: Callable[[], nn.Module]) -> nn.Module:
    """A network in evaluation mode with the same values each time; torch's own generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2014)
        return builder().eval()


def noise(*shape: int) -> Tensor:
    """Seeded normal noise, about what a normalised image is: mean 0, variance 1."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def parameters(module: nn.Module) -> int:
    """The number of learned values."""
    return sum(parameter.numel() for parameter in module.parameters())


def learned(network: nn.Module) -> dict[str, int]:
    """The learned values of each leaf that has any."""
    leaves = {name: module for name, module in network.named_modules() if not list(module.children())}
    return {name: parameters(module) for name, module in leaves.items() if parameters(module)}


def assert_logits_are_spread(network: nn.Module, images: Tensor) -> None:
    """The logits of each image spread by an order of 1, so that training has a gradient and exports compare."""
    with torch.inference_mode():
        spread = network(images).std(dim=1)
    assert ((spread > 0.05) & (spread < 50)).all()


def answers(path: Path, images: Batch) -> dict[str, Probabilities]:
    """The answers of ONNX Runtime and OpenVINO (in f32) from the file."""
    import openvino as ov

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {
        "onnxruntime": np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0]),
        "openvino": np.array(compiled([images])[0]),
    }
