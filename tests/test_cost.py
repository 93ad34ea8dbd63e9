"""Parameters and multiply-accumulates: of every network in the catalog, of single layers, and by hand."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from models.build import build
from models.catalog import CATALOG, Architecture
from models.cost import Cost, convolution_macs, network_cost


@pytest.mark.parametrize("architecture", [one for one in CATALOG if "@" not in one.name], ids=lambda one: one.name)
def test_catalog(architecture: Architecture) -> None:
    """The figures in the catalog are those of the network that it builds, without its training-only parts."""
    network = build(architecture)
    cost = network_cost(network, architecture.input.crop)

    assert cost == Cost(architecture.parameters, architecture.macs)
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("architecture", "tag"),
    [(one, weights.tag) for one in CATALOG for weights in one.weight_sets if weights.file is None],
)
def test_operations_of_torchvision(architecture: Architecture, tag: str) -> None:
    """Multiply-accumulates are within 0.1 % of what torchvision publishes, which it rounds to millions."""
    published = get_model_weights(architecture.source.partition(":")[2])[tag].meta["_ops"]

    assert architecture.macs / 1e9 == pytest.approx(published, rel=1e-3, abs=5e-4)


# Figures of the lectures and papers, as in architectures.toml, [arithmetic]
@pytest.mark.parametrize(
    ("output", "kernel", "inputs", "macs"),
    [
        ((32, 28, 28), (5, 5), 192, 120_422_400),
        ((16, 28, 28), (1, 1), 192, 2_408_448),
        ((32, 28, 28), (5, 5), 16, 10_035_200),
        ((48, 14, 14), (5, 5), 480, 112_896_000),
        ((16, 14, 14), (1, 1), 480, 1_505_280),
        ((48, 14, 14), (5, 5), 16, 3_763_200),
        ((1024, 1, 1), (7, 7), 1024, 51_380_224),
        ((1, 1, 1), (5, 5), 1, 25),
        ((1, 1, 1), (3, 1), 1, 3),
    ],
    ids=["5x5", "5x5: 1x1 before", "5x5: reduced", "5x5 of 480", "480: 1x1 before", "480: reduced", "fc", "25", "3x1"],
)
def test_convolution(output: tuple[int, int, int], kernel: tuple[int, int], inputs: int, macs: int) -> None:
    """A convolution costs its outputs times its kernel times its input channels."""
    assert convolution_macs(output, kernel, inputs) == macs


def test_reductions() -> None:
    """Factored convolutions save what the papers say: 28 % for two 3x3, 33 % for 3x1 with 1x3, 90 % for 1x1 first."""
    three, long, wide = (convolution_macs((1, 1, 1), kernel, 1) for kernel in ((3, 3), (3, 1), (1, 3)))
    five = convolution_macs((1, 1, 1), (5, 5), 1)
    reduced = convolution_macs((16, 28, 28), (1, 1), 192) + convolution_macs((32, 28, 28), (5, 5), 16)

    assert (five, 2 * three) == (25, 18)
    assert (three, long + wide) == (9, 6)
    assert reduced == 12_443_648


def test_groups() -> None:
    """Each output of a grouped convolution sees only the channels of its group."""
    whole = convolution_macs((256, 27, 27), (5, 5), 96)

    assert convolution_macs((256, 27, 27), (5, 5), 96, groups=2) == whole // 2
    assert network_cost(nn.Conv2d(3, 6, 3, groups=3, bias=False), 10) == Cost(6 * 9, 6 * 8 * 8 * 9)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "output"),
    [(7, 3, 1, 0, 5), (7, 3, 2, 0, 3), (7, 3, 1, 1, 7), (7, 3, 2, 1, 4)],
)
def test_output_size(size: int, kernel: int, stride: int, padding: int, output: int) -> None:
    """Stride and padding count through the size of the output, (N + 2P - F) / S + 1."""
    layer = nn.Conv2d(3, 1, kernel, stride=stride, padding=padding)

    assert network_cost(layer, size) == Cost(3 * kernel**2 + 1, 3 * kernel**2 * output**2)


def test_fully_connected() -> None:
    """A fully connected layer costs one multiply-accumulate per weight; its bias is a parameter and costs none."""
    assert network_cost(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10)), 4) == Cost(490, 480)


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
    """A layer used twice has its parameters once and its operations twice; one that is not reached counts nothing."""
    assert network_cost(Branches(), 4) == Cost(parameters=9 + 6, macs=2 * 9 * 16)


def test_leaves_nothing_behind() -> None:
    """Counting leaves no hook in the network, also where its run fails."""
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(99, 3, 1))
    with pytest.raises(RuntimeError):
        network_cost(network, 4)

    assert not any(layer._forward_hooks for layer in network.modules())
    assert torch.is_grad_enabled()
