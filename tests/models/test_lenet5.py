"""LeNet-5: every layer against the paper, and the exported file in both engines."""

from pathlib import Path

import pytest
import torch
from torch import nn

from models.analysis.cost import Cost
from models.analysis.trace import network_layers
from models.architectures.lenet5 import LeNet5, RadialBasis, ScaledTanh, Subsampling, bitmaps, lenet5
from models.catalog import Channels, InputSpec
from models.labels import imagenet_labels, read_labels
from tests.networks import assert_logits_are_spread, noise, parameters, seeded

# Section II.B: maps and size of each layer, and its trainable parameters.
MAPS = {
    "c1": (6, 28, 28),
    "s2": (6, 14, 14),
    "s4": (16, 5, 5),
    "c5": (120, 1, 1),
    "f6": (84,),
    "output": (10,),
}
PARAMETERS = {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164, "output": 0}

# Table I of the paper as it is printed: a row for each map of S2, a column for each map of C3.
TABLE_I = """
X . . . X X X . . X X X X . X X
X X . . . X X X . . X X X X . X
X X X . . . X X X . . X . X X X
. X X X . . X X X X . . X . X X
. . X X X . . X X X X . X X . X
. . . X X X . . X X X X . X X X
"""


@pytest.fixture
def network() -> nn.Module:
    """The network, untrained."""
    return seeded(lenet5)


def test_layers_of_the_paper(network: nn.Module) -> None:
    """Every layer has the maps and the trainable parameters of the paper, and each of C1 to F6 an activation after it.

    C3 is sixteen parts. The multiply-accumulates are counted connection by connection. Untrained, the logits neither
    vanish nor explode on normalised noise.
    """
    table = network_layers(network, InputSpec(crop=32, channels=Channels.GREY))
    rows = {layer.name: layer for layer in table.layers}
    c1, c3, c5, f6 = 28**2 * 6 * 25, 10**2 * 25 * (6 * 3 + 9 * 4 + 6), 120 * 400, 120 * 84

    assert {name: row.output for name, row in rows.items() if "." not in name} == MAPS
    assert [rows[f"c3.map{number}"].output for number in range(16)] == [(1, 10, 10)] * 16
    assert {name: parameters(network.get_submodule(name)) for name in PARAMETERS} == PARAMETERS
    assert table.cost == Cost(60_000, c1 + c3 + c5 + f6) == Cost(60_000, 325_680)
    assert (rows["s2"].kind, rows["output"].kind) == ("subsampling", "radial basis")
    assert rows["c5"].receptive_field == (32, 32)
    assert [stage.name for stage in table.stages] == ["c1", "c3", "c5"]
    names = [name for name, _ in network.named_children() if name != "flatten"]
    layers = ["c1", "s2", "c3", "s4", "c5", "f6"]
    assert names == [*(name for place, one in enumerate(layers, 1) for name in (one, f"tanh{place}")), "output"]
    assert sum(value.numel() for value in network.state_dict().values()) == 60_000
    assert_logits_are_spread(network, noise(8, 1, 32, 32))


def test_c3_is_wired_as_table_i(network: nn.Module) -> None:
    """A change of one map of S2 changes the maps of C3 that its row of table I marks, and no other."""
    rows = [line.split() for line in TABLE_I.split("\n") if line]
    c3, maps = network.get_submodule("c3"), noise(1, 6, 14, 14)

    for place, row in enumerate(rows):
        changed = maps.clone()
        changed[:, place] += 1
        with torch.inference_mode():
            seen = (c3(maps) != c3(changed)).flatten(2).any(dim=2)[0]
        assert ["X" if one else "." for one in seen.tolist()] == row


def test_c3_adds_the_maps_in_order(network: nn.Module) -> None:
    """Map 4 of C3 is the convolution of maps 0, 4 and 5 of S2 with its three kernels, in that order."""
    c3, maps = network.get_submodule("c3"), noise(1, 6, 14, 14)
    part = c3.get_submodule("map4")
    assert isinstance(part, nn.Conv2d)

    expected = nn.functional.conv2d(maps[:, [0, 4, 5]], part.weight, part.bias)

    torch.testing.assert_close(c3(maps)[:, 4:5], expected)


def test_subsampling_by_hand() -> None:
    """The sum of four values, not their mean, times the map's own coefficient, plus its own bias."""
    layer = Subsampling(2)
    with torch.no_grad():
        layer.coefficient.copy_(torch.tensor([2.0, -0.5]).view(2, 1, 1))
        layer.bias.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1))
    maps = torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 8.0]]).expand(1, 2, 2, 4)

    assert layer(maps).tolist() == [[[[21.0, 17.0]], [[-2.0, -1.0]]]]


def test_squashing() -> None:
    """Odd, 1 at 1, and never beyond 1.7159."""
    given = ScaledTanh()(torch.tensor([0.0, 1.0, -1.0, 100.0]))

    torch.testing.assert_close(given, torch.tensor([0.0, 1.0, -1.0, 1.7159]), atol=1e-4, rtol=0)


def test_output_is_half_the_squared_distance() -> None:
    """At a digit's own bitmap its logit is zero, and each other's is minus twice the number of cells that differ."""
    targets = bitmaps()

    logits = RadialBasis()(targets)

    differ = (targets.unsqueeze(1) != targets).sum(dim=2)
    assert torch.equal(logits, -2.0 * differ)
    assert torch.equal(logits.diagonal(), torch.zeros(10))


def test_bitmaps_are_ten_digits_far_apart() -> None:
    """Ten bitmaps of 7x12 cells, +1 or -1, any two of which differ in ten cells or more."""
    targets = bitmaps()
    differ = (targets.unsqueeze(1) != targets).sum(dim=2) + 84 * torch.eye(10)

    assert targets.shape == (10, 84)
    assert set(targets.flatten().tolist()) == {-1.0, 1.0}
    assert differ.min() == 10


def test_targets_are_not_learned(network: nn.Module) -> None:
    """A step of training moves every parameter and leaves the bitmaps."""
    assert isinstance(network, LeNet5)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)

    loss = nn.functional.cross_entropy(network(noise(4, 1, 32, 32)), torch.tensor([1, 2, 3, 4]))
    torch.autograd.backward(loss)
    optimiser.step()

    assert all(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    targets = network.get_submodule("output").get_buffer("targets")
    assert torch.equal(targets, bitmaps())


def test_labels_are_the_digits() -> None:
    """The labels are the digits 0 to 9, which have no WordNet id."""
    labels = read_labels(Path(__file__).resolve().parents[2] / "models" / "data" / "digits.csv")

    assert [(label.label, label.wnid) for label in labels] == [(str(digit), "") for digit in range(10)]
    assert len(imagenet_labels()) == 1000
