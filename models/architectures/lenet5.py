"""LeNet-5 of 1998, layer by layer as in the paper: a classifier of single digits, 32x32 grey."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

CLASSES = 10

# Table I of the paper: the feature maps of S2 that each feature map of C3 sees.
C3_INPUTS = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

# The digits 0 to 9, seven wide and twelve high, side by side. The paper shows its own only as a picture, so these are
# drawn by hand like a seven-segment display with rounded corners. They must differ enough: the nearest, 8 and 0 and 8
# and 3, differ in 10 cells.
_GLYPHS = """
.#####. ...##.. .#####. .#####. ##...## ####### ..####. ####### .#####. .#####.
####### ..###.. ####### ####### ##...## ####### .###### ####### ####### #######
##...## .####.. ##...## ##...## ##...## ##..... ###.... .....## ##...## ##...##
##...## ##.##.. .....## .....## ##...## ##..... ##..... .....## ##...## ##...##
##...## ...##.. ....##. .....## ##...## ######. ##..... ....##. ##...## ##...##
##...## ...##.. ...##.. ..####. ####### ####### ######. ...##.. .#####. #######
##...## ...##.. ..##... ..####. ####### .....## ####### ...##.. .#####. .######
##...## ...##.. .##.... .....## .....## .....## ##...## ..##... ##...## .....##
##...## ...##.. ##..... .....## .....## .....## ##...## ..##... ##...## .....##
##...## ...##.. ##..... ##...## .....## ##...## ##...## ..##... ##...## ....###
####### ####### ####### ####### .....## ####### ####### ..##... ####### ######.
.#####. ####### ####### .#####. .....## .#####. .#####. ..##... .#####. .####..
"""


def bitmaps() -> Tensor:
    """The targets of the output layer, float32 [10, 84]: each digit's cells row by row, ink +1 and background -1."""
    rows = [line.split() for line in _GLYPHS.split("\n") if line]
    digits = [[1.0 if cell == "#" else -1.0 for row in rows for cell in row[digit]] for digit in range(CLASSES)]
    return torch.tensor(digits)


class ScaledTanh(nn.Module):
    """The paper's activation, 1.7159 tanh(2x / 3): 1 at 1 and -1 at -1. Any shape."""

    def forward(self, values: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(values * (2 / 3))


class Subsampling(nn.Module):
    """The sum over 2x2 values, times a learned coefficient and plus a learned bias of each feature map.

    [N, maps, S, S] to [N, maps, S/2, S/2].
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(maps, 1, 1))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return avg_pool2d(maps, kernel_size=2) * (4 * self.coefficient) + self.bias


class PartialConvolution(nn.Module):
    """C3: sixteen 5x5 convolutions `map0` to `map15`, each over its own selection of the six feature maps.

    [N, 6, 14, 14] to [N, 16, 10, 10].
    """

    def __init__(self) -> None:
        super().__init__()
        for number, inputs in enumerate(C3_INPUTS):
            self.add_module(f"map{number}", nn.Conv2d(len(inputs), 1, kernel_size=5))

    def forward(self, maps: Tensor) -> Tensor:
        single = torch.split(maps, 1, dim=1)
        convolutions = self.children()
        chosen = (torch.cat([single[place] for place in inputs], dim=1) for inputs in C3_INPUTS)
        return torch.cat([convolve(part) for convolve, part in zip(convolutions, chosen, strict=True)], dim=1)


class RadialBasis(nn.Module):
    """The output: minus half the squared distance of F6 to the bitmap of each digit. [N, 84] to [N, 10].

    A softmax over it is the posterior of ten Gaussians of unit variance around the bitmaps, as the paper interprets the
    distance. It has no learned values.
    """

    targets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("targets", bitmaps(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        difference = features.unsqueeze(1) - self.targets
        return (difference * difference).sum(dim=2) * -0.5


class LeNet5(nn.Sequential):
    """LeCun, Bottou, Bengio, Haffner 1998, section II.B. Input [N, 1, 32, 32], output logits [N, 10].

    White is -0.1 and black 1.175 in the paper's input, so that the mean is about 0 and the variance about 1. Layers
    have the names of the paper; `tanh1` follows C1, `tanh2` S2, and so on to F6.
    """

    def __init__(self) -> None:
        named: OrderedDict[str, nn.Module] = OrderedDict(
            c1=nn.Conv2d(1, 6, kernel_size=5),
            tanh1=ScaledTanh(),
            s2=Subsampling(6),
            tanh2=ScaledTanh(),
            c3=PartialConvolution(),
            tanh3=ScaledTanh(),
            s4=Subsampling(16),
            tanh4=ScaledTanh(),
            c5=nn.Conv2d(16, 120, kernel_size=5),
            tanh5=ScaledTanh(),
            flatten=nn.Flatten(),
            f6=nn.Linear(120, 84),
            tanh6=ScaledTanh(),
            output=RadialBasis(),
        )
        super().__init__(named)
        _initialise(self)


def _initialise(network: nn.Module) -> None:
    """Uniform weights within 2.4 / sqrt(fan-in), and zero biases.

    The paper divides by the fan-in itself, for strongly correlated inputs. Then the logits of the untrained network
    spread by 0.004, and the loss stays at chance (ln 10) for 30 epochs of `models.architectures.train_lenet5`.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            _uniform(layer.weight, fan_in=layer.weight[0].numel())
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, Subsampling):
            _uniform(layer.coefficient, fan_in=4)


def _uniform(values: Tensor, fan_in: int) -> None:
    bound = 2.4 / math.sqrt(fan_in)
    nn.init.uniform_(values, -bound, bound)


def lenet5() -> LeNet5:
    """The network of the catalog entry `lenet5`: 60,000 parameters, 325,680 multiply-accumulates."""
    return LeNet5()
