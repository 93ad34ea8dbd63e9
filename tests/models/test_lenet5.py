"""LeNet-5: every layer against the paper, and the exported file in both engines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.gate_images import random_pixels
from export.onnx_writer import write_onnx
from models.analysis.cost import Cost
from models.architectures.lenet5 import LeNet5, RadialBasis, ScaledTanh, Subsampling, bitmaps, lenet5
from models.build import ServedNetwork
from models.catalog import InputSpec
from models.labels import imagenet_labels, read_labels
from tests.networks import answers, layers, noise, parameters, seeded

# Section II.B: maps and size of each layer, and its trainable parameters.
MAPS = {
    "c1": (6, 28, 28),
    "s2": (6, 14, 14),
    "c3": (16, 10, 10),
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


def test_activation_maps(network: nn.Module) -> None:
    """Every layer has the maps of the paper, each of C1 to F6 is followed by its squashing, and C3 is sixteen parts."""
    found = layers(network, noise(1, 1, 32, 32))

    assert {name: found[name] for name in MAPS if name in found} == {n: s for n, s in MAPS.items() if n != "c3"}
    assert [found[f"c3.map{number}"] for number in range(16)] == [(1, 10, 10)] * 16
    assert found["tanh3"] == MAPS["c3"]
    tanh = {f"tanh{place}": MAPS[name] for place, name in enumerate(list(MAPS)[:6], start=1)}
    assert {name: shape for name, shape in found.items() if name.startswith("tanh")} == tanh


def test_parameters_of_each_layer(network: nn.Module) -> None:
    """Each layer has the trainable parameters that the paper counts, 60,000 together, and all are learned."""
    assert {name: parameters(network.get_submodule(name)) for name in PARAMETERS} == PARAMETERS
    assert sum(PARAMETERS.values()) == parameters(network) == 60_000
    assert sum(value.numel() for value in network.state_dict().values()) == 60_000
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_multiply_accumulates(network: nn.Module) -> None:
    """Convolutions and the fully connected layer, connection by connection."""
    c1, c3, c5, f6 = 28**2 * 6 * 25, 10**2 * 25 * (6 * 3 + 9 * 4 + 6), 120 * 400, 120 * 84
    found = layers(network, noise(1, 1, 32, 32))
    macs = sum(
        int(np.prod(found[name])) * layer.weight[0].numel()
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    )

    assert Cost(60_000, macs) == Cost(60_000, c1 + c3 + c5 + f6)
    assert macs == 325_680


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


def test_untrained_logits_neither_vanish_nor_explode(network: nn.Module) -> None:
    """On normalised noise the logits of an image spread by an order of 1 to 10, so that training has a gradient."""
    logits: Tensor = network(noise(8, 1, 32, 32))

    assert ((logits.std(dim=1) > 0.05) & (logits.std(dim=1) < 50)).all()


def test_labels_are_the_digits() -> None:
    """The labels are the digits 0 to 9, which have no WordNet id."""
    labels = read_labels(Path(__file__).resolve().parents[2] / "models" / "data" / "digits.csv")

    assert [(label.label, label.wnid) for label in labels] == [(str(digit), "") for digit in range(10)]
    assert len(imagenet_labels()) == 1000


class Grey(nn.Module):
    """The network for three equal channels, as the served graph has them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the mean of the channels."""
        logits: Tensor = self.network(image.mean(dim=1, keepdim=True))
        return logits


def test_exported_file_gives_what_pytorch_gives(network: nn.Module, tmp_path: Path) -> None:
    """The split into maps and the distances compute no index, and both engines agree at a batch not exported."""
    spec = InputSpec(resize=32, crop=32, mean=(0.0784314,) * 3, std=(0.7843137,) * 3)
    served, path = ServedNetwork(Grey(network), spec).eval(), tmp_path / "model.onnx"
    write_onnx(served, spec, 10, path)
    images = random_pixels(spec, 5)
    with torch.inference_mode():
        expected = served(torch.from_numpy(images)).numpy()

    for given in answers(path, images).values():
        np.testing.assert_allclose(given, expected, atol=1e-4)
    assert np.abs(expected - 0.1).max() > 0.1  # far from uniform, so that agreement says something
