"""The two configurations of the VGG paper that torchvision lacks: columns A-LRN and C of its table 1."""

from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum

from torch import nn

from models.architectures.blocks import LocalResponseNorm, initialise


class VggLayer(Enum):
    """A line of the table: a convolution with its ReLU, or a response normalisation."""

    CONV3 = "conv3"
    CONV1 = "conv1"
    LRN = "LRN"


class VggStage(nn.Sequential):
    """Stage `number`: its layers, then max pooling 2x2. [N, inputs, S, S] to [N, outputs, S/2, S/2].

    Convolutions have the names of the literature: conv3_2 is the second of stage 3.
    """

    def __init__(self, number: int, inputs: int, outputs: int, layers: Sequence[VggLayer]) -> None:
        named: OrderedDict[str, nn.Module] = OrderedDict()
        place = 0
        for layer in layers:
            if layer is VggLayer.LRN:
                named[f"lrn{number}_{place}"] = LocalResponseNorm()
                continue
            place += 1
            size = 3 if layer is VggLayer.CONV3 else 1
            named[f"conv{number}_{place}"] = nn.Conv2d(inputs, outputs, kernel_size=size, padding=size // 2)
            named[f"relu{number}_{place}"] = nn.ReLU()
            inputs = outputs
        named[f"pool{number}"] = nn.MaxPool2d(kernel_size=2, stride=2)
        super().__init__(named)


class VggClassifier(nn.Sequential):
    """The three fully connected layers of every column: [N, 512, 7, 7] to [N, classes]."""

    def __init__(self, classes: int) -> None:
        named: OrderedDict[str, nn.Module] = OrderedDict(
            flatten=nn.Flatten(),
            fc6=nn.Linear(512 * 7 * 7, 4096),
            relu6=nn.ReLU(),
            drop6=nn.Dropout(0.5),
            fc7=nn.Linear(4096, 4096),
            relu7=nn.ReLU(),
            drop7=nn.Dropout(0.5),
            fc8=nn.Linear(4096, classes),
        )
        super().__init__(named)


class Vgg(nn.Sequential):
    """A column of the table. Input [N, 3, 224, 224], output logits [N, classes].

    The modules are `stage1` to `stage5` and `classifier`.
    """

    def __init__(self, stages: Sequence[Sequence[VggLayer]], classes: int = 1000) -> None:
        widths = (3, 64, 128, 256, 512, 512)
        named: OrderedDict[str, nn.Module] = OrderedDict(
            (f"stage{number}", VggStage(number, widths[number - 1], widths[number], layers))
            for number, layers in enumerate(stages, start=1)
        )
        super().__init__(named | {"classifier": VggClassifier(classes)})
        initialise(self)


def vgg11_lrn() -> Vgg:
    """Column A-LRN, 132,863,336 parameters: A with one normalisation, by AlexNet's constants as the paper says."""
    one, two = [VggLayer.CONV3], [VggLayer.CONV3, VggLayer.CONV3]
    return Vgg([[VggLayer.CONV3, VggLayer.LRN], one, two, two, two])


def vgg16_c() -> Vgg:
    """Column C, 133,638,952 parameters: the last convolution of stages 3, 4 and 5 is 1x1."""
    two, three = [VggLayer.CONV3, VggLayer.CONV3], [VggLayer.CONV3, VggLayer.CONV3, VggLayer.CONV1]
    return Vgg([two, two, three, three, three])
