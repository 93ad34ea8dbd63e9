"""int8 for CPUs: which photos calibrate it, what is kept and compared, and that answers stay right."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from export import quantization
from export.calibration import CalibrationError
from export.common import ExportError, QuantizationRequest
from export.gate_images import PHOTOS
from export.importing.pipeline import ImportRequest, import_model
from export.parity_gate import ParityError
from export.quantization import quantize
from models.artifact.artifact import Artifact, Thresholds, load
from models.artifact.measured import read_measured, record_accuracy
from models.artifact.quantized import read_quantized
from proto.topfive.v1 import classifier_pb2 as pb
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.engines.selection.opening import build_engine
from service.engines.selection.parity import compare
from service.engines.selection.select import EngineOptions
from tests.conftest import NullReporter, png
from tests.engines.test_int8 import accuracy
from tests.onnx_models import SIZE, classifier, model_of, recipe, saved
from tests.serving import serving


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured for a moment only."""
    monkeypatch.setattr(quantization, "_ROUND_S", 0.01)


def crops(photo: Path, folder: Path, count: int) -> None:
    """Writes parts of a photo into the folder, as JPEGs."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(photo.name))
    with Image.open(photo) as image:
        side = min(image.size)
        for number in range(count):
            part = int(side * random.uniform(0.7, 1))
            left, top = (int(random.integers(0, length - part + 1)) for length in image.size)
            box = (left, top, left + part, top + part)
            image.convert("RGB").crop(box).save(folder / f"{photo.stem}-{number}.jpg", quality=92)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 130 parts of the photos that come with the project."""
    folder = tmp_path_factory.mktemp("photos")
    for photo in PHOTOS.glob("*.jpeg"):
        crops(photo, folder, 13)
    return folder


@pytest.fixture
def squeezenet(trained: Path, tmp_path: Path) -> Artifact:
    """SqueezeNet with trained weights, in an artifact that the test may change."""
    shutil.copytree(trained, tmp_path / "trained")
    return load(tmp_path / "trained", "squeezenet1_1")


@pytest.fixture
def tiny(artifacts: Path) -> Artifact:
    """The artifact of `tiny`, untrained, which the test may change."""
    return load(artifacts, "tiny")


async def test_all_labelled_photos_stay_right(
    squeezenet: Artifact, photos: Path, shared_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each photo has its class by REST and by gRPC in int8; /models has the record, and the parity passed."""
    done = quantize(squeezenet, QuantizationRequest(photos), NullReporter())
    with (shared_data / "photos" / "labels.csv").open(newline="") as file:
        labels = {row["file"]: int(row["class_id"]) for row in csv.DictReader(file)}

    assert len(labels) >= 10
    root = squeezenet.folder.parents[1]
    async with serving(root, models=("squeezenet1_1",), precision=Precision.INT8) as running:
        for name, class_id in labels.items():
            image = (shared_data / "photos" / name).read_bytes()
            rest = await running.rest("/predict", image)
            rpc = await running.rpc(pb.ClassifyRequest(image=image))
            assert rest["engine"]["precision"] == rpc["engine"]["precision"] == "int8"
            assert rest["predictions"][0]["class_id"] == rpc["predictions"][0]["class_id"] == class_id, name
        rest = await running.rest("/models/squeezenet1_1")
        rpc = await running.rpc(pb.GetModelRequest(name="squeezenet1_1"))
    assert rest["quantized"] == done.record.model_dump(mode="json")
    assert rest["quantized"]["parity"]["passed"] is True
    assert rpc["quantized"]["photos"] == rest["quantized"]["photos"] == 104
    assert rest["quantized"]["parity"]["images"] == 26  # one of five is kept aside
    assert "check int8" not in caplog.text


def test_record_says_how_it_was_made(squeezenet: Artifact, photos: Path) -> None:
    """All layers are in int8, the speed of each precision is there, and the same photos have the same fingerprint."""
    first = quantize(squeezenet, QuantizationRequest(photos, samples=12), NullReporter())
    again = quantize(squeezenet, QuantizationRequest(photos, samples=12), NullReporter())
    others = quantize(squeezenet, QuantizationRequest(photos, samples=16), NullReporter())

    assert first.record.floating_point == ()
    assert first.record.photos == 12
    assert {one.precision for one in first.record.speeds} >= {"f32", "int8"}
    assert first.record.photos_sha256 == again.record.photos_sha256 != others.record.photos_sha256
    assert read_quantized(squeezenet) == others


def test_graph_is_smaller_and_answers_in_any_batch(squeezenet: Artifact, photos: Path) -> None:
    """The int8 weights take a quarter of the room, and a batch of three gives what three batches of one give."""
    done = quantize(squeezenet, QuantizationRequest(photos, samples=12), NullReporter())
    assert done.path().with_suffix(".bin").stat().st_size < 0.3 * squeezenet.graph.stat().st_size

    engine = build_engine(squeezenet, Runtime.OPENVINO, Precision.INT8, EngineOptions(cpus=2, max_batch=3))
    try:
        images = np.random.default_rng(3).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
        together = engine.run(images)
        alone = np.concatenate([engine.run(images[row : row + 1]) for row in range(3)])
        assert engine.describe().precision == "int8"
    finally:
        engine.close()
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_layers_stay_in_floating_point_where_the_gate_fails(
    squeezenet: Artifact, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed check the first and the last layer are left out; if that fails too, nothing is written."""
    gate = Thresholds(max_abs_diff=0.0, logit_cosine=1.0, top1_agreement=1.0, top5_agreement=1.0)
    tried: list[bool] = []

    def second_passes(*given: object, **named: object) -> object:
        report = compare(*given, **named)  # type: ignore[arg-type]
        tried.append(report.passed)
        return report.model_copy(update={"passed": len(tried) == 2})

    monkeypatch.setattr(quantization, "_THRESHOLDS", gate)
    with pytest.raises(ParityError, match=r"squeezenet1_1 in int8 differs from f32, nothing was written; .*max \|dp\|"):
        quantize(squeezenet, QuantizationRequest(photos, samples=12), NullReporter())
    assert read_quantized(squeezenet) is None
    assert [one.name for one in squeezenet.folder.iterdir() if "int8" in one.name] == []

    monkeypatch.setattr(quantization, "compare", second_passes)
    done = quantize(squeezenet, QuantizationRequest(photos, samples=12), NullReporter())
    assert tried == [False, False]
    assert len(done.record.floating_point) == 2
    assert not done.record.accuracy_control


def test_labels_control_the_accuracy(
    squeezenet: Artifact, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a folder for each class, NNCF chooses what stays in floating point once the other ways have failed."""
    tried: list[bool] = []

    def third_passes(*given: object, **named: object) -> object:
        tried.append(True)
        return compare(*given, **named).model_copy(update={"passed": len(tried) == 3})  # type: ignore[arg-type]

    with (shared_data / "photos" / "labels.csv").open(newline="") as file:
        for row in list(csv.DictReader(file))[:4]:
            crops(shared_data / "photos" / row["file"], tmp_path / "classes" / row["wnid"], 4)
    monkeypatch.setattr(quantization, "compare", third_passes)

    done = quantize(squeezenet, QuantizationRequest(tmp_path / "classes"), NullReporter())

    assert len(tried) == 3
    assert done.record.accuracy_control


def test_photos_that_come_with_topfive_calibrate_by_default(tiny: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    """Without a folder those ten are used, with a warning: they are few."""
    done = quantize(tiny, QuantizationRequest(), NullReporter())

    assert done.record.photos == 8
    assert "only 10 photos calibrate and check int8; use 100 or more" in caplog.text


def test_previews_of_file_servers_do_not_calibrate(tiny: Artifact, tmp_path: Path) -> None:
    """Hidden folders and those of tools hold copies and deleted files: their images do not count."""
    for folder, count in ((".trash", 9), ("@eaDir", 9), ("photos", 10)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            (tmp_path / folder / f"{number}.png").write_bytes(png(25 * number))

    assert quantize(tiny, QuantizationRequest(tmp_path), NullReporter()).record.photos == 8


def test_few_photos_are_refused(tiny: Artifact, tmp_path: Path) -> None:
    """Nine photos that can be read are too few, whatever else lies there."""
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "damaged.png").write_bytes(png(9)[:40])

    with pytest.raises(CalibrationError, match="holds 9 photos that can be read; calibration needs 10 at least"):
        quantize(tiny, QuantizationRequest(tmp_path), NullReporter())
    assert read_quantized(tiny) is None


def test_full_disk(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's error, which names no file, becomes an OSError, and nothing is left."""

    def full(*_given: object, **_named: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr("openvino.save_model", full)
    before = sorted(tiny.folder.iterdir())

    with pytest.raises(OSError, match=r"OpenVINO cannot write the int8 graph: .*iostream"):
        quantize(tiny, QuantizationRequest(), NullReporter())
    assert sorted(tiny.folder.iterdir()) == before


def test_nncf_is_not_installed(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that brings it, before any photo is read."""
    monkeypatch.setattr(quantization, "package_version", lambda _name: None)

    with pytest.raises(ExportError, match=r"pip install '\.\[int8\]'"):
        quantize(tiny, QuantizationRequest(Path("no such folder")), NullReporter())


def test_model_that_openvino_may_not_run(tiny: Artifact) -> None:
    """int8 is compared with f32 in OpenVINO: where that failed its own check, nothing is quantized."""
    failed = [one.model_copy(update={"passed": False}) for one in tiny.manifest.parity if one.runtime == "openvino"]
    broken = replace(tiny, manifest=tiny.manifest.model_copy(update={"parity": tuple(failed)}))

    with pytest.raises(EngineUnavailableError, match="its answers differ from the original's"):
        quantize(broken, QuantizationRequest(), NullReporter())


def test_accuracy_of_the_older_graph_is_deleted(tiny: Artifact) -> None:
    """`auto` judges the new graph by measurements of its own: those in int8 are deleted, those in f32 stay."""
    for precision in ("int8", "f32"):
        record_accuracy(tiny.manifest_file, accuracy(precision, 70))

    quantize(tiny, QuantizationRequest(), NullReporter())

    assert read_measured(tiny.manifest_file) == (accuracy("f32", 70),)


@pytest.mark.parametrize(("layers", "reason"), [(0, "no convolution and no matrix product"), (1, "differs from f32")])
def test_graph_of_few_layers(layers: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph without layers for int8 is refused, and one of a single layer that fails the gate is tried once."""
    gate = Thresholds(max_abs_diff=0.0, logit_cosine=1.0, top1_agreement=1.0, top5_agreement=1.0)
    tried: list[object] = []

    def counting(*given: object, **named: object) -> object:
        tried.append(given)
        return compare(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(quantization, "_THRESHOLDS", gate)
    monkeypatch.setattr(quantization, "compare", counting)
    pooled = model_of(
        [helper.make_node("GlobalAveragePool", ["x"], ["v"]), helper.make_node("Flatten", ["v"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        {},
    )
    network = saved(classifier() if layers else pooled, tmp_path)
    declared = recipe(tmp_path, 'output = "logits"\n')
    import_model(ImportRequest(network, "mine", declared, None), tmp_path / "imported", NullReporter())

    with pytest.raises(ExportError, match=reason):
        quantize(load(tmp_path / "imported", "mine"), QuantizationRequest(), NullReporter())
    assert len(tried) == layers


def test_imported_model(squeezenet: Artifact, photos: Path, tmp_path: Path) -> None:
    """A model without a PyTorch network is quantized as well: here SqueezeNet's graph, imported from its file."""
    declared = recipe(tmp_path, 'output = "probabilities"\nresize = 256\n')
    root = tmp_path / "imported"
    import_model(ImportRequest(squeezenet.graph, "mine", declared, None), root, NullReporter())

    done = quantize(load(root, "mine"), QuantizationRequest(photos), NullReporter())

    assert done.record.parity.passed
    assert read_quantized(load(root, "mine")) == done
