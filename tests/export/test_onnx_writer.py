"""The ONNX file: the graph contract, nothing of the machine that wrote it, and the same bytes each time."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.batch_norm import calibrate_batch_norm
from export.common import OPSET, ExportError
from export.gate_images import photos, random_pixels
from export.onnx_writer import check, write_onnx
from models.build import ServedNetwork, build
from models.catalog import CATALOG, Architecture
from service.common.types import Probabilities
from tests.networks import answers

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = CATALOG["tiny"]
GOOGLENET = CATALOG["googlenet"]


def written(architecture: Architecture, served: ServedNetwork, folder: Path) -> Path:
    """The ONNX file of `served` in `folder`."""
    path = folder / "model.onnx"
    write_onnx(served, architecture.input, architecture.classes, path)
    return path


def eager(served: torch.nn.Module, images: torch.Tensor) -> Probabilities:
    """What PyTorch computes."""
    with torch.inference_mode():
        probabilities: Probabilities = served(images).numpy()
    return probabilities


def tiny() -> ServedNetwork:
    """The served `tiny`, as it was initialised."""
    return ServedNetwork(build(TINY), TINY.input).eval()


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` as ONNX, alone in its folder."""
    return written(TINY, tiny(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(tiny_file: Path) -> ModelProto:
    """`tiny` as ONNX in memory, for the test to change."""
    return onnx.load(tiny_file)


def test_graph_contract(tiny_file: Path, model: ModelProto) -> None:
    """The graph takes uint8 [batch, S, S, 3] and gives float32 [batch, C], valid in opset 20 and no other domain.

    Its weights are inside the one file.
    """
    (image,), (probabilities,) = model.graph.input, model.graph.output

    def tensor_type(value: onnx.ValueInfoProto) -> tuple[int, list[str | int]]:
        tensor = value.type.tensor_type
        return tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]

    assert (image.name, tensor_type(image)) == ("image", (TensorProto.UINT8, ["batch", 32, 32, 3]))
    assert (probabilities.name, tensor_type(probabilities)) == ("probabilities", (TensorProto.FLOAT, ["batch", 1000]))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)] == [("", 20)]
    assert not model.functions
    assert [path.name for path in tiny_file.parent.iterdir()] == ["model.onnx"]
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in model.graph.initializer)


def test_file_tells_nothing_of_the_machine_that_exported_it(tiny_file: Path, model: ModelProto) -> None:
    """The exporter's notes are gone everywhere: no path of this machine, no source file, no stack trace."""
    data = tiny_file.read_bytes()

    for secret in (str(REPOSITORY), sys.prefix, ".py", "site-packages", "stack_trace", "torch.nn"):
        assert secret.encode() not in data, secret
    text = str(model)
    assert "metadata_props" not in text
    assert "doc_string" not in text


def test_no_index_arithmetic_and_the_cast_comes_first(model: ModelProto) -> None:
    """A dynamic batch costs no node, and the pixels are cast before they are transposed, which TensorRT needs."""
    operators = [node.op_type for node in model.graph.node]

    assert not {"Range", "Gather", "Shape", "NonZero", "Loop", "If", "Scan"} & set(operators)
    assert operators.count("Transpose") == 1
    assert operators[0] == "Cast"
    assert operators.index("Cast") < operators.index("Transpose") < operators.index("Conv")


def test_refused_graph_is_not_written(tmp_path: Path) -> None:
    """A graph that breaks the contract leaves no file behind."""
    path = tmp_path / "model.onnx"

    with pytest.raises(ExportError, match="999"):
        write_onnx(tiny(), TINY.input, 999, path)

    assert not path.exists()


def test_check_refuses_another_size_or_number_of_classes(model: ModelProto) -> None:
    """The shapes in the file must be those of the recipe and of the labels; an empty model is not valid ONNX."""
    with pytest.raises(ExportError, match="33"):
        check(model, replace(TINY.input, crop=33), TINY.classes)
    with pytest.raises(ExportError, match="1001"):
        check(model, TINY.input, 1001)
    with pytest.raises(ExportError, match="not valid ONNX"):
        check(ModelProto(), TINY.input, TINY.classes)


def _float_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _fixed_batch(model: ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    del model.graph.value_info[:]


def _older_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 19


def _gather(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node.append(helper.make_node("Gather", ["probabilities", "first"], ["gathered"]))


def _unknown_operator(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Broadcast"


def _unconnected(model: ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def _wrong_weights(model: ModelProto) -> None:
    kernel = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4 and tensor.dims[0] == 16)
    kernel.CopyFrom(numpy_helper.from_array(np.zeros((16, 5, 3, 3), dtype=np.float32), kernel.name))


MASK = helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1])
FOREIGN = helper.make_opsetid("pkg.onnxscript.torch_lib", 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_float_input, "not"),
        (lambda model: model.graph.input.append(MASK), "mask"),
        (_fixed_batch, "'image', 2, \\[2, 32"),
        (lambda model: model.opset_import.append(FOREIGN), "pkg.onnxscript"),
        (_older_opset, "19"),
        (_gather, "Gather"),
        (_unknown_operator, "not valid ONNX"),
        (_unconnected, "not valid ONNX"),
        (_wrong_weights, "not valid ONNX"),
    ],
)
def test_check_refuses_what_breaks_the_contract(
    model: ModelProto, damage: Callable[[ModelProto], None], message: str
) -> None:
    """Each way to break the contract is an ExportError that says which one it is."""
    damage(model)

    with pytest.raises(ExportError, match=message):
        check(model, TINY.input, TINY.classes)


@pytest.fixture(scope="module")
def googlenet() -> ServedNetwork:
    """The served googlenet, untrained, with batch-norm statistics from photos."""
    served = ServedNetwork(build(GOOGLENET), GOOGLENET.input).eval()
    calibrate_batch_norm(served, photos(GOOGLENET.input))
    return served


@pytest.fixture(scope="module")
def googlenet_file(googlenet: ServedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`googlenet` as ONNX."""
    return written(GOOGLENET, googlenet, tmp_path_factory.mktemp("googlenet"))


@pytest.fixture(scope="module")
def torchvision_googlenet(googlenet: ServedNetwork) -> torch.nn.Module:
    """torchvision's network as its trained weights build it, input transform and auxiliary heads and all."""
    from torchvision.models import get_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = get_model("googlenet", weights=None, aux_logits=True, init_weights=False, transform_input=True)
    lacking = network.load_state_dict(googlenet.network.state_dict(), strict=False)
    assert {name.partition(".")[0] for name in lacking.missing_keys} == {"aux1", "aux2"}
    assert not lacking.unexpected_keys
    assert isinstance(network, torch.nn.Module)
    return network.eval()


def test_googlenet_folds_its_own_input_transform(
    googlenet: ServedNetwork, googlenet_file: Path, torchvision_googlenet: torch.nn.Module
) -> None:
    """torchvision's network with ImageNet's normalisation and its own re-scaling, and the file without, agree."""
    images = np.concatenate([photos(GOOGLENET.input)[:3], random_pixels(GOOGLENET.input, 2)])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)

    expected = torch.softmax(torch.from_numpy(eager(torchvision_googlenet, normalised)), dim=1).numpy()

    np.testing.assert_allclose(eager(googlenet, torch.from_numpy(images)), expected, atol=1e-5)
    for given in answers(googlenet_file, images).values():
        np.testing.assert_allclose(given, expected, atol=1e-5)
    assert expected.max() > 0.003  # far from uniform, so that agreement says something


def test_googlenet_graph_has_no_input_transform_left(googlenet_file: Path) -> None:
    """Taking the channels apart and putting them together again would be Gather, Unsqueeze and a tenth Concat."""
    operators = [node.op_type for node in onnx.load(googlenet_file).graph.node]

    assert not {"Gather", "Unsqueeze", "Split", "Slice", "BatchNormalization"} & set(operators)
    assert operators.count("Concat") == 9
    assert operators[:2] == ["Cast", "Transpose"]
