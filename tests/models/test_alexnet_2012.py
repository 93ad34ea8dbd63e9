"""AlexNet of 2012: every layer against the paper's figures, and its response normalisation against the formula."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from models.analysis.cost import Cost
from models.analysis.trace import network_layers
from models.architectures.alexnet_2012 import alexnet_2012
from models.architectures.blocks import LocalResponseNorm
from models.catalog import InputSpec
from tests.networks import answers, layers, learned, noise, seeded

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
    """The network, untrained."""
    return seeded(alexnet_2012)


def test_activation_maps(network: nn.Module) -> None:
    """Every step has the maps of the paper, in the paper's order: normalised after the ReLU, then pooled."""
    found = layers(network, noise(1, 3, 227, 227))

    assert {name: found[name] for name in MAPS} == MAPS
    assert [name for name in found if name.endswith(("1", "2"))] == [
        f"{kind}{place}" for place in (1, 2) for kind in ("conv", "relu", "lrn", "pool")
    ]


def test_parameters_of_each_layer(network: nn.Module) -> None:
    """Each layer has the parameters that its shape asks for, and no other layer has any."""
    assert learned(network) == PARAMETERS


def test_cost_of_the_whole(network: nn.Module) -> None:
    """60,965,224 parameters and 724,406,816 multiply-accumulates: two groups, not the ungrouped drawing."""
    assert network_layers(network, InputSpec(crop=227)).cost == Cost(parameters=60_965_224, macs=724_406_816)


@pytest.mark.parametrize("name", ["conv2", "conv4", "conv5"])
def test_groups_do_not_see_each_other(network: nn.Module, name: str) -> None:
    """The first half of the maps of a grouped layer depends on the first half of its inputs alone."""
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    inputs, half = noise(1, layer.in_channels, 13, 13), layer.in_channels // 2
    changed = inputs.clone()
    changed[:, half:] += 1

    with torch.inference_mode():
        before, after = layer(inputs), layer(changed)

    outputs = layer.out_channels // 2
    assert torch.equal(before[:, :outputs], after[:, :outputs])
    assert not torch.equal(before[:, outputs:], after[:, outputs:])


@pytest.mark.parametrize("name", ["pool1", "pool2", "pool5"])
def test_pooling_overlaps(network: nn.Module, name: str) -> None:
    """Windows of three at steps of two: section 3.4."""
    layer = network.get_submodule(name)

    assert isinstance(layer, nn.MaxPool2d)
    assert (layer.kernel_size, layer.stride, layer.padding) == (3, 2, 0)


def test_untrained_logits_neither_vanish_nor_explode(network: nn.Module) -> None:
    """On normalised noise the logits spread by an order of 1, so that a comparison of exports says something."""
    with torch.inference_mode():
        logits: Tensor = network(noise(1, 3, 227, 227))

    assert 0.05 < logits.std().item() < 50


def by_formula(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> np.ndarray[tuple[int, ...], np.dtype]:
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
