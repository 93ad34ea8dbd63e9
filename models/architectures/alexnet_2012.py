"""The AlexNet that won in 2012, with two groups, response normalisation and overlapping pooling."""

from collections import OrderedDict

from torch import nn

from models.architectures.blocks import LocalResponseNorm, initialise


def _features() -> dict[str, nn.Module]:
    """[N, 3, 227, 227] to [N, 256, 6, 6]; each group of conv2, conv4 and conv5 ran on a graphics GPU of its own."""
    return {
        "conv1": nn.Conv2d(3, 96, kernel_size=11, stride=4),
        "relu1": nn.ReLU(),
        "lrn1": LocalResponseNorm(),
        "pool1": nn.MaxPool2d(kernel_size=3, stride=2),
        "conv2": nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
        "relu2": nn.ReLU(),
        "lrn2": LocalResponseNorm(),
        "pool2": nn.MaxPool2d(kernel_size=3, stride=2),
        "conv3": nn.Conv2d(256, 384, kernel_size=3, padding=1),
        "relu3": nn.ReLU(),
        "conv4": nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2),
        "relu4": nn.ReLU(),
        "conv5": nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2),
        "relu5": nn.ReLU(),
        "pool5": nn.MaxPool2d(kernel_size=3, stride=2),
    }


def _classifier(classes: int) -> dict[str, nn.Module]:
    """[N, 256, 6, 6] to [N, classes]."""
    return {
        "flatten": nn.Flatten(),
        "fc6": nn.Linear(256 * 6 * 6, 4096),
        "relu6": nn.ReLU(),
        "drop6": nn.Dropout(0.5),
        "fc7": nn.Linear(4096, 4096),
        "relu7": nn.ReLU(),
        "drop7": nn.Dropout(0.5),
        "fc8": nn.Linear(4096, classes),
    }


class AlexNet2012(nn.Sequential):
    """Krizhevsky, Sutskever, Hinton 2012. Input [N, 3, 227, 227], output logits [N, classes].

    The paper prints 224 pixels, but only 227 give the 55x55 feature maps that it counts.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__(OrderedDict(_features() | _classifier(classes)))
        initialise(self)


def alexnet_2012() -> AlexNet2012:
    """The network of the catalog entry `alexnet_2012`: 60,965,224 parameters, 724,406,816 multiply-accumulates."""
    return AlexNet2012()
