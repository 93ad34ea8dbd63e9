"""Catalog networks filled from ONNX files: those that topfive wrote itself, one of each kind, and files of others."""

import warnings
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torchvision.models import Inception3, get_model

from export.onnx_writer import write_onnx
from models.build import ServedNetwork, build
from models.catalog import CATALOG, Architecture, Channels, InputSpec
from models.weights.weights import WeightsError, load_file
from tests.models.test_onnx_weights import TINY, Prepared, answers, changed, exported, of_channels, trained

BGR = InputSpec(resize=32, crop=32, channels=Channels.BGR)


def served(architecture: Architecture, network: nn.Module, path: Path) -> Path:
    """Write the graph that is served: bytes in, probabilities out."""
    write_onnx(ServedNetwork(network, architecture.input).eval(), architecture.input, architecture.classes, path)
    return path


def dynamo(network: nn.Module, size: int, path: Path) -> Path:
    """Write it as torch's newer exporter does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of what is old inside itself
        image = torch.zeros(1, 3, size, size)
        torch.onnx.export(network, (image,), path, dynamo=True, external_data=False, verbose=False)
    return path


LARGE = [
    pytest.param(name, marks=pytest.mark.large)
    for name in ("squeezenet1_1", "alexnet_2012", "vgg11_lrn", "vgg16_c", "googlenet_2014")
]


@pytest.mark.parametrize("name", ["tiny", *LARGE])
def test_served_graph_fills_its_network(tmp_path: Path, name: str) -> None:
    """The file of an artifact, with bytes for input and softmax inside, is a file of weights like any other."""
    source, network, size = trained(name), build(CATALOG[name]), CATALOG[name].input.crop
    architecture = replace(CATALOG[name], weight_sets=())  # the input of random weights

    load_file(network, architecture, served(architecture, source, tmp_path / "model.onnx"))

    torch.testing.assert_close(answers(network, size), answers(source, size), rtol=1e-4, atol=1e-5)


def test_served_graph_of_other_channels(tmp_path: Path) -> None:
    """The convolution that makes blue the first channel is not taken for a layer of the network."""
    architecture, source, network = replace(TINY, untrained_input=BGR), trained("tiny"), build(TINY)

    load_file(network, architecture, served(architecture, source, tmp_path / "model.onnx"))

    torch.testing.assert_close(answers(network), answers(source), rtol=1e-4, atol=1e-5)


@pytest.mark.large
@pytest.mark.parametrize("newer", [False, True], ids=["script", "dynamo"])
@pytest.mark.parametrize("name", ["efficientnet_b0", "alexnet", "vgg11", "inception_v3"])
def test_each_kind_of_network(tmp_path: Path, name: str, newer: bool) -> None:
    """Squeeze and excitation, three large products, and branches without the heads of training come back whole."""
    source, network, size = trained(name), build(CATALOG[name]), CATALOG[name].input.crop
    path = tmp_path / "net.onnx"
    file = dynamo(source, size, path) if newer else exported(source, path, size=size)

    load_file(network, CATALOG[name], file)

    torch.testing.assert_close(answers(network, size), answers(source, size), rtol=1e-3, atol=1e-4)


@pytest.mark.large
@pytest.mark.parametrize("transform", [False, True])
def test_input_transform_of_inception(tmp_path: Path, transform: bool) -> None:
    """A file of Inception-v3 with torchvision's own transform of the input inside, or without it, fills the network."""
    source, network = trained("inception_v3"), build(CATALOG["inception_v3"])
    given = build(CATALOG["inception_v3"])
    given.load_state_dict(source.state_dict())
    assert isinstance(given, Inception3)
    given.transform_input = transform

    load_file(network, CATALOG["inception_v3"], exported(given, tmp_path / "net.onnx", size=299))

    torch.testing.assert_close(answers(network, 299), answers(source, 299), rtol=1e-3, atol=1e-4)


@pytest.mark.large
def test_networks_that_begin_alike(tmp_path: Path) -> None:
    """A file of another network is refused at the first layer that differs, however many were equal."""
    file = exported(get_model("resnet50", weights=None).eval(), tmp_path / "net.onnx", size=224)
    message = r"has layer 44 \S+ conv 512x1024x1x1 where resnet101 has layer layer3\.6\.conv1 conv 256x1024x1x1"

    with pytest.raises(WeightsError, match=message):
        load_file(build(CATALOG["resnet101"]), CATALOG["resnet101"], file)


class Twins(nn.Module):
    """Two convolutions of one shape beside each other, the second halved, so that their order matters."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, 2, 1)
        self.right = nn.Conv2d(3, 8, 3, 2, 1)
        self.classifier = nn.Linear(16, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        maps = torch.cat([torch.relu(self.left(image)), torch.relu(self.right(image)) / 2], dim=1)
        logits: Tensor = self.classifier(maps.mean(dim=(2, 3)))
        return logits


def test_branches_in_another_order(tmp_path: Path) -> None:
    """Two equal-shaped convolutions in each other's place in the file are refused, because the answers differ."""

    def swap(model: ModelProto) -> None:
        nodes = model.graph.node
        first, second = (place for place, node in enumerate(nodes) if node.op_type == "Conv")
        later = onnx.NodeProto()
        later.CopyFrom(nodes[second])
        del nodes[second]
        nodes.insert(first, later)

    torch.manual_seed(4)
    source, network = Twins().eval(), Twins()
    file = exported(source, tmp_path / "net.onnx")
    load_file(network, TINY, file)
    torch.testing.assert_close(answers(network), answers(source), rtol=1e-4, atol=1e-5)

    with pytest.raises(WeightsError, match=r"its answers differ by \d.*branches come in another order"):
        load_file(Twins(), TINY, changed(file, swap))


def test_file_of_bytes_in_the_networks_own_channels(tmp_path: Path) -> None:
    """A file that takes bytes of BGR, as its network does, is compared in BGR."""
    mean, std = of_channels(BGR.mean), of_channels(BGR.std)
    source, network = Prepared(lambda image: (image.float() / 255 - mean) / std).eval(), build(TINY)
    file = exported(source, tmp_path / "net.onnx", kind=torch.uint8)

    load_file(network, replace(TINY, untrained_input=BGR), file)

    torch.testing.assert_close(answers(network), answers(source.network), rtol=1e-4, atol=1e-4)
