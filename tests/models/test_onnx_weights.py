"""A catalog network filled from an ONNX file: every way to write the same layers, and refusals that name both sides."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from safetensors.torch import load_file as read_safetensors
from torch import Tensor, nn

from models.artifact.artifact import WeightRecord, WeightSource, sha256
from models.build import build
from models.catalog import CATALOG, InputSpec
from models.weights.from_onnx import load_onnx
from models.weights.weights import WeightsError, load_file

TINY, SQUEEZENET = CATALOG["tiny"], CATALOG["squeezenet1_1"]


def trained(name: str = "tiny") -> nn.Module:
    """The network, every value drawn anew, so that a signal neither vanishes nor explodes."""
    network = build(CATALOG[name])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.8, 1.2, generator=generator)
                module.weight.uniform_(0.8, 1.2, generator=generator)
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, generator=generator)
            if isinstance(module, (nn.BatchNorm2d, nn.Conv2d, nn.Linear)) and isinstance(module.bias, Tensor):
                module.bias.normal_(0, 0.1, generator=generator)
    return network.eval()


class Prepared(nn.Module):
    """A trained `tiny` with `prepare` before it."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = trained().eval()
        self._prepare = prepare

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(self._prepare(image))
        return logits


def of_channels(values: tuple[float, ...]) -> Tensor:
    """One value for each channel of an image."""
    return torch.tensor(values).view(1, 3, 1, 1)


def exported(
    network: nn.Module,
    path: Path,
    *,
    folded: bool = True,
    opset: int = 13,
    size: int = 32,
    kind: torch.dtype = torch.float32,
) -> Path:
    """Write it as torch's exporter of TorchScript does, with batch norms folded into convolutions or kept."""
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns that it is old
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, size, size, dtype=kind),),
            path,
            dynamo=False,
            opset_version=opset,
            training=mode,
            do_constant_folding=folded,
        )
    return path


def answers(network: nn.Module, size: int = 32) -> Tensor:
    """Logits of two random images."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits: Tensor = network.eval()(images)
    return logits


def changed(path: Path, change: Callable[[ModelProto], None]) -> Path:
    """Apply `change` to the model in the file."""
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def to_half(model: ModelProto) -> None:
    """Store weights as float16, with a Cast before each use: what some tools write to halve a file."""
    for tensor in model.graph.initializer:
        values, name = numpy_helper.to_array(tensor), tensor.name
        if values.dtype != np.float32:
            continue
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        cast = onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, cast)


def to_half_throughout(model: ModelProto) -> None:
    """Make input, weights and output float16."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.ClearField("value_info")


def to_constants(model: ModelProto) -> None:
    """Store weights in Constant nodes, each behind an Identity."""
    for tensor in list(model.graph.initializer):
        model.graph.node.insert(0, onnx.helper.make_node("Identity", [f"{tensor.name}.c"], [tensor.name]))
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [f"{tensor.name}.c"], value=tensor))
    model.graph.ClearField("initializer")


def to_matmul(model: ModelProto) -> None:
    """Write the fully connected layer as MatMul and Add, its weight the other way round."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    (gemm,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    weight = numpy_helper.to_array(stored[gemm.input[1]]).T.copy()
    stored[gemm.input[1]].CopyFrom(numpy_helper.from_array(weight, gemm.input[1]))
    add = onnx.helper.make_node("Add", [gemm.input[2], "product"], [gemm.output[0]])
    matmul = onnx.helper.make_node("MatMul", list(gemm.input[:2]), ["product"])
    model.graph.node.remove(gemm)
    model.graph.node.extend([matmul, add])


def to_bias_after(model: ModelProto) -> None:
    """Write the bias of each convolution as an Add after it."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Conv" and len(node.input) == 3:
            bias = stored[node.input[2]]
            values = numpy_helper.to_array(bias).reshape(1, -1, 1, 1)
            bias.CopyFrom(numpy_helper.from_array(values, bias.name))
            place = list(model.graph.node).index(node)
            add = onnx.helper.make_node("Add", [f"{node.output[0]}.bare", bias.name], [node.output[0]])
            node.output[0] += ".bare"
            del node.input[2]
            model.graph.node.insert(place + 1, add)


def to_softmax(model: ModelProto) -> None:
    """Give probabilities instead of logits."""
    last = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    model.graph.output[0].name = "probabilities"


def to_raw_pixels(model: ModelProto) -> None:
    """Normalise for ImageNet inside: the file takes pixels from 0 to 1."""
    name = model.graph.input[0].name
    mean = numpy_helper.from_array(np.array(TINY.input.mean, dtype=np.float32).reshape(1, 3, 1, 1), "mean")
    std = numpy_helper.from_array(np.array(TINY.input.std, dtype=np.float32).reshape(1, 3, 1, 1), "std")
    model.graph.initializer.extend([mean, std])
    for node in model.graph.node:
        node.input[:] = ["normalised" if one == name else one for one in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("Div", ["centred", "std"], ["normalised"]))
    model.graph.node.insert(0, onnx.helper.make_node("Sub", [name, "mean"], ["centred"]))


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("opset", [9, 11, 13])
def test_layers_are_filled_in_order(tmp_path: Path, folded: bool, opset: int) -> None:
    """With norms folded into convolutions or kept, the network gives the answers of the one that was exported.

    With norms in the file every tensor equals the exported one.
    """
    source, network = trained(), build(TINY)

    record = load_file(network, TINY, exported(source, tmp_path / "net.onnx", folded=folded, opset=opset))

    torch.testing.assert_close(answers(network), answers(source), rtol=1e-4, atol=1e-4)
    expected = WeightRecord(source=WeightSource.FILE, name="net.onnx", sha256=sha256(tmp_path / "net.onnx"))
    assert record == expected
    for name, value in source.state_dict().items():
        assert folded or name.endswith("num_batches_tracked") or torch.equal(network.state_dict()[name], value), name


@pytest.mark.parametrize(
    "change", [to_constants, to_matmul, to_bias_after, to_softmax, to_raw_pixels, to_half, to_half_throughout]
)
def test_the_same_layers_written_otherwise(tmp_path: Path, change: Callable[[ModelProto], None]) -> None:
    """Constants in nodes, a transposed product, an Add for a bias, float16, softmax or normalisation inside."""
    source, network = trained(), build(TINY)

    load_file(network, TINY, changed(exported(source, tmp_path / "net.onnx"), change))

    tolerance = 2e-2 if change in (to_half, to_half_throughout) else 1e-4
    torch.testing.assert_close(answers(network), answers(source), rtol=tolerance, atol=tolerance)


def test_input_transform_inside_the_file(tmp_path: Path) -> None:
    """A file that takes ImageNet's normalisation and makes its own of it, as torchvision's GoogLeNet does, is known."""
    half = InputSpec(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    architecture = replace(TINY, untrained_input=half)
    mean, std = of_channels(InputSpec().mean), of_channels(InputSpec().std)
    source, network = Prepared(lambda image: (image * std + mean - 0.5) / 0.5).eval(), build(TINY)

    load_file(network, architecture, exported(source, tmp_path / "net.onnx"))

    torch.testing.assert_close(answers(network), answers(source.network), rtol=1e-4, atol=1e-4)


def test_real_file_of_trained_weights(shared_data: Path, tmp_path: Path) -> None:
    """The trained SqueezeNet comes back out of an ONNX file tensor for tensor."""
    state = read_safetensors(shared_data / "squeezenet1_1.safetensors")
    source = build(SQUEEZENET)
    source.load_state_dict(state)
    network = build(SQUEEZENET)

    load_file(network, SQUEEZENET, exported(source, tmp_path / "net.onnx", size=224))

    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())


class Other(nn.Module):
    """The layers of `tiny` with other sizes, or fewer or more of them."""

    def __init__(self, channels: tuple[int, ...], classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.features(image).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Other((8, 12, 16)), r"has layer 2 \S+ conv 12x8x3x3 where tiny has layer features\.1\.0 conv 16x8x3x3"),
        (Other((8, 16)), r"has layer 3 \S+ linear 1000x16 where tiny has layer features\.2\.0 conv 16x16x3x3"),
        (Other((8, 16, 16, 16)), r"has layer 4 \S+ conv 16x16x3x3 where tiny has layer classifier linear 1000x16"),
        (Other((8, 16, 16), classes=10), r"has layer 4 \S+ linear 10x16 where tiny has layer classifier linear"),
        (nn.Sequential(build(TINY), nn.Linear(1000, 9)), r"has layer 5 \S+ linear 9x1000 where tiny has no more"),
    ],
)
def test_first_mismatch_is_named(tmp_path: Path, other: nn.Module, message: str) -> None:
    """A file of another network is refused with its first layer that differs, and the network's."""
    with pytest.raises(WeightsError, match=message):
        load_file(build(TINY), TINY, exported(other.eval(), tmp_path / "net.onnx"))


def without_the_last(model: ModelProto) -> None:
    """Remove the last layer."""
    gemm = model.graph.node[-1]
    model.graph.output[0].name = gemm.input[0]
    model.graph.node.remove(gemm)


def with_sigmoids(model: ModelProto) -> None:
    """Replace each ReLU by a sigmoid."""
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Sigmoid"


def not_finite(model: ModelProto) -> None:
    """Replace one weight by NaN."""
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_the_last, r"ends after layer 3, where tiny has layer classifier linear 1000x16"),
        (with_sigmoids, r"layers of the shapes of tiny, but its answers differ by \d"),
        (not_finite, r"is not finite in \w+"),
    ],
)
def test_altered_file_is_refused(tmp_path: Path, change: Callable[[ModelProto], None], message: str) -> None:
    """A file that ends early, computes something else with equal shapes, or has a NaN fills nothing that is served."""
    with pytest.raises(WeightsError, match=message):
        load_file(build(TINY), TINY, changed(exported(trained(), tmp_path / "net.onnx"), change))


def test_learned_values_that_onnx_does_not_name_are_refused(tmp_path: Path) -> None:
    """A network with parameters of its own kind asks for safetensors."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))

    with pytest.raises(WeightsError, match=r"tiny has learned values in Own .* give its weights as \.safetensors"):
        load_onnx(Own(), TINY, exported(trained(), tmp_path / "net.onnx"))


def test_not_onnx_is_refused(tmp_path: Path) -> None:
    """A file that only has the name is an error of weights like any other."""
    (tmp_path / "net.onnx").write_bytes(b"PK\x03\x04")

    with pytest.raises(WeightsError, match="a zip, as PyTorch"):
        load_file(build(TINY), TINY, tmp_path / "net.onnx")
