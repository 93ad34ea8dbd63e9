"""The layers of networks: their costs, maps, receptive fields and stages, against papers and against arithmetic."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model

from models.analysis.cost import Cost
from models.analysis.layer_table import Kind, Layer, LayerTable
from models.analysis.trace import network_layers
from models.architectures.lenet5 import RadialBasis, Subsampling
from models.build import build
from models.catalog import CATALOG, Architecture, Channels, InputSpec
from tests.models.test_googlenet_2014 import TABLE

BASE = [one for one in CATALOG if "@" not in one.name]


@cache
def traced(name: str) -> tuple[LayerTable, int]:
    """The table of a catalog network at its own input size, and how many parameters the network has."""
    network = build(CATALOG[name])
    table = network_layers(network, CATALOG[name].input)
    return table, sum(parameter.numel() for parameter in network.parameters())


def layers_of(name: str) -> LayerTable:
    """The table of a catalog network at its own input size."""
    return traced(name)[0]


def of(network: nn.Module, size: int = 8) -> LayerTable:
    """The table of any network that takes three channels."""
    return network_layers(network, InputSpec(resize=size, crop=size))


def rows(table: LayerTable) -> dict[str, Layer]:
    """The rows by name."""
    return {layer.name: layer for layer in table.layers}


@pytest.mark.parametrize("architecture", BASE, ids=lambda one: one.name)
def test_catalog(architecture: Architecture) -> None:
    """The figures in the catalog are those of the network that it builds, and the sums of its layers and stages.

    Each row has a map, a field as large as those it comes from, and a kernel where it is one of a kernel.
    """
    table, parameters = traced(architecture.name)

    assert table.cost == Cost(architecture.parameters, architecture.macs)
    assert table.cost.parameters == parameters
    assert sum(stage.macs for stage in table.stages) == architecture.macs
    assert sum(stage.parameters for stage in table.stages) == architecture.parameters
    assert sum(stage.layers for stage in table.stages) == len(table.layers)
    assert len({stage.name for stage in table.stages}) == len(table.stages)
    assert sum(table.share(layer.macs) for layer in table.layers) == pytest.approx(100)
    assert table.input == (len(architecture.input.channels.matrix), architecture.input.crop, architecture.input.crop)
    assert table.layers[0].input == table.input
    assert table.layers[-1].output[0] == architecture.classes
    for layer in table.layers:
        assert all(layer.input)
        assert all(layer.output)
        assert layer.receptive_field is not None
        assert layer.stage
        if layer.kind in (Kind.CONVOLUTION, Kind.DEPTHWISE, Kind.MAX_POOLING, Kind.AVERAGE_POOLING):
            assert layer.kernel
            assert layer.stride
            assert layer.padding is not None
            assert (layer.groups is None) == ("pooling" in layer.kind)


def test_alexnet() -> None:
    """Every map of AlexNet and every receptive field, as the literature has them."""
    table = layers_of("alexnet")

    assert [(layer.kind, layer.output, layer.receptive_field) for layer in table.layers] == [
        (Kind.CONVOLUTION, (64, 55, 55), (11, 11)),
        (Kind.MAX_POOLING, (64, 27, 27), (19, 19)),
        (Kind.CONVOLUTION, (192, 27, 27), (51, 51)),
        (Kind.MAX_POOLING, (192, 13, 13), (67, 67)),
        (Kind.CONVOLUTION, (384, 13, 13), (99, 99)),
        (Kind.CONVOLUTION, (256, 13, 13), (131, 131)),
        (Kind.CONVOLUTION, (256, 13, 13), (163, 163)),
        (Kind.MAX_POOLING, (256, 6, 6), (195, 195)),
        (Kind.FULLY_CONNECTED, (4096,), (355, 355)),
        (Kind.FULLY_CONNECTED, (4096,), (355, 355)),
        (Kind.FULLY_CONNECTED, (1000,), (355, 355)),
    ]
    assert [stage.name for stage in table.stages] == ["features 1", "features 2", "features 3", "classifier"]
    assert (table.layers[0].kernel, table.layers[0].stride, table.layers[0].padding) == ((11, 11), (4, 4), (2, 2))


def test_vgg16() -> None:
    """Five stages of convolutions, each ended by its pooling, and the classifier with nine tenths of the weights."""
    table = layers_of("vgg16")

    assert [(stage.name, stage.layers, stage.output, stage.receptive_field) for stage in table.stages] == [
        ("features 1", 3, (64, 112, 112), (6, 6)),
        ("features 2", 3, (128, 56, 56), (16, 16)),
        ("features 3", 4, (256, 28, 28), (44, 44)),
        ("features 4", 4, (512, 14, 14), (100, 100)),
        ("features 5", 4, (512, 7, 7), (212, 212)),
        ("classifier", 3, (1000,), (404, 404)),
    ]
    assert table.stages[-1].parameters == 123_642_856
    assert rows(table)["classifier.0"].parameters == 25088 * 4096 + 4096
    assert table.share(table.stages[-1].macs) == pytest.approx(0.799, abs=1e-3)


def test_resnet50() -> None:
    """conv1 with its pooling, four stages, and the head; torchvision strides in the 3x3, which gives a field of 427."""
    table = layers_of("resnet50")

    assert [(stage.name, stage.output, stage.receptive_field) for stage in table.stages] == [
        ("conv1", (64, 56, 56), (11, 11)),
        ("layer1", (256, 56, 56), (35, 35)),
        ("layer2", (512, 28, 28), (91, 91)),
        ("layer3", (1024, 14, 14), (267, 267)),
        ("layer4", (2048, 7, 7), (427, 427)),
        ("fc", (1000,), (619, 619)),
    ]
    assert rows(table)["layer4.0.downsample.0"].receptive_field == (267, 267)
    assert rows(table)["avgpool"].kind == Kind.GLOBAL_AVERAGE_POOLING


def test_googlenet() -> None:
    """Each inception module is a stage with the widths of the paper's table 1 and what its convolutions add up to.

    Batch norms stand for biases, and 3x3 for the paper's 5x5.
    """
    table = layers_of("googlenet")
    stages = {stage.name: stage for stage in table.stages}

    assert list(stages) == ["conv1", "conv2", "conv3", *(f"inception{name}" for name in TABLE), "fc"]
    inputs = 192
    for name, (side, outputs, (one, reduce3, three, reduce5, five, pool), _) in TABLE.items():
        stage = stages[f"inception{name}"]
        weights = inputs * (one + reduce3 + reduce5 + pool) + 9 * (reduce3 * three + reduce5 * five)
        norms = 2 * (one + reduce3 + three + reduce5 + five + pool)
        halved = side // 2 if name in ("3b", "4e") else side  # the pooling after them

        assert stage.parameters == weights + norms
        assert stage.macs == weights * side * side
        assert stage.output == (outputs, halved, halved)
        inputs = outputs


def test_efficientnet() -> None:
    """The stages are the blocks of `features`; a depthwise convolution is named so, and a gate sees the whole image."""
    table = layers_of("efficientnet_b0")
    by_name = rows(table)

    assert [stage.name for stage in table.stages] == [*(f"features.{n}" for n in range(9)), "classifier"]
    assert table.stages[0].layers == 2
    assert by_name["features.1.0.block.0.0"].kind == Kind.DEPTHWISE
    assert by_name["features.1.0.block.0.0"].groups == 32
    assert by_name["features.1.0.block.0.0"].receptive_field == (7, 7)
    assert by_name["features.1.0.block.1.avgpool"].receptive_field == (7 + 111 * 2, 7 + 111 * 2)
    assert by_name["avgpool"].stage == "classifier"


def test_other_stages() -> None:
    """Blocks inside `features` are stages; single layers around them are named by the first with weights."""
    densenet = [stage.name for stage in layers_of("densenet121").stages]
    squeezenet = [stage.name for stage in layers_of("squeezenet1_1").stages]
    inception = [stage.name for stage in layers_of("inception_v3").stages]

    blocks = ["denseblock1", "transition1", "denseblock2", "transition2", "denseblock3", "transition3", "denseblock4"]
    assert densenet == [*(f"features.{name}" for name in ["conv0", *blocks, "norm5"]), "classifier"]
    assert squeezenet == [*(f"features.{n}" for n in (0, 3, 4, 6, 7, 9, 10, 11, 12)), "classifier"]
    assert inception[:2] == ["Conv2d_1a_3x3", "Conv2d_2a_3x3"]
    assert inception[-2:] == ["Mixed_7c", "fc"]


def test_functions_are_rows() -> None:
    """Pooling written as a function is a row of the module that calls it; asymmetric kernels keep both sides."""
    by_name = rows(layers_of("inception_v3"))
    pooling = by_name["Mixed_5b.average_pooling"]

    assert (pooling.kind, pooling.kernel, pooling.stride, pooling.padding) == (
        Kind.AVERAGE_POOLING,
        (3, 3),
        (1, 1),
        (1, 1),
    )
    assert by_name["Mixed_6a.max_pooling"].output == (288, 17, 17)
    assert by_name["Mixed_6b.branch7x7_2.conv"].kernel == (1, 7)
    assert by_name["Mixed_6b.branch7x7_2.conv"].padding == (0, 3)
    seen = by_name["Mixed_6b.branch7x7_2.conv"].receptive_field
    assert seen is not None
    assert seen[0] < seen[1]
    assert rows(layers_of("tiny"))["global_average_pooling"].kernel == (4, 4)


def support(network: nn.Module, size: int) -> tuple[int, int]:
    """Height and width of the pixels that the middle of the output, in all channels, depends on, by its gradient.

    Weights are positive and maxima are means, so that no path is closed or cancelled.
    """
    network = network.double().eval()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 1 / parameter[0].numel())
    image = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    output: Tensor = network(image)
    middle = output[0, :, output.shape[2] // 2, output.shape[3] // 2]
    (gradient,) = torch.autograd.grad(middle.sum(), image)
    seen = gradient[0, 0] != 0
    return int(seen.any(dim=1).sum()), int(seen.any(dim=0).sum())


class Averages(nn.MaxPool2d):
    """A max pooling that takes the mean, through which every gradient passes."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        """The means."""
        return functional.avg_pool2d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode)


def smoothed(network: nn.Module) -> nn.Module:
    """The same with `Averages` for each max pooling."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(
                    module, name, Averages(child.kernel_size, child.stride, child.padding, ceil_mode=child.ceil_mode)
                )
    return network


@pytest.mark.parametrize(
    ("name", "last", "size"),
    [("alexnet", "features", 480), ("squeezenet1_1", "features", 480), ("resnet18", "layer3", 480)],
)
def test_fields_against_gradients(name: str, last: str, size: int) -> None:
    """The receptive field is as wide as the pixels that change the middle of the map, measured by a gradient."""
    whole = get_model(name, weights=None)
    children = dict(whole.named_children())
    names = list(children)[: list(children).index(last) + 1]
    network = smoothed(nn.Sequential(*(children[one] for one in names)))
    table = of(network, size)
    largest = [layer.receptive_field for layer in table.layers if layer.receptive_field]

    assert support(network, size) == (max(high for high, _ in largest), max(wide for _, wide in largest))
    assert largest[-1][0] < size


def test_kernels_by_axis() -> None:
    """Kernels, strides and dilations that differ by axis are followed on each, as a gradient measures it."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, (1, 7), stride=(1, 2)), nn.Conv2d(4, 4, (5, 1), dilation=(3, 1)), nn.AvgPool2d((3, 2))
    )
    last = of(network, 64).layers[-1]

    assert last.receptive_field == (1 + 4 * 3 + 2, 7 + 1 * 2)
    assert support(network, 64) == last.receptive_field
    assert (last.kernel, last.stride) == ((3, 2), (3, 2))


def test_output_size() -> None:
    """A side of N gives (N + 2P - F) / S + 1 values: the four cases of the course by F, S and P."""
    cases = {(3, 1, 0): 5, (3, 2, 0): 3, (3, 1, 1): 7, (3, 2, 1): 4}

    assert {case: of(nn.Conv2d(3, 1, *case), 7).layers[0].output[-1] for case in cases} == cases


class Squeezed(nn.Module):
    """A gate over the whole map, a sum, a product and a concatenation, all written as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 4, 5, padding=2)
        self.narrow = nn.Conv2d(3, 4, 3, padding=1)
        self.gate = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.out = nn.Linear(8 * 8 * 8, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Two numbers."""
        wide, narrow = functional.relu(self.wide(image)), functional.relu(self.narrow(image))
        gate = torch.sigmoid(self.gate(narrow.mean((2, 3))))[:, :, None, None]
        both = torch.cat([wide + narrow, narrow * gate], dim=1) * self.scale
        result: Tensor = self.out(functional.dropout(both, training=self.training).flatten(1))
        return result


def test_functional_network() -> None:
    """Sums, products, concatenations and reshapes are no rows; what they carry is followed; own values are counted."""
    network = Squeezed()
    table = of(network)

    assert [(layer.name, layer.kind, layer.output, layer.receptive_field) for layer in table.layers] == [
        ("wide", Kind.CONVOLUTION, (4, 8, 8), (5, 5)),
        ("narrow", Kind.CONVOLUTION, (4, 8, 8), (3, 3)),
        ("global_average_pooling", Kind.GLOBAL_AVERAGE_POOLING, (4,), (10, 10)),
        ("gate", Kind.FULLY_CONNECTED, (4,), (10, 10)),
        ("out", Kind.FULLY_CONNECTED, (2,), (17, 17)),
        ("squeezed", "squeezed", (2,), (17, 17)),
    ]
    assert table.layers[-1].parameters == 8
    assert table.cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert table.cost.macs == 64 * (4 * 75 + 4 * 27) + 16 + 1024


def test_own_modules() -> None:
    """A module of an own kind is one row named by its class, with its kernel; fixed values are no parameters."""
    network = nn.Sequential(nn.Conv2d(1, 6, 5), Subsampling(6), nn.Tanh(), nn.LocalResponseNorm(5))
    network.extend([nn.Conv2d(6, 84, 2), nn.Flatten(), RadialBasis()])
    table = network_layers(network, InputSpec(resize=8, crop=8, channels=Channels.GREY))

    assert [(layer.name, layer.kind, layer.output, layer.parameters) for layer in table.layers] == [
        ("0", Kind.CONVOLUTION, (6, 4, 4), 156),
        ("1", "subsampling", (6, 2, 2), 12),
        ("3", Kind.LOCAL_RESPONSE_NORM, (6, 2, 2), 0),
        ("4", Kind.CONVOLUTION, (84, 1, 1), 84 * 25),
        ("6", "radial basis", (10,), 0),
    ]
    assert (table.layers[1].kernel, table.layers[1].stride) == ((2, 2), (2, 2))
    assert [layer.receptive_field for layer in table.layers] == [(5, 5), (6, 6), (6, 6), (8, 8), (8, 8)]
    assert [layer.stage for layer in table.layers] == ["0", "0", "4", "4", "4"]
    assert table.input == (1, 8, 8)


def test_pooling_over_the_whole_map() -> None:
    """An adaptive pooling that keeps the map is no row, and a pooling over the whole map is a global one."""
    kept = of(nn.AdaptiveAvgPool2d(8))

    assert kept.layers == ()
    assert kept.share(0) == 0
    assert of(nn.AvgPool2d(8)).layers[0].kind == Kind.GLOBAL_AVERAGE_POOLING


def test_transposed_convolution() -> None:
    """What has no defined cost is refused, not counted wrongly."""
    with pytest.raises(ValueError, match="transposed convolution"):
        of(nn.ConvTranspose2d(3, 3, 2))


class Branches(nn.Module):
    """A network that uses one layer twice and another only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 1, bias=False)
        self.auxiliary = nn.Linear(10, 10)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        """Twice through the same layer."""
        twice: Tensor = self.norm(self.shared(self.shared(image)))
        return self.auxiliary(twice.flatten(1)) if self.training else twice


def test_shared_and_unreached_layers() -> None:
    """A layer used twice is two rows with its parameters once; one that is not reached is none."""
    table = of(Branches(), 4)

    assert [(layer.name, layer.parameters, layer.macs) for layer in table.layers] == [
        ("shared", 9, 9 * 16),
        ("shared", 0, 9 * 16),
        ("norm", 6, 0),
    ]


def test_leaves_nothing_behind() -> None:
    """A network in training is left as it was: modes, values, buffers and hooks; also where its run fails."""
    network = nn.Sequential(Branches(), nn.BatchNorm2d(3)).train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    of(network, 4)
    broken = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(99, 3, 1))
    with pytest.raises(RuntimeError):
        of(broken, 4)

    assert [network.training, network[0].training, network[1].training] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for module in (*network.modules(), *broken.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.is_grad_enabled()
    assert not any(value.is_meta for value in network.parameters())
