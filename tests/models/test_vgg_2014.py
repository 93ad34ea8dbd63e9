"""The columns A-LRN and C of the VGG paper: every layer's maps and parameters against its table 1."""

from dataclasses import dataclass

import pytest
from torch import nn

from models.analysis.cost import Cost
from models.analysis.trace import network_layers
from models.architectures.blocks import LocalResponseNorm
from models.architectures.vgg_2014 import vgg11_lrn, vgg16_c
from models.catalog import InputSpec
from tests.networks import layers, learned, noise, seeded

BUILDERS = {"vgg11_lrn": vgg11_lrn, "vgg16_c": vgg16_c}

# The weight layers of each stage by kernel size, and the maps of the stage: the two columns of table 1.
COLUMNS = {
    "vgg11_lrn": [([3], 64), ([3], 128), ([3, 3], 256), ([3, 3], 512), ([3, 3], 512)],
    "vgg16_c": [([3, 3], 64), ([3, 3], 128), ([3, 3, 1], 256), ([3, 3, 1], 512), ([3, 3, 1], 512)],
}
FULLY_CONNECTED = {
    "classifier.fc6": 4096 * (512 * 49 + 1),
    "classifier.fc7": 4096 * (4096 + 1),
    "classifier.fc8": 1000 * (4096 + 1),
}
COSTS = {"vgg11_lrn": Cost(132_863_336, 7_609_090_048), "vgg16_c": Cost(133_638_952, 11_770_888_192)}
DEPTH = {"vgg11_lrn": 11, "vgg16_c": 16}


@dataclass(frozen=True, slots=True)
class Case:
    """A column by its name, and its network, untrained."""

    name: str
    network: nn.Module


@pytest.fixture(scope="module", params=BUILDERS)
def case(request: pytest.FixtureRequest) -> Case:
    """Each column; one at a time, because one takes half a gigabyte."""
    return Case(request.param, seeded(BUILDERS[request.param]))


def test_parameters_of_each_layer(case: Case) -> None:
    """Each weight layer of the column is there under its name, with its parameters, and there is no other."""
    expected, inputs = {}, 3
    for stage, (kernels, maps) in enumerate(COLUMNS[case.name], start=1):
        for place, kernel in enumerate(kernels, start=1):
            expected[f"stage{stage}.conv{stage}_{place}"] = maps * (inputs * kernel**2 + 1)
            inputs = maps

    assert learned(case.network) == expected | FULLY_CONNECTED
    assert len(learned(case.network)) == DEPTH[case.name]


def test_activation_maps(case: Case) -> None:
    """Convolutions keep the size, each stage ends in its pooling and halves it: 224 to 7, then 4096, 4096, 1000."""
    found = layers(case.network, noise(1, 3, 224, 224))

    for stage, (kernels, maps) in enumerate(COLUMNS[case.name], start=1):
        before, after = 224 >> (stage - 1), 224 >> stage
        for place in range(1, len(kernels) + 1):
            assert found[f"stage{stage}.conv{stage}_{place}"] == (maps, before, before)
        assert [name for name in found if name.startswith(f"stage{stage}.")][-1] == f"stage{stage}.pool{stage}"
        assert found[f"stage{stage}.pool{stage}"] == (maps, after, after)
    assert [found[f"classifier.fc{place}"] for place in (6, 7, 8)] == [(4096,), (4096,), (1000,)]


def test_cost_of_the_whole(case: Case) -> None:
    """Parameters of the paper's table 2, and multiply-accumulates."""
    assert network_layers(case.network, InputSpec(crop=224)).cost == COSTS[case.name]


def test_normalisation(case: Case) -> None:
    """A-LRN has one normalisation, after the first convolution and its ReLU, by AlexNet's constants; C has none."""
    found = {name: layer for name, layer in case.network.named_modules() if isinstance(layer, LocalResponseNorm)}
    first = [name for name, _ in case.network.get_submodule("stage1").named_children()]

    if case.name == "vgg16_c":
        assert not found
        return
    assert first == ["conv1_1", "relu1_1", "lrn1_1", "pool1"]
    (layer,) = found.values()
    assert (layer.size, layer.beta, layer.k) == (5, 0.75, 2.0)
    assert layer.alpha / layer.size == pytest.approx(1e-4)


def test_untrained_logits_neither_vanish_nor_explode(case: Case) -> None:
    """On normalised noise the logits spread by an order of 1, so that a comparison of exports says something."""
    assert 0.05 < case.network(noise(1, 3, 224, 224)).std().item() < 50
