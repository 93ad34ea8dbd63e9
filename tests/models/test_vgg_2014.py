"""The columns A-LRN and C of the VGG paper: every layer's maps and parameters against its table 1."""

from dataclasses import dataclass

import pytest
from torch import nn

from models.analysis.cost import Cost
from models.analysis.trace import network_layers
from models.architectures.blocks import LocalResponseNorm
from models.architectures.vgg_2014 import vgg11_lrn, vgg16_c
from models.catalog import InputSpec
from tests.networks import assert_logits_are_spread, learned, noise, seeded

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
class Column:
    """A column by its name, and its untrained network."""

    name: str
    network: nn.Module


@pytest.fixture(scope="module", params=BUILDERS)
def column(request: pytest.FixtureRequest) -> Column:
    """Each column; one at a time, because one takes half a gigabyte."""
    return Column(request.param, seeded(BUILDERS[request.param]))


def test_layers_of_the_table(column: Column) -> None:
    """Convolutions keep the size, each stage ends in its pooling and halves it: 224 to 7, then 4096, 4096, 1000.

    Each weight layer is there under its name with its parameters, and there is no other. Untrained, the logits neither
    vanish nor explode on normalised noise.
    """
    table = network_layers(column.network, InputSpec(crop=224))
    maps: dict[str, tuple[int, ...]] = {}
    parameters, inputs = {}, 3
    for stage, (kernels, channels) in enumerate(COLUMNS[column.name], start=1):
        size = 224 >> (stage - 1)
        for place, kernel in enumerate(kernels, start=1):
            maps[f"stage{stage}.conv{stage}_{place}"] = (channels, size, size)
            parameters[f"stage{stage}.conv{stage}_{place}"] = channels * (inputs * kernel**2 + 1)
            inputs = channels
        maps[f"stage{stage}.pool{stage}"] = (channels, size // 2, size // 2)
    maps |= {f"classifier.fc{place}": (size,) for place, size in ((6, 4096), (7, 4096), (8, 1000))}

    assert {layer.name: layer.output for layer in table.layers if "lrn" not in layer.name} == maps
    assert learned(column.network) == parameters | FULLY_CONNECTED
    assert len(learned(column.network)) == DEPTH[column.name]
    assert table.cost == COSTS[column.name]
    assert_logits_are_spread(column.network, noise(1, 3, 224, 224))


def test_normalisation(column: Column) -> None:
    """A-LRN has one normalisation, after the first convolution and its ReLU, by AlexNet's constants; C has none."""
    found = [layer for layer in column.network.modules() if isinstance(layer, LocalResponseNorm)]
    first = [name for name, _ in column.network.get_submodule("stage1").named_children()]

    if column.name == "vgg16_c":
        assert not found
        return
    assert first == ["conv1_1", "relu1_1", "lrn1_1", "pool1"]
    (layer,) = found
    assert (layer.size, layer.beta, layer.k) == (5, 0.75, 2.0)
    assert layer.alpha / layer.size == pytest.approx(1e-4)
