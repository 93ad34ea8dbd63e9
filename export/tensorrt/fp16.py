"""Converts the network of a catalog entry to float16, for the graph that an engine is built from."""

import copy
import logging

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from models.catalog import InputSpec

log = logging.getLogger(__name__)


class HalfNetwork(nn.Module):
    """A network with weights and feature maps in float16; it takes float32 and gives logits in float16, [N, C]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixels.half())
        return logits


class _Float32Layer(nn.Module):
    """A layer that computes in float32 between layers in float16."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.layer(maps.float())
        return result.half()


def to_half(network: nn.Module, spec: InputSpec) -> HalfNetwork:
    """A copy of `network` in evaluation mode that computes in float16.

    Batch norms are folded into the convolutions before them in float32, because small variances vanish in float16.
    Local response normalisation stays in float32, because it sums squares. An average pooling that keeps the size of
    its feature map is removed, because the exporter puts a cast on either side of it.
    """
    folded = _fold_batch_norms(network)
    for name, layer in _idle_poolings(folded, spec):
        folded.set_submodule(name, nn.Identity())
        log.debug("%s is left out: %s", name, layer)
    for name, layer in list(folded.named_modules()):
        if isinstance(layer, nn.LocalResponseNorm):
            folded.set_submodule(name, _Float32Layer(layer))
    return HalfNetwork(folded).eval()


def _fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy with its batch norms folded; unchanged if there are none or torch.fx cannot trace the network."""
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()):
        return copy.deepcopy(network)
    try:
        return fuse(network)
    except Exception as error:  # tracing runs the network's own code, which may fail in any way
        log.warning("batch norms are not folded before rounding, torch.fx cannot trace the network: %s", error)
        return copy.deepcopy(network)


def _idle_poolings(network: nn.Module, spec: InputSpec) -> list[tuple[str, nn.Module]]:
    """The adaptive average poolings that keep the size of their feature map for an input of `spec`."""
    idle = []
    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.AdaptiveAvgPool2d):

            def note(pool: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                if inputs[0].shape == output.shape:
                    idle.append((name, pool))

            hooks.append(layer.register_forward_hook(note))
    with torch.inference_mode():
        network(torch.zeros(1, len(spec.channels.matrix), spec.crop, spec.crop))
    for hook in hooks:
        hook.remove()
    return idle
