"""Builds the PyTorch network of a catalog entry, and wraps it for serving. Imports torch."""

from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.catalog import Architecture, Channels, InputSpec

SEED = 2014


def build(architecture: Architecture) -> nn.Module:
    """The network of that entry in evaluation mode, without its training-only submodules (auxiliary heads).

    Its weights are the network's own initialisation from `SEED`; torch's global generator does not change.
    """
    module, _, function = architecture.source.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if module == "torchvision":
            from torchvision.models import get_model

            network = get_model(function, weights=None, **architecture.options)
        else:
            network = getattr(import_module(module), function)(**architecture.options)
    if not isinstance(network, nn.Module):
        raise TypeError(f"{architecture.source} gave a {type(network).__name__}, not a torch module")
    for name in architecture.training_only:
        setattr(network, name, None)
    return network.eval()


class ServedNetwork(nn.Module):
    """A network with the graph contract: `image`, uint8 [N, S, S, 3] RGB, to `probabilities`, float32 [N, C].

    The network gets the channels of `spec`, [N, 3, S, S] or for grey [N, 1, S, S], each normalised.

    The cast comes first because TensorRT transposes no uint8. `contiguous` comes last because channels-last strides
    make the exporter replace each global pooling by index arithmetic on the batch axis.
    """

    scale: Tensor
    shift: Tensor
    colour: Tensor | None

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.network = network
        colour = torch.tensor(spec.channels.matrix)
        channels = len(colour)
        mean, std = torch.tensor(spec.mean[:channels]), torch.tensor(spec.std[:channels])
        self.register_buffer("scale", (1 / (255 * std)).view(1, channels, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, channels, 1, 1), persistent=False)
        mixed = spec.channels is not Channels.RGB
        self.register_buffer("colour", colour.view(channels, 3, 1, 1) if mixed else None, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        if self.colour is not None:
            pixels = functional.conv2d(pixels, self.colour)
        logits = self.network(pixels * self.scale + self.shift)
        return torch.softmax(logits.float(), dim=1)
