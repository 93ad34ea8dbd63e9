"""BVLC's published weights: the graphs of the ONNX model zoo, with weights made by rule, fill our networks."""

import hashlib
from dataclasses import replace
from math import prod, sqrt
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from export.gate_images import PHOTOS
from export.pipeline import export
from export.weights_choice import WeightsChoice
from models.artifact.artifact import WeightSource, load
from models.build import ServedNetwork, build
from models.catalog import CATALOG, Architecture, Channels, ResizeMode
from models.weights.weights import WeightsError, load_file, load_pretrained
from service.common.types import ImageLimits, Precision, Runtime
from service.engines.selection.opening import build_engine
from service.engines.selection.select import EngineOptions
from service.preprocessing.decode import decode_pixels
from service.preprocessing.transforms import center_crop
from tests.conftest import NullReporter, noise
from tests.download_host import Host, whole
from tests.models.test_weights import ignore

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
FILES = {"alexnet_2012": "light_bvlc_alexnet.onnx", "googlenet_2014": "light_inception_v1.onnx"}
NETWORKS = [pytest.param("alexnet_2012", marks=pytest.mark.large), "googlenet_2014"]
BRANCHES = {
    "1x1": "branch1.conv1x1",
    "3x3_reduce": "branch2.conv3x3_reduce",
    "3x3": "branch2.conv3x3",
    "5x5_reduce": "branch3.conv5x5_reduce",
    "5x5": "branch3.conv5x5",
    "pool_proj": "branch4.pool_proj",
}
OTHERS = {
    "conv1/7x7_s2": "conv1",
    "conv2/3x3_reduce": "conv2_reduce",
    "conv2/3x3": "conv2",
    "loss3/classifier": "fc",
}
# The paper's normalisation is (2 + 1e-4 s)^0.75 of the sum of squares s, BVLC's (1 + 1e-4 / 5 s)^0.75: conv1 is scaled
# by INSIDE so that both see the same relation, and then the result is OUTSIDE times BVLC's.
INSIDE = sqrt(1e-4 / 5 / 1 / (1e-4 / 2))
OUTSIDE = INSIDE / 2**0.75
SCALED = {
    "conv1.weight": INSIDE,
    "conv1.bias": INSIDE,
    "conv2.weight": INSIDE / OUTSIDE,
    "conv2.bias": INSIDE,
    "conv3.weight": 1 / OUTSIDE,
}

Values = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _torch_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch's cache is in the test's folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files that `zoo_file` writes."""
    return tmp_path_factory.mktemp("zoo")


def zoo_file(name: str, folder: Path) -> Path:
    """The zoo's graph, with seeded noise where onnx's own test has one number for all weights of a layer."""
    path = folder / f"{name}.onnx"
    if path.exists():
        return path
    model = onnx.load(LIGHT / FILES[name])
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    random = np.random.default_rng(2014)
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape"]:
        shape = tuple(map(int, shapes[node.input[0]]))
        spread = sqrt(2 / prod(shape[-3:] if len(shape) > 2 else shape[-1:])) if len(shape) > 1 else 0.1
        if node.output[0].startswith("conv1"):
            spread /= 60  # of pixels
        values = random.normal(0, spread, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)
    onnx.save(model, path)
    return path


def published(name: str, file: Path, host: Host) -> Architecture:
    """The entry of the catalog, whose file is this one: the first address has nothing, the second has it."""
    entry, body = CATALOG[name], file.read_bytes()
    urls = (f"http://{host.address}/gone/{file.name}", host.serve(file.name, whole(body)))
    weights = replace(entry.weight_sets[0], urls=urls, sha256=hashlib.sha256(body).hexdigest())
    return replace(entry, weight_sets=(weights,))


def place(tensor: str) -> str:
    """The name of the zoo's tensor in our network."""
    layer, kind = tensor.removesuffix("_0").rsplit("_", 1)
    stage, _, branch = layer.partition("/")
    inception = stage.startswith("inception")
    module = f"{stage.replace('_', '')}.{BRANCHES[branch]}" if inception else OTHERS.get(layer, layer)
    return f"{module}.{'weight' if kind == 'w' else 'bias'}"


def run(model: ModelProto, images: Values) -> Values:
    """The answers of ONNX Runtime, one image at a time, because the graph has a batch of one."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"data_0": image[None]})[0] for image in images])


def as_trained(name: str, file: Path) -> ModelProto:
    """The file as BVLC trained it: AlexNet at 227 pixels, GoogLeNet with the sizes of pooled maps rounded up."""
    model, crop = onnx.load(file), CATALOG[name].input.crop
    for value in model.graph.input:
        if value.name == "data_0":
            value.type.tensor_type.shape.dim[2].dim_value = value.type.tensor_type.shape.dim[3].dim_value = crop
    if name == "googlenet_2014":
        model.opset_import[0].version = 10
        for node in model.graph.node:
            pads = next((one for one in node.attribute if one.name == "pads"), None)
            if node.op_type in ("MaxPool", "AveragePool") and pads is not None and not any(pads.ints[:2]):
                pads.ints[:] = [0, 0, 0, 0]
                node.attribute.append(helper.make_attribute("ceil_mode", 1))
    return model


def bgr(images: NDArray[np.uint8]) -> Values:
    """What the zoo's networks take: [N, 3, S, S], blue first, 0 to 255 less the mean."""
    mean = np.array([104, 117, 123], np.float32).reshape(1, 3, 1, 1)
    return images[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - mean


@pytest.mark.parametrize("name", NETWORKS)
def test_published_weights(name: str, files: Path, host: Host) -> None:
    """The file is downloaded from the second address, every tensor is in its place, and the answers are the file's."""
    file = zoo_file(name, files)
    entry, network = published(name, file, host), build(CATALOG[name])
    record = load_pretrained(network, entry, mirror=None, progress=ignore)

    assert (record.source, record.name, record.sha256) == (
        WeightSource.PRETRAINED,
        "BVLC",
        entry.weight_sets[0].sha256,
    )
    assert host.asked == [f"/gone/{file.name}", f"/models/{file.name}"]
    given = {
        place(tensor.name): torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in onnx.load(file).graph.initializer
        if tensor.name.endswith(("_w_0", "_b_0"))
    }
    state = network.state_dict()
    assert given.keys() == state.keys()
    for tensor, value in given.items():
        scale = SCALED.get(tensor, 1.0) if name == "alexnet_2012" else 1.0
        expected: Tensor = value.reshape(state[tensor].shape) * scale
        torch.testing.assert_close(state[tensor], expected, rtol=1e-6 if scale != 1 else 0, atol=0)

    images = np.stack([noise(entry.input.crop, entry.input.crop, seed) for seed in range(2)])
    with torch.inference_mode():
        answers = ServedNetwork(network, entry.input).eval()(torch.from_numpy(images)).numpy()
    expected_answers = run(as_trained(name, file), bgr(images))
    assert expected_answers.max() < 0.9, "an answer that is sure compares nothing"
    np.testing.assert_allclose(answers, expected_answers, atol=1e-4, rtol=1e-3)


def test_file_of_googlenet_as_it_is(files: Path) -> None:
    """The zoo's file rounds down. Where our network does so too, both give the same answers."""
    file, network = zoo_file("googlenet_2014", files), build(CATALOG["googlenet_2014"])
    load_file(network, CATALOG["googlenet_2014"], file)
    for module in network.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = False
    network.pool5 = nn.AvgPool2d(6)
    images = bgr(noise(224, 224)[None])
    with torch.inference_mode():
        answers = torch.softmax(network(torch.from_numpy(images)), dim=1).numpy()

    np.testing.assert_allclose(answers, run(onnx.load(file), images), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["alexnet_2012", "googlenet_2014"])
def test_another_file(name: str, host: Host, tmp_path: Path) -> None:
    """A file with another sha256 is refused, whatever its first digits, and not kept."""
    entry = CATALOG[name]
    body = b"another file"
    digest = hashlib.sha256(body).hexdigest()
    weights = replace(entry.weight_sets[0], urls=(host.serve("x.onnx", whole(body)),), sha256=digest[:63] + "g")
    with pytest.raises(WeightsError, match="it was not kept"):
        load_pretrained(build(entry), replace(entry, weight_sets=(weights,)), mirror=None, progress=ignore)

    assert list((tmp_path / "torch" / "hub" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(("name", "crop", "accuracy"), [("alexnet_2012", 227, 57.1), ("googlenet_2014", 224, 68.7)])
def test_recipe(name: str, crop: int, accuracy: float) -> None:
    """BVLC's recipe belongs to BVLC's weights: both sides become 256, blue first, 0 to 255 less the mean."""
    entry = CATALOG[name]
    spec, weights = entry.input, entry.weight_sets[0]

    assert (spec.fit, spec.resize, spec.crop, spec.channels) == (ResizeMode.SQUASH, 256, crop, Channels.BGR)
    assert [255 * value for value in spec.mean] == pytest.approx([104, 117, 123], abs=1e-4)
    assert [255 * value for value in spec.std] == pytest.approx([1, 1, 1], abs=1e-6)
    assert (weights.acc1, weights.tag, len(weights.sha256 or "")) == (accuracy, "BVLC", 64)
    assert entry.untrained_input is not None
    assert entry.untrained_input.crop == crop


@pytest.mark.large
def test_recipe_in_the_artifact(files: Path, host: Host, tmp_path: Path) -> None:
    """An export squashes the photo and gives the answers of the file, for which Pillow and numpy made the input."""
    file = zoo_file("googlenet_2014", files)
    entry = published("googlenet_2014", file, host)
    export(entry, WeightsChoice.parse("auto", None), tmp_path, NullReporter())
    artifact = load(tmp_path, "googlenet_2014")
    assert (artifact.manifest.input, artifact.manifest.acc1) == (entry.input, 68.7)
    assert artifact.manifest.weights.sha256 == entry.weight_sets[0].sha256

    photo = PHOTOS / "zebra.jpeg"
    sample = center_crop(artifact.manifest.input, decode_pixels(photo.read_bytes(), ImageLimits()))
    squashed = Image.open(photo).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
    assert np.abs(sample.astype(int) - np.asarray(squashed.crop((16, 16, 240, 240))).astype(int)).max() <= 2
    engine = build_engine(artifact, Runtime.OPENVINO, Precision.F32, EngineOptions())
    answers = engine.run(sample[None])
    engine.close()
    np.testing.assert_allclose(answers, run(as_trained("googlenet_2014", file), bgr(sample[None])), atol=1e-4)
