"""int8 for TensorRT: which photos it is calibrated on, what the graph looks like, and that answers stay."""

import csv
import dataclasses
import os
import shutil
from pathlib import Path
from threading import Thread

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export.calibration import CalibrationError, CalibrationPhotos
from export.common import ExportError
from export.gate_images import PHOTOS
from export.onnx_writer import check, write_onnx
from export.parity_gate import ParityError
from export.pipeline import export
from export.tensorrt.fp16 import to_half
from export.tensorrt.graph import EngineGraph, engine_graph
from export.tensorrt.int8 import quantise
from export.weights_choice import WeightsChoice
from models.architectures.lenet5 import lenet5
from models.artifact.artifact import Artifact, WeightSource, load
from models.build import ServedNetwork
from models.catalog import CATALOG, InputSpec
from service.common.types import Batch, ImageLimits, Precision, Probabilities, Runtime, Sample
from service.engines.onnxruntime import OnnxRuntimeEngine
from service.preprocessing import decode, transforms
from tests.conftest import NullReporter, png
from tests.networks import seeded

SPEC = CATALOG["tiny"].input


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of ten photos of one colour each, in two folders."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for shade in range(10):
        parent = tmp_path / "photos" / ("more" if shade % 2 else "")
        (parent / f"{shade}.png").write_bytes(png(25 * shade))
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def quantised(trained: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineGraph:
    """SqueezeNet with trained weights in int8, calibrated on the labelled photos."""
    folder = tmp_path_factory.mktemp("int8")
    artifact = load(trained, "squeezenet1_1")
    return engine_graph(artifact, Precision.INT8, shared_data / "photos", folder, NullReporter())


def answers(artifact: Artifact, graph: Path, images: Batch) -> Probabilities:
    """What that graph says to the images, in ONNX Runtime on the CPU."""
    placed = dataclasses.replace(artifact, folder=graph.parent)
    engine = OnnxRuntimeEngine(placed, Runtime.ONNXRUNTIME, slots=1, threads=2, max_batch=len(images))
    try:
        return engine.run(images)
    finally:
        engine.close()


def photo(file: Path, spec: InputSpec) -> Sample:
    """A photo as the network gets it."""
    return transforms.center_crop(spec, decode.decode_pixels(file.read_bytes(), ImageLimits()))


def test_photos_are_preprocessed_as_the_service_does(folder: Path) -> None:
    """All images below the folder count, each as the network gets it, the brightest of even ones first."""
    photos = CalibrationPhotos(folder, SPEC)

    assert len(photos) == 10
    assert [photos[place].shape for place in range(10)] == [(32, 32, 3)] * 10
    assert [int(photos[place][0, 0, 0]) for place in range(10)] == list(range(225, -1, -25))


def test_unreadable_photos_are_named_and_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged image is left out by its name; what is no image by its suffix is not looked at."""
    (folder / "broken.jpeg").write_bytes(b"nothing")
    (folder / "labels.csv").write_text("file,label")

    assert len(CalibrationPhotos(folder, SPEC)) == 10
    assert f"{folder / 'broken.jpeg'} is not used for calibration: not an image" in caplog.text
    assert "labels.csv" not in caplog.text


def test_what_is_no_file_is_not_opened(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe or a link to nothing is named and skipped: reading from a pipe would not end."""
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nowhere.jpg").symlink_to(folder / "nothing")
    found: list[CalibrationPhotos] = []
    reader = Thread(target=lambda: found.append(CalibrationPhotos(folder, SPEC)), daemon=True)
    reader.start()
    reader.join(timeout=60)

    assert [len(photos) for photos in found] == [10]
    for name in ("pipe.jpg", "nowhere.jpg"):
        assert f"{folder / name} is not used for calibration: it is no file" in caplog.text


def test_too_few_photos(folder: Path) -> None:
    """Fewer than ten that can be read are refused, with how many there are."""
    (folder / "0.png").write_bytes(b"nothing")

    with pytest.raises(CalibrationError, match=r"holds 9 photos .* needs 10 at least"):
        CalibrationPhotos(folder, SPEC)


def test_many_photos_are_thinned_evenly(tmp_path: Path) -> None:
    """Of 1,024 photos every second is taken, from the first on, so that no class at the end is left out."""
    content = png(7)
    for number in range(1024):
        (tmp_path / f"{number:04}.png").write_bytes(content)
    for number in range(0, 1024, 2):
        (tmp_path / f"{number:04}.png").write_bytes(png(9))
    photos = CalibrationPhotos(tmp_path, InputSpec(resize=8, crop=8))

    assert len(photos) == 512
    assert {int(photos[place][0, 0, 0]) for place in (0, 100, 511)} == {9}


def test_graph_is_as_tensorrt_asks(quantised: EngineGraph, trained: Path) -> None:
    """Inputs and weights of all 26 convolutions in int8, zero points 0, weights by channel, contract as ever."""
    model = onnx.load(quantised.path)
    artifact = load(trained, "squeezenet1_1")
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]

    check(model, artifact.manifest.input, 1000)
    assert len(convolutions) == 26
    for node in convolutions:
        assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        weights = made_by[node.input[1]]
        assert values[weights.input[1]].shape == (values[made_by[weights.input[0]].input[0]].shape[0],)
        assert values[node.input[2]].dtype == np.float16  # a bias is not quantised
    for node in pairs:
        assert values[node.input[1]].dtype == np.float16
        assert values[node.input[2]].dtype == np.int8
        assert not values[node.input[2]].any()
    for normalising in [node for node in model.graph.node if node.op_type in ("Mul", "Add")]:
        assert "DequantizeLinear" not in {made_by[name].op_type for name in normalising.input if name in made_by}


def test_answers_stay(quantised: EngineGraph, trained: Path, shared_data: Path) -> None:
    """The best class of each labelled photo is its label in int8 as in f32, and the gate's figures are kept."""
    artifact = load(trained, "squeezenet1_1")
    with (shared_data / "photos" / "labels.csv").open(newline="") as file:
        labels = {row["file"]: int(row["class_id"]) for row in csv.DictReader(file)}
    images = np.stack([photo(shared_data / "photos" / name, artifact.manifest.input) for name in labels])

    assert answers(artifact, quantised.path, images).argmax(axis=1).tolist() == list(labels.values())
    assert quantised.photos == 12
    assert quantised.parity is not None
    assert (quantised.parity.precision, quantised.parity.passed) == ("int8", True)


def test_progress(folder: Path, tmp_path: Path) -> None:
    """Each photo is told of, in order."""
    seen: list[tuple[int, int]] = []
    half = tmp_path / "half.onnx"
    spec = CATALOG["lenet5"].input
    write_onnx(ServedNetwork(to_half(seeded(lenet5)), spec).eval(), spec, 10, half)
    quantise(half, CalibrationPhotos(folder, spec), tmp_path / "int8.onnx", lambda *told: seen.append(told))

    assert seen == [(done, 10) for done in range(1, 11)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.onnx", "int8.onnx", "photos"]
    model = onnx.load(tmp_path / "int8.onnx")
    made_by = {output: node for node in model.graph.node for output in node.output}
    first, *others = [node for node in model.graph.node if node.op_type == "Conv"]
    assert first.input[0] in made_by
    assert made_by[first.input[0]].op_type == "Transpose"  # luma, from pixels in f32
    assert {made_by[node.input[0]].op_type for node in others} == {"DequantizeLinear"}
    assert {one.data_type for one in model.graph.initializer} >= {TensorProto.INT8}


def test_int8_that_fails_the_gate(tmp_path: Path, folder: Path) -> None:
    """Calibrated on plain colours, LeNet-5 no longer reads: no graph, the figures, and what to do."""
    export(CATALOG["lenet5"], WeightsChoice.parse("pretrained", None), tmp_path, NullReporter())
    artifact = load(tmp_path, "lenet5")
    assert artifact.manifest.weights.source is WeightSource.PRETRAINED
    work = tmp_path / "work"
    work.mkdir()
    shutil.rmtree(folder)
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(png(128))

    with pytest.raises(
        ParityError, match=r"lenet5 in int8 differs .* use other photos, or --precision fp16: .*top-1 agrees"
    ):
        engine_graph(artifact, Precision.INT8, folder, work, NullReporter())


def test_int8_without_photos(exported: Path, tmp_path: Path) -> None:
    """Without a folder of photos there is no int8."""
    with pytest.raises(ExportError, match="use --calibration with a folder of 10 photos or more"):
        engine_graph(load(exported, "tiny"), Precision.INT8, None, tmp_path, NullReporter())


def test_int8_of_few_photos_is_said(exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten photos are enough to go on, and few enough to say so."""
    assert len(list(PHOTOS.iterdir())) >= 10
    graph = engine_graph(load(exported, "tiny"), Precision.INT8, PHOTOS, tmp_path, NullReporter())

    assert f"only {graph.photos} photos calibrate int8; use 100 or more" in caplog.text
