"""GoogLeNet of the paper: each row of its table 1, the auxiliary heads, and the exported file in both engines."""

import pytest
import torch
from torch import nn

from models.analysis.cost import Cost
from models.analysis.layer_table import LayerTable
from models.analysis.trace import network_layers
from models.architectures.googlenet_2014 import TrainingLogits, googlenet_2014
from models.catalog import InputSpec
from tests.networks import assert_logits_are_spread, learned, noise, parameters, seeded

# Table 1: output size, maps of the output, then #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj, and the ops
# in millions: multiply-accumulates, rounded to within one. The paper prints 54 for 5a, whose own columns give 51.
TABLE = {
    "3a": (28, 256, (64, 96, 128, 16, 32, 32), 128),
    "3b": (28, 480, (128, 128, 192, 32, 96, 64), 304),
    "4a": (14, 512, (192, 96, 208, 16, 48, 64), 73),
    "4b": (14, 512, (160, 112, 224, 24, 64, 64), 88),
    "4c": (14, 512, (128, 128, 256, 24, 64, 64), 100),
    "4d": (14, 528, (112, 144, 288, 32, 64, 64), 119),
    "4e": (14, 832, (256, 160, 320, 32, 128, 128), 170),
    "5a": (7, 832, (256, 160, 320, 32, 128, 128), 51),
    "5b": (7, 1024, (384, 192, 384, 48, 128, 128), 71),
}
# The params column in thousands, which comes within 11 % of what the paper's own columns give.
PARAMS = {"3a": 159, "3b": 380, "4a": 364, "4b": 437, "4c": 463, "4d": 580, "4e": 840, "5a": 1072, "5b": 1388}
PATHS = ("1.conv1x1", "2.conv3x3_reduce", "2.conv3x3", "3.conv5x5_reduce", "3.conv5x5", "4.pool_proj")

OUTSIDE = {
    "conv1": (64, 112, 112),
    "pool1": (64, 56, 56),
    "lrn1": (64, 56, 56),
    "conv2_reduce": (64, 56, 56),
    "conv2": (192, 56, 56),
    "lrn2": (192, 56, 56),
    "pool2": (192, 28, 28),
    "pool3": (480, 14, 14),
    "pool4": (832, 7, 7),
    "pool5": (1024, 1, 1),
    "fc": (1000,),
}


def without_heads(network: nn.Module) -> nn.Module:
    """The same network without its auxiliary heads, as it is served."""
    for head in ("aux1", "aux2"):
        setattr(network, head, None)
    return network


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The untrained network without the auxiliary heads."""
    return without_heads(seeded(googlenet_2014))


@pytest.fixture(scope="module")
def table(network: nn.Module) -> LayerTable:
    """Its layers."""
    return network_layers(network, InputSpec(crop=224))


def test_maps_outside_the_modules(table: LayerTable) -> None:
    """112, 56, 28, 14, 7, 1: the output sizes of table 1, with normalisation where figure 3 has it."""
    outside = {layer.name: layer.output for layer in table.layers if "." not in layer.name}

    assert outside == OUTSIDE
    assert list(outside) == list(OUTSIDE)


@pytest.mark.parametrize("module", TABLE)
def test_module_of_the_table(table: LayerTable, module: str) -> None:
    """Each convolution has the maps of its column at the size of the row.

    The module has the parameters and operations that its columns ask for; the paper's figures are these, rounded.
    """
    size, _, columns, ops = TABLE[module]
    one, three_reduce, three, five_reduce, five, proj = columns
    inputs = dict(zip(TABLE, [192, *(row[1] for row in TABLE.values())], strict=False))[module]
    weights = inputs * (one + three_reduce + five_reduce + proj) + 9 * three_reduce * three + 25 * five_reduce * five
    rows = {layer.name: layer for layer in table.layers}
    layers = [rows[f"inception{module}.branch{path}"] for path in PATHS]
    (stage,) = (stage for stage in table.stages if stage.name == f"inception{module}")

    assert [layer.output for layer in layers] == [(column, size, size) for column in columns]
    assert [layer.kernel for layer in layers] == [(side, side) for side in (1, 1, 3, 1, 5, 1)]
    assert stage.parameters == weights + sum(columns)
    assert stage.macs == weights * size**2
    assert abs(stage.macs / 1e6 - ops) < 1
    assert stage.parameters / 1e3 == pytest.approx(PARAMS[module], rel=0.11)


def test_branches_lie_side_by_side(network: nn.Module) -> None:
    """A module keeps the size, and its output is the four branches in the order of the table."""
    inception = network.get_submodule("inception3a")
    inputs = noise(1, 192, 28, 28)

    with torch.inference_mode():
        output = inception(inputs)
        branches = [inception.get_submodule(f"branch{place}")(inputs) for place in (1, 2, 3, 4)]

    assert [branch.shape[1] for branch in branches] == [64, 128, 32, 32]
    assert torch.equal(output, torch.cat(branches, dim=1))


def test_whole_network(network: nn.Module, table: LayerTable) -> None:
    """6,998,552 parameters are served; 22 layers with parameters lie on the longest way; no layer is a batch norm."""
    inside = [name for name in learned(network) if name.startswith("inception")]

    assert table.cost == Cost(parameters=6_998_552, macs=1_582_671_872)
    assert parameters(network) == 6_998_552
    assert len(inside) == 9 * 6
    assert len(learned(network)) - len(inside) + 9 * 2 == 22
    assert not [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert_logits_are_spread(network, noise(1, 3, 224, 224))


def test_heads_are_for_training_only() -> None:
    """With both heads, training gives three sets of logits and evaluation one; without, training gives one too."""
    network = seeded(googlenet_2014)
    image = noise(2, 3, 224, 224)
    with torch.inference_mode():
        alone = network(image)
        together = network.train()(image)
        without = without_heads(network)(image)

    assert isinstance(together, TrainingLogits)
    assert [tuple(part.shape) for part in together] == [(2, 1000)] * 3
    assert isinstance(alone, torch.Tensor)
    assert isinstance(without, torch.Tensor)
    assert network.eval()(image).equal(alone)


def test_parameters_of_the_heads() -> None:
    """A head is 1x1 to 128 maps on 4x4, then 1024 and 1000: the first on 512 maps, the second on 528."""
    network = seeded(googlenet_2014)
    rest = 1024 * (128 * 16 + 1) + 1000 * (1024 + 1)
    with torch.inference_mode():
        pooled = network.get_submodule("aux1.pool")(noise(1, 512, 14, 14))
    dropouts = {name: layer.p for name, layer in network.named_modules() if isinstance(layer, nn.Dropout)}

    assert parameters(network.get_submodule("aux1")) == 128 * (512 + 1) + rest
    assert parameters(network.get_submodule("aux2")) == 128 * (528 + 1) + rest
    assert parameters(network) == 13_378_280
    assert pooled.shape == (1, 512, 4, 4)
    assert dropouts == {"aux1.dropout": 0.7, "aux2.dropout": 0.7, "dropout": 0.4}
