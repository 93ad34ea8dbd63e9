"""Networks in half precision: what is rounded, what is not, and what is folded before it is."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from export.onnx_writer import write_onnx
from export.tensorrt.fp16 import to_half
from models.architectures.blocks import LocalResponseNorm
from models.build import ServedNetwork, build
from models.catalog import CATALOG, Architecture
from tests.networks import noise, seeded


class Untraceable(nn.Module):
    """A network with a batch norm whose code asks for values, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        """The mean of each channel, [N, 3]."""
        maps: Tensor = self.norm(image)
        return maps.mean(dim=(2, 3)) if maps.sum() < 1e9 else maps[:, :, 0, 0]


def graph(network: nn.Module, architecture: Architecture, path: Path) -> onnx.ModelProto:
    """The ONNX file of that network in half precision."""
    served = ServedNetwork(to_half(network), architecture.input).eval()
    write_onnx(served, architecture.input, architecture.classes, path)
    return onnx.load(path)


def test_all_values_are_float16_and_the_original_stays() -> None:
    """The copy holds float16 alone and answers in float16; the network given keeps its float32 values."""
    network = build(CATALOG["tiny"])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    half = to_half(network)

    assert {value.dtype for value in half.state_dict().values()} == {torch.float16}
    with torch.inference_mode():
        assert half(noise(2, 3, 32, 32)).dtype == torch.float16
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in half.modules())


def test_batch_norms_are_folded_before_they_are_rounded() -> None:
    """A variance that vanishes in float16 does no harm: the folded convolution gives float32's result to 1e-3."""
    network = nn.Sequential(nn.Conv2d(3, 4, kernel_size=1, bias=False), nn.BatchNorm2d(4, eps=1e-12)).eval()
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var.fill_(1e-9)
    with torch.inference_mode():
        for value in network[0].parameters():
            value.mul_(1e-5)
        image = noise(1, 3, 32, 32)
        exact = network(image)
        assert torch.tensor(1e-9).half() == 0
        assert (to_half(network)(image).float() - exact).abs().max() <= 2e-3 * exact.abs().max()


def test_a_network_that_cannot_be_traced_is_halved_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Its batch norm stays, in float16, and the log says so."""
    half = to_half(Untraceable().eval())

    assert any(isinstance(layer, nn.BatchNorm2d) for layer in half.modules())
    assert "batch norms are not folded" in caplog.text
    with torch.inference_mode():
        assert half(noise(1, 3, 32, 32)).dtype == torch.float16


def test_response_normalisation_is_computed_in_float32() -> None:
    """Squares that overflow float16 are summed in float32: 300 becomes what float32 makes of it, not 0."""
    norm = LocalResponseNorm()
    image = torch.full((1, 3, 32, 32), 300.0)
    with torch.inference_mode():
        exact = norm(image)
        assert torch.tensor(300.0).half().square().isinf()
        given = to_half(nn.Sequential(LocalResponseNorm()))(image)

    assert (given.float() - exact).abs().max() <= 1e-3 * exact.abs().max()


def test_graph_of_a_network_with_response_normalisation(tmp_path: Path) -> None:
    """In the file each LRN stands between two casts and takes float32, and every weight is float16."""
    small = nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=3, stride=2), LocalResponseNorm(), nn.Flatten(), nn.Linear(8 * 15 * 15, 1000)
    )
    model = graph(seeded(lambda: small), CATALOG["tiny"], tmp_path / "half.onnx")
    made_by = {output: node for node in model.graph.node for output in node.output}
    (norm,) = (node for node in model.graph.node if node.op_type == "LRN")
    (before,) = made_by[norm.input[0]].attribute

    assert made_by[norm.input[0]].op_type == "Cast"
    assert before.i == TensorProto.FLOAT
    weights = {one.data_type for one in model.graph.initializer if len(one.dims) > 1 and one.dims[0] > 1}
    assert weights == {TensorProto.FLOAT16}


def test_casts(tmp_path: Path) -> None:
    """There are three casts: of the pixels to float32, then to float16, and of the logits back."""
    model = graph(build(CATALOG["squeezenet1_1"]), CATALOG["squeezenet1_1"], tmp_path / "half.onnx")
    operators = Counter(node.op_type for node in model.graph.node)

    assert operators["Cast"] == 3
    assert operators["BatchNormalization"] == 0
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    made_by = {output: node for node in model.graph.node for output in node.output}
    assert made_by[softmax.input[0]].op_type == "Cast"
