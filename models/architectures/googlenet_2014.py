"""GoogLeNet as in the paper, with 5x5 branches and response normalisation, and without batch norm."""

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.architectures.blocks import LocalResponseNorm, initialise


class Widths(NamedTuple):
    """Output channels of each convolution of an inception module: a row of the paper's table 1, in its order."""

    conv1x1: int
    conv3x3_reduce: int
    conv3x3: int
    conv5x5_reduce: int
    conv5x5: int
    pool_proj: int

    @property
    def outputs(self) -> int:
        """Output channels of the module: the sum of its four branches."""
        return self.conv1x1 + self.conv3x3 + self.conv5x5 + self.pool_proj


class Branch(nn.Sequential):
    """Named layers, one after the other."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__(OrderedDict(layers))


class Inception(nn.Module):
    """Four branches over the same input, concatenated: [N, inputs, S, S] to [N, outputs, S, S]."""

    def __init__(self, inputs: int, widths: Widths) -> None:
        super().__init__()
        self.branch1 = Branch({"conv1x1": nn.Conv2d(inputs, widths.conv1x1, kernel_size=1), "relu": nn.ReLU()})
        self.branch2 = Branch(
            {
                "conv3x3_reduce": nn.Conv2d(inputs, widths.conv3x3_reduce, kernel_size=1),
                "relu_reduce": nn.ReLU(),
                "conv3x3": nn.Conv2d(widths.conv3x3_reduce, widths.conv3x3, kernel_size=3, padding=1),
                "relu": nn.ReLU(),
            }
        )
        self.branch3 = Branch(
            {
                "conv5x5_reduce": nn.Conv2d(inputs, widths.conv5x5_reduce, kernel_size=1),
                "relu_reduce": nn.ReLU(),
                "conv5x5": nn.Conv2d(widths.conv5x5_reduce, widths.conv5x5, kernel_size=5, padding=2),
                "relu": nn.ReLU(),
            }
        )
        self.branch4 = Branch(
            {
                "pool": nn.MaxPool2d(kernel_size=3, stride=1, padding=1),
                "pool_proj": nn.Conv2d(inputs, widths.pool_proj, kernel_size=1),
                "relu": nn.ReLU(),
            }
        )

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([self.branch1(maps), self.branch2(maps), self.branch3(maps), self.branch4(maps)], dim=1)


class AuxiliaryHead(Branch):
    """A classifier half-way, which gives gradients to the layers below: [N, inputs, 14, 14] to [N, classes]."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(
            {
                "pool": nn.AvgPool2d(kernel_size=5, stride=3),
                "conv": nn.Conv2d(inputs, 128, kernel_size=1),
                "relu_conv": nn.ReLU(),
                "flatten": nn.Flatten(),
                "fc1": nn.Linear(128 * 4 * 4, 1024),
                "relu_fc": nn.ReLU(),
                "dropout": nn.Dropout(0.7),
                "fc2": nn.Linear(1024, classes),
            }
        )


class TrainingLogits(NamedTuple):
    """Logits of the network and of its two heads, each [N, classes]; the paper weights the heads' losses by 0.3."""

    logits: Tensor
    aux1: Tensor
    aux2: Tensor


def _halve() -> nn.MaxPool2d:
    """3x3 with stride 2, rounded up, because 112 becomes 56."""
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)


def _normalise() -> LocalResponseNorm:
    """The paper gives no constants; these are from BVLC's reimplementation, so that its weights would fit."""
    return LocalResponseNorm(size=5, alpha=1e-4 / 5, beta=0.75, k=1.0)


class GoogLeNet2014(nn.Module):
    """Szegedy et al. 2014, table 1. Input [N, 3, 224, 224], output logits [N, classes].

    In training, with both of `aux1` and `aux2`, it gives TrainingLogits. Either may be set to None.
    """

    aux1: AuxiliaryHead | None
    aux2: AuxiliaryHead | None

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3)
        self.relu1 = nn.ReLU()
        self.pool1 = _halve()
        self.lrn1 = _normalise()
        self.conv2_reduce = nn.Conv2d(64, 64, kernel_size=1)
        self.relu2_reduce = nn.ReLU()
        self.conv2 = nn.Conv2d(64, 192, kernel_size=3, padding=1)
        self.relu2 = nn.ReLU()
        self.lrn2 = _normalise()
        self.pool2 = _halve()
        self.inception3a = Inception(192, Widths(64, 96, 128, 16, 32, 32))
        self.inception3b = Inception(256, Widths(128, 128, 192, 32, 96, 64))
        self.pool3 = _halve()
        self.inception4a = Inception(480, Widths(192, 96, 208, 16, 48, 64))
        self.aux1 = AuxiliaryHead(512, classes)
        self.inception4b = Inception(512, Widths(160, 112, 224, 24, 64, 64))
        self.inception4c = Inception(512, Widths(128, 128, 256, 24, 64, 64))
        self.inception4d = Inception(512, Widths(112, 144, 288, 32, 64, 64))
        self.aux2 = AuxiliaryHead(528, classes)
        self.inception4e = Inception(528, Widths(256, 160, 320, 32, 128, 128))
        self.pool4 = _halve()
        self.inception5a = Inception(832, Widths(256, 160, 320, 32, 128, 128))
        self.inception5b = Inception(832, Widths(384, 192, 384, 48, 128, 128))
        self.pool5 = nn.AvgPool2d(kernel_size=7, stride=1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(1024, classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor | TrainingLogits:
        early = self.inception4a(self._to_pool3(image))
        late = self.inception4d(self.inception4c(self.inception4b(early)))
        maps = self.inception5b(self.inception5a(self.pool4(self.inception4e(late))))
        logits: Tensor = self.fc(self.dropout(self.flatten(self.pool5(maps))))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return TrainingLogits(logits, self.aux1(early), self.aux2(late))
        return logits

    def _to_pool3(self, image: Tensor) -> Tensor:
        """[N, 3, 224, 224] to [N, 480, 14, 14]."""
        maps = self.lrn1(self.pool1(self.relu1(self.conv1(image))))
        maps = self.relu2(self.conv2(self.relu2_reduce(self.conv2_reduce(maps))))
        maps = self.inception3a(self.pool2(self.lrn2(maps)))
        pooled: Tensor = self.pool3(self.inception3b(maps))
        return pooled


def googlenet_2014() -> GoogLeNet2014:
    """The network of the catalog entry `googlenet_2014`: 6,998,552 parameters, 13,378,280 with the heads."""
    return GoogLeNet2014()
