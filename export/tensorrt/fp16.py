"""Converts the network of a catalog entry to float16, for the graph that an engine is built from."""

import copy
import logging

from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

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


def to_half(network: nn.Module) -> HalfNetwork:
    """A copy of `network` in evaluation mode that computes in float16.

    Batch norms are folded into the convolutions before them in float32, because small variances vanish in float16.
    Local response normalisation stays in float32, because it sums squares.
    """
    folded = _fold_batch_norms(network)
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
