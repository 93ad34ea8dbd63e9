"""The two columns of the VGG paper's table 1 that torchvision lacks: A-LRN and C."""

from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum

from torch import nn

from models.architectures.blocks import LocalResponseNorm, initialise


class Layer(Enum):
    """A line of the table: a convolution with its ReLU, or a response normalisation."""

    CONV3 = "conv3"
    CONV1 = "conv1"
    LRN = "LRN"


class Stage(nn.Sequential):
    """Stage `number`: its lines of the table, then max pooling 2x2. [N, inputs, S, S] to [N, outputs, S/2, S/2].

    Convolutions are named as the literature does, conv3_2 being the second of stage 3.
    """

    def __init__(self, number: int, inputs: int, outputs: int, layers: Sequence[Layer]) -> None:
        named: OrderedDict[str, nn.Module] = OrderedDict()
        place = 0
        for layer in layers:
            if layer is Layer.LRN:
                named[f"lrn{number}_{place}"] = LocalResponseNorm()
                continue
            place += 1
            size = 3 if layer is Layer.CONV3 else 1
            named[f"conv{number}_{place}"] = nn.Conv2d(inputs, outputs, kernel_size=size, padding=size // 2)
            named[f"relu{number}_{place}"] = nn.ReLU()
            inputs = outputs
        named[f"pool{number}"] = nn.MaxPool2d(kernel_size=2, stride=2)
        super().__init__(named)


class Classifier(nn.Sequential):
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
    """A column of the table, as the layers of each of its five stages. Input [N, 3, 224, 224], logits [N, classes].

    Modules are `stage1` to `stage5` and `classifier`.
    """

    def __init__(self, stages: Sequence[Sequence[Layer]], classes: int = 1000) -> None:
        widths = (3, 64, 128, 256, 512, 512)
        named: OrderedDict[str, nn.Module] = OrderedDict(
            (f"stage{number}", Stage(number, widths[number - 1], widths[number], layers))
            for number, layers in enumerate(stages, start=1)
        )
        super().__init__(named | {"classifier": Classifier(classes)})
        initialise(self)


def vgg11_lrn() -> Vgg:
    """Column A-LRN, 132,863,336 parameters: A with one normalisation, by AlexNet's constants as the paper says."""
    one, two = [Layer.CONV3], [Layer.CONV3, Layer.CONV3]
    return Vgg([[Layer.CONV3, Layer.LRN], one, two, two, two])


def vgg16_c() -> Vgg:
    """Column C, 133,638,952 parameters: the last convolution of stages 3, 4 and 5 is 1x1."""
    two, three = [Layer.CONV3, Layer.CONV3], [Layer.CONV3, Layer.CONV3, Layer.CONV1]
    return Vgg([two, two, three, three, three])
