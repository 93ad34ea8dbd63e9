"""Arithmetic of layers: parameters and multiply-accumulates. Importing it loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one image: learned parameters, and multiply-accumulates of convolutions and fully connected layers."""

    parameters: int
    macs: int


def convolution_macs(output: tuple[int, int, int], kernel: tuple[int, int], inputs: int, groups: int = 1) -> int:
    """Multiply-accumulates of a convolution with `output` = (channels, height, width) and `inputs` channels."""
    return prod(output) * prod(kernel) * (inputs // groups)


def network_cost(network: nn.Module, crop: int) -> Cost:
    """Cost of `network` in evaluation mode on one image of `crop` x `crop` pixels, found by running it once.

    A layer that the run does not reach (an auxiliary head) counts neither parameters nor operations.
    """
    import torch
    from torch import nn

    macs = 0
    reached: dict[int, int] = {}

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        reached.update((id(parameter), parameter.numel()) for parameter in module.parameters(recurse=False))
        if isinstance(module, nn.Conv2d):
            _, channels, height, width = output.shape
            kernel = (module.kernel_size[0], module.kernel_size[1])
            macs += convolution_macs((channels, height, width), kernel, module.in_channels, module.groups)
        elif isinstance(module, nn.Linear):
            macs += module.in_features * module.out_features

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, crop, crop))
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(parameters=sum(reached.values()), macs=macs)
