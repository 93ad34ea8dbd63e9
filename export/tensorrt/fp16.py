"""The network of a catalog entry in half precision: which engines are built from."""

import copy
import logging

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from models.catalog import InputSpec

log = logging.getLogger(__name__)


class Half(nn.Module):
    """A network whose values and maps are float16; input and logits are what they are outside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits in float16, [N, C]."""
        logits: Tensor = self.network(pixels.half())
        return logits


class _InSingle(nn.Module):
    """A layer that computes in float32 between layers in float16."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, maps: Tensor) -> Tensor:
        """The layer's own shape, float16."""
        result: Tensor = self.layer(maps.float())
        return result.half()


def halved(network: nn.Module, spec: InputSpec) -> Half:
    """A copy of `network`, in evaluation mode, that computes in float16.

    Batch norms are folded into the convolutions before them while all is float32: in float16 small variances vanish.
    Local response normalisation stays in float32, because it sums squares. Average pooling to the size that the maps
    have anyway is left out: in float16 the exporter puts a cast on either side of it.
    """
    folded = _folded(network)
    for name, layer in _idle_pools(folded, spec):
        folded.set_submodule(name, nn.Identity())
        log.debug("%s is left out: %s", name, layer)
    for name, layer in list(folded.named_modules()):
        if isinstance(layer, nn.LocalResponseNorm):
            folded.set_submodule(name, _InSingle(layer))
    return Half(folded).eval()


def _folded(network: nn.Module) -> nn.Module:
    """A copy with its batch norms folded, or as it is where there are none or torch.fx cannot follow its code."""
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()):
        return copy.deepcopy(network)
    try:
        return fuse(network)
    except Exception as error:  # tracing runs the network's own code, which may fail in any way
        log.warning("batch norms are not folded before rounding, torch.fx cannot trace the network: %s", error)
        return copy.deepcopy(network)


def _idle_pools(network: nn.Module, spec: InputSpec) -> list[tuple[str, nn.Module]]:
    """The adaptive average pools that give what they get, at that size of input."""
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
