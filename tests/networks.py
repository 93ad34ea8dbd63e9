"""What the tests of single networks share: a seeded build, every layer's shape, and the exported file's answers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

import service.engines  # noqa: F401 - it turns the statistics of openvino off, so it comes before openvino
from service.common.types import Batch, Probabilities


def seeded(builder: Callable[[], nn.Module]) -> nn.Module:
    """A network in evaluation mode with the same values each time; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2014)
        return builder().eval()


def noise(*shape: int) -> Tensor:
    """Normal noise, as a normalised image is about: mean 0, variance 1."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def layers(network: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    """The output of each leaf that `image` reaches, in order: its path, and its shape without the batch."""
    found: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name, module in network.named_modules():
        if not list(module.children()):

            def note(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                found[name] = tuple(output.shape[1:])

            hooks.append(module.register_forward_hook(note))
    with torch.inference_mode():
        network(image)
    for hook in hooks:
        hook.remove()
    return found


def parameters(module: nn.Module) -> int:
    """Learned values in it."""
    return sum(parameter.numel() for parameter in module.parameters())


def learned(network: nn.Module) -> dict[str, int]:
    """Learned values of each leaf that has any."""
    leaves = {name: module for name, module in network.named_modules() if not list(module.children())}
    return {name: parameters(module) for name, module in leaves.items() if parameters(module)}


def answers(path: Path, images: Batch) -> dict[str, Probabilities]:
    """What ONNX Runtime and OpenVINO (in f32) make of the file."""
    import openvino as ov

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {
        "onnxruntime": np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0]),
        "openvino": np.array(compiled([images])[0]),
    }
