"""What the course works out for single networks and layers, against what the walk through the network computes."""

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from models.analysis.cost import convolution_macs
from models.analysis.layer_table import Kind, Layer
from models.analysis.trace import network_layers
from models.build import build
from models.catalog import CATALOG, InputSpec


@pytest.fixture(scope="module")
def facts(shared_data: Path) -> dict[str, Any]:
    """The course's own table."""
    return tomllib.loads((shared_data.parent / "reference" / "architectures.toml").read_text(encoding="utf-8"))


def layers(name: str) -> dict[str, Layer]:
    """The layers of a catalog network by name, in the order of the run."""
    return {layer.name: layer for layer in network_layers(build(CATALOG[name]), CATALOG[name].input).layers}


def test_alexnet_2012(facts: dict[str, Any]) -> None:
    """Every activation map is the course's (height, width, maps there), and the special layers stand where it says."""
    found, said = layers("alexnet_2012"), facts["alexnet_2012"]
    names = list(found)
    pools = [layer for layer in found.values() if layer.kind == Kind.MAX_POOLING]
    norms = [name for name, layer in found.items() if layer.kind == Kind.LOCAL_RESPONSE_NORM]
    pooling, overlapping = said["pooling"], said["pooling"]["overlapping"]

    maps = {name: (maps[-1], *maps[:-1]) for name, maps in said["activation_maps"].items()}
    assert {name: found[name].output for name in maps} == maps
    assert [names[names.index(name) - 1] for name in norms] == said["lrn"]["after"]
    before = [next(one for one in reversed(names[: names.index(pool.name)]) if one not in norms) for pool in pools]
    assert before == pooling["after"]
    for pool in pools:
        assert (pool.kernel, pool.stride) == ((pooling["size"],) * 2, (pooling["stride"],) * 2)
        assert overlapping == (pooling["size"] > pooling["stride"])


def test_googlenet_2014(facts: dict[str, Any]) -> None:
    """Each module has the course's widths, at 28x28, 14x14 and 7x7, with real 5x5 kernels in its third branch."""
    found, table = layers("googlenet_2014"), facts["googlenet_2014"]["inception"]
    paths = ("1.conv1x1", "2.conv3x3_reduce", "2.conv3x3", "3.conv5x5_reduce", "3.conv5x5", "4.pool_proj")
    sides, kernels = {"3": 28, "4": 14, "5": 7}, (1, 1, 3, 1, 5, 1)

    assert {name.partition(".")[0] for name in found if "." in name} == {f"inception{module}" for module in table}
    assert len(table) == facts["googlenet_2014"]["inception_modules"]
    for module, widths in table.items():
        rows = [found[f"inception{module}.branch{path}"] for path in paths]
        side = sides[module[0]]
        assert [row.output for row in rows] == [(width, side, side) for width in widths]
        assert [row.kernel for row in rows] == [(kernel, kernel) for kernel in kernels]


def side(size: int, kernel: int, stride: int, padding: int) -> int:
    """Values along one side after a convolution, as the trace of one has it."""
    convolution = nn.Conv2d(3, 1, kernel, stride, padding)
    return network_layers(convolution, InputSpec(crop=size)).layers[0].output[-1]


def test_arithmetic(facts: dict[str, Any]) -> None:
    """Every figure that the course works out for single layers."""
    reduced = [convolution_macs((16, 28, 28), (1, 1), 192), convolution_macs((32, 28, 28), (5, 5), 16)]
    deep = convolution_macs((16, 14, 14), (1, 1), 480) + convolution_macs((48, 14, 14), (5, 5), 16)
    five, three, long, wide = (convolution_macs((1, 1, 1), kernel, 1) for kernel in ((5, 5), (3, 3), (3, 1), (1, 3)))
    perceptron = [224 * 224, 1024, 2048, 4096, 1000]

    assert facts["arithmetic"] == {
        "conv_5x5_direct_macs": convolution_macs((32, 28, 28), (5, 5), 192),
        "conv_5x5_reduced_macs": reduced,
        "conv_5x5_480_direct_macs": convolution_macs((48, 14, 14), (5, 5), 480),
        "conv_5x5_480_reduced_macs": deep,
        "two_3x3_instead_of_5x5": [five, 2 * three],
        "n1_1n_instead_of_3x3": [three, long + wide],
        "fc_7x7x1024_to_1024": convolution_macs((1024, 1, 1), (7, 7), 1024),
        "mlp_224_grey_weights": sum(inputs * outputs for inputs, outputs in pairwise(perceptron)),
        "output_size": [[*case[:4], side(*case[:4])] for case in facts["arithmetic"]["output_size"]],
    }
