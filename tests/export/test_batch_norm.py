"""Batch-norm statistics of untrained networks: after one pass over photos every layer sees sane inputs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.batch_norm import calibrate_batch_norm
from export.gate_images import photos
from models.build import ServedNetwork, build
from models.catalog import CATALOG
from service.common.types import Batch


def served(name: str) -> ServedNetwork:
    """The served network of that name, as it was initialised."""
    return ServedNetwork(build(CATALOG[name]), CATALOG[name].input).eval()


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Its batch norms."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def worst_statistics(network: ServedNetwork, images: Batch) -> tuple[float, float, float]:
    """Of all channels of all batch norms in evaluation mode: the largest |mean| and |variance - 1| once normalised.

    `eps` is left out of the normalisation, and so are channels that are the same everywhere on these images; the
    third number is the share of those that are not.
    """
    means: list[float] = []
    variances: list[float] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        assert module.running_mean is not None
        assert module.running_var is not None
        mean, variance = inputs[0].mean(dim=(0, 2, 3)), inputs[0].var(dim=(0, 2, 3))
        alive = variance > 1e-12
        means.extend(((mean - module.running_mean) / module.running_var.sqrt())[alive].abs().tolist())
        variances.extend((variance / module.running_var - 1)[alive].abs().tolist())

    hooks = [norm.register_forward_hook(look) for norm in norms(network)]
    with torch.inference_mode():
        network(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()
    return max(means), max(variances), len(means) / sum(norm.num_features for norm in norms(network))


@pytest.mark.parametrize("name", ["tiny", "googlenet"])
def test_every_batch_norm_gets_zero_mean_and_unit_variance(name: str) -> None:
    """On the photos and their mirror images, in evaluation mode, each batch norm normalises its input."""
    network, images = served(name), photos(CATALOG[name].input)
    both = np.concatenate([images, images[:, :, ::-1]])
    _, before, _ = worst_statistics(network, both)

    assert calibrate_batch_norm(network, images) == len(norms(network)) > 0

    mean, variance, share = worst_statistics(network, both)
    assert mean < 2e-2
    assert variance < 2e-2
    assert share > 0.95
    assert before > 0.5  # it was not so before


def test_only_running_statistics_change() -> None:
    """No parameter, momentum or mode changes, and a second calibration gives the same statistics bit for bit."""
    images = photos(CATALOG["tiny"].input)
    fresh, network = served("tiny"), served("tiny")
    momenta = [0.1 * (index + 1) for index in range(len(norms(network)))]
    for norm, momentum in zip(norms(network), momenta, strict=True):
        norm.momentum = momentum

    calibrate_batch_norm(network, images)
    once = {name: value.clone() for name, value in network.state_dict().items()}
    calibrate_batch_norm(network, images)

    changed = {name for name, value in once.items() if not torch.equal(value, fresh.state_dict()[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in once.items())
    assert [norm.momentum for norm in norms(network)] == momenta
    assert not any(module.training for module in network.modules())


def test_network_without_batch_norm_is_untouched() -> None:
    """A network that has none is not even run."""
    layer = nn.LazyLinear(5)
    network = ServedNetwork(nn.Sequential(nn.Flatten(), layer), CATALOG["tiny"].input).eval()

    assert calibrate_batch_norm(network, photos(CATALOG["tiny"].input)) == 0

    assert isinstance(layer, nn.LazyLinear)  # a run would have made it a plain one


def test_dropout_does_not_run_while_calibrating() -> None:
    """Only batch norms are put into training mode, so that statistics are those of the network as it serves."""
    network = ServedNetwork(
        nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), CATALOG["tiny"].input
    ).eval()
    images = photos(CATALOG["tiny"].input)

    calibrate_batch_norm(network, images)

    mean, _, _ = worst_statistics(network, np.concatenate([images, images[:, :, ::-1]]))
    assert mean < 1e-5
