"""AlexNet of 2012: every layer against the paper's figures, and its response normalisation against the formula."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from models.analysis.cost import Cost
from models.analysis.layer_table import Kind
from models.analysis.trace import network_layers
from models.architectures.alexnet_2012 import alexnet_2012
from models.architectures.blocks import LocalResponseNorm
from models.catalog import InputSpec
from tests.networks import answers, assert_logits_are_spread, learned, noise, seeded

# Channels, height, width after each step, as the paper's figure 2 and section 3.5 give them.
MAPS = {
    "conv1": (96, 55, 55),
    "lrn1": (96, 55, 55),
    "pool1": (96, 27, 27),
    "conv2": (256, 27, 27),
    "lrn2": (256, 27, 27),
    "pool2": (256, 13, 13),
    "conv3": (384, 13, 13),
    "conv4": (384, 13, 13),
    "conv5": (256, 13, 13),
    "pool5": (256, 6, 6),
    "fc6": (4096,),
    "fc7": (4096,),
    "fc8": (1000,),
}
# Weights and biases by hand: maps x (inputs of one group x kernel x kernel + 1).
PARAMETERS = {
    "conv1": 96 * (3 * 121 + 1),
    "conv2": 256 * (48 * 25 + 1),
    "conv3": 384 * (256 * 9 + 1),
    "conv4": 384 * (192 * 9 + 1),
    "conv5": 256 * (192 * 9 + 1),
    "fc6": 4096 * (9216 + 1),
    "fc7": 4096 * (4096 + 1),
    "fc8": 1000 * (4096 + 1),
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The untrained network."""
    return seeded(alexnet_2012)


def test_layers_of_the_paper(network: nn.Module) -> None:
    """Every step has the maps of the paper in its order, its groups and its overlapping pooling (section 3.4)."""
    rows = {layer.name: layer for layer in network_layers(network, InputSpec(crop=227)).layers}
    pools = [layer for name, layer in rows.items() if name.startswith("pool")]

    assert {name: layer.output for name, layer in rows.items()} == MAPS
    assert [layer.groups for name, layer in rows.items() if name.startswith("conv")] == [1, 2, 1, 2, 2]
    assert [(layer.kernel, layer.stride, layer.padding) for layer in pools] == [((3, 3), (2, 2), (0, 0))] * 3
    assert (rows["lrn1"].kind, rows["lrn1"].parameters) == (Kind.LOCAL_RESPONSE_NORM, 0)
    assert rows["lrn1"].receptive_field == rows["conv1"].receptive_field == (11, 11)
    assert rows["pool5"].receptive_field == (195, 195)
    names = [name for name, _ in network.named_children()]
    assert names[:8] == [f"{kind}{place}" for place in (1, 2) for kind in ("conv", "relu", "lrn", "pool")]


def test_cost(network: nn.Module) -> None:
    """60,965,224 parameters and 724,406,816 multiply-accumulates: two groups, not the ungrouped drawing.

    Untrained, the logits neither vanish nor explode on normalised noise.
    """
    assert learned(network) == PARAMETERS
    assert network_layers(network, InputSpec(crop=227)).cost == Cost(parameters=60_965_224, macs=724_406_816)
    assert_logits_are_spread(network, noise(1, 3, 227, 227))


def by_formula(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Section 3.3 written out: channel i of [N, C, H, W] over (2 + 1e-4 * sum of a_j², j from i-2 to i+2) ** 0.75."""
    result = np.empty_like(values)
    channels = values.shape[1]
    for i in range(channels):
        window = values[:, max(0, i - 2) : min(channels - 1, i + 2) + 1]
        result[:, i] = values[:, i] / (2 + 1e-4 * (window**2).sum(axis=1)) ** 0.75
    return result


# Large enough that alpha decides: a mean taken for a sum would change the largest by a half.
VALUES = 150 * noise(3, 8, 5, 6)


def test_normalisation_is_the_formula_of_the_paper(network: nn.Module) -> None:
    """Both layers divide by what section 3.3 says: alpha times a sum of squares, where torch's own takes a mean."""
    expected = by_formula(VALUES.double().numpy())

    for name in ("lrn1", "lrn2"):
        np.testing.assert_allclose(network.get_submodule(name)(VALUES).numpy(), expected, rtol=1e-5)
    with_mean = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)(VALUES).numpy()
    assert np.abs(with_mean / expected).max() > 1.5


def test_normalisation_is_exported_as_one_operator(tmp_path: Path) -> None:
    """The file has ONNX's own LRN with the constants in its terms, and both engines compute the formula from it."""
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.onnx.export(
        LocalResponseNorm().eval(), (VALUES[:2],), dynamic_shapes=(batch,), opset_version=20, dynamo=True, verbose=False
    )
    assert program is not None
    (node,) = program.model_proto.graph.node
    path = tmp_path / "lrn.onnx"
    onnx.save(program.model_proto, path)

    assert node.op_type == "LRN"
    constants = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert constants == pytest.approx({"size": 5, "alpha": 5e-4, "beta": 0.75, "bias": 2.0})
    for given in answers(path, VALUES.numpy()).values():
        np.testing.assert_allclose(given, by_formula(VALUES.double().numpy()), rtol=1e-4)
