"""Exports from beginning to end: what the manifest says, where weights come from, and that failures leave nothing."""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.gate_images import photos, random_pixels
from export.pipeline import export
from export.weights_choice import WeightsChoice
from models.analysis.layer_table import read_layers
from models.analysis.trace import network_layers
from models.artifact.artifact import WeightSource, load, versions
from models.build import SEED, build
from models.catalog import CATALOG, Architecture
from models.labels import imagenet_labels
from models.weights.weights import HostUnreachableError, WeightsError
from service.common.types import Batch, ImageLimits, Precision, Probabilities, Runtime
from service.engines.openvino import has_bf16
from service.engines.selection.opening import build_engine
from service.engines.selection.select import EngineOptions, installed
from service.preprocessing import decode, transforms
from tests.conftest import NullReporter

TINY = CATALOG["tiny"]
SQUEEZENET = CATALOG["squeezenet1_1"]  # its weights come with topfive
DOWNLOADED = CATALOG["squeezenet1_1@IMAGENET1K_V1"]
UNTRAINED = WeightsChoice.parse("untrained", None)


class StepReporter(NullReporter):
    """Keeps the names of the steps, and interrupts the step whose name contains `interrupted`."""

    def __init__(self, interrupted: str = "nothing") -> None:
        self.names: list[str] = []
        self._interrupted = interrupted

    def step(self, what: str) -> None:
        self.names.append(what)
        if self._interrupted in what:
            raise KeyboardInterrupt


def nothing_in(*folders: Path) -> bool:
    """Whether there is no file under any of these folders."""
    return not [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def eager(network: torch.nn.Module, architecture: Architecture, images: Batch) -> Probabilities:
    """Eager PyTorch with the normalisation written out by hand."""
    mean, std = torch.tensor(architecture.input.mean), torch.tensor(architecture.input.std)
    normalised = ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        probabilities: Probabilities = torch.softmax(network.eval()(normalised), dim=1).numpy()
    return probabilities


def test_manifest_says_what_the_model_is(exported: Path) -> None:
    """Name, family, input, classes, parameters and operations are those of the catalog and of the network.

    Untrained weights have their seed and no sha256; the tools that wrote and checked the file have their versions.
    """
    manifest = load(exported, "tiny").manifest
    cost = network_layers(build(TINY), TINY.input).cost

    assert (manifest.name, manifest.family, manifest.year) == ("tiny", "tiny", TINY.year)
    assert (manifest.input, manifest.classes) == (TINY.input, 1000)
    assert (manifest.parameters, manifest.macs) == (cost.parameters, cost.macs) == (TINY.parameters, TINY.macs)
    assert (manifest.acc1, manifest.acc5) == (None, None)
    weights = manifest.weights
    assert (weights.source, weights.name, weights.seed) == (WeightSource.UNTRAINED, "untrained", SEED)
    assert weights.sha256 is None
    assert {"torch", "torchvision", "onnx", "onnxscript", "openvino", "numpy", "pillow"} <= manifest.tools.keys()
    assert manifest.tools["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_manifest_has_the_sha256_of_every_file(exported: Path) -> None:
    """Every file of the artifact but the manifest is listed with its sha256, and there is no other.

    The table of layers is that of the network.
    """
    artifact = load(exported, "tiny")
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in artifact.folder.iterdir()
        if path.name != "manifest.json"
    }

    assert artifact.manifest.files == hashes
    assert set(hashes) == {"model.onnx", "labels.csv", "layers.json", "reference.npz", "weights.safetensors"}
    assert artifact.labels == imagenet_labels()
    assert read_layers(exported, artifact.version, artifact.manifest) == network_layers(build(TINY), TINY.input)


def test_manifest_has_the_parity_of_every_engine(exported: Path) -> None:
    """OpenVINO and ONNX Runtime in f32, and bf16 where the CPU has it, on ten photos and six random images."""
    found = {(report.runtime, report.precision): report for report in load(exported, "tiny").manifest.parity}

    expected = {("openvino", "f32"), ("onnxruntime", "f32")} | ({("openvino", "bf16")} if has_bf16() else set())
    assert expected <= found.keys()
    for report in found.values():
        assert report.passed
        assert (report.images, report.batch_sizes) == (16, (1, 3, 8))
        assert report.max_abs_diff <= report.thresholds.max_abs_diff


def test_artifact_holds_the_served_network(exported: Path) -> None:
    """The state dict in the artifact, built by hand, gives the answers of the graph in it."""
    artifact = load(exported, "tiny")
    network = build(TINY)
    network.load_state_dict(load_file(artifact.folder / "weights.safetensors"))
    images = np.concatenate([photos(TINY.input), random_pixels(TINY.input, 4)])
    engine = build_engine(artifact, Runtime.ONNXRUNTIME, Precision.F32, EngineOptions())

    np.testing.assert_allclose(engine.run(images), eager(network, TINY, images), atol=1e-6)
    engine.close()


def test_untrained_twice_is_the_same_file(artifacts: Path) -> None:
    """A second untrained export is version 2, and its graph, labels and weights are the first one's byte for byte."""
    first = load(artifacts, "tiny")
    steps = StepReporter()
    torch.manual_seed(12345)

    done = export(TINY, UNTRAINED, artifacts, steps)

    assert done.version == 2
    assert versions(artifacts, "tiny") == [1, 2]
    assert done.manifest.files == first.manifest.files
    assert done.fallback_reason is None
    assert steps.names[:3] == ["network and weights", "ONNX graph", "PyTorch's own answers"]
    assert steps.names[3:] == [*(f"parity on {r.runtime} in {r.precision}" for r in done.manifest.parity), "artifact"]


def test_weights_from_a_file_are_recorded_and_served(tmp_path: Path) -> None:
    """The artifact has name and sha256 of the user's file, and answers as the network that wrote it."""
    network = build(TINY)
    torch.nn.init.normal_(network.get_parameter("classifier.weight"), generator=torch.Generator().manual_seed(3))
    file, root = tmp_path / "mine.pth", tmp_path / "artifacts"
    torch.save(network.state_dict(), file)

    weights = export(TINY, WeightsChoice.parse(str(file), None), root, NullReporter()).manifest.weights

    assert (weights.source, weights.name, weights.seed) == (WeightSource.FILE, "mine.pth", None)
    assert weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    images = random_pixels(TINY.input, 5)
    engine = build_engine(load(root, "tiny"), Runtime.OPENVINO, Precision.F32, EngineOptions())
    np.testing.assert_allclose(engine.run(images), eager(network, TINY, images), atol=1e-5)
    engine.close()


def test_auto_falls_back_where_the_host_cannot_be_reached(tmp_path: Path, unreachable: str) -> None:
    """There is an untrained artifact without the accuracy of the published weights, and the reason has the address."""
    done = export(DOWNLOADED, WeightsChoice.parse("auto", unreachable), tmp_path, NullReporter())
    manifest = load(tmp_path, DOWNLOADED.name).manifest

    assert manifest == done.manifest
    assert manifest.weights.source is WeightSource.UNTRAINED
    assert f"{unreachable}/squeezenet1_1-b8a52dc0.pth cannot be reached" in (done.fallback_reason or "")
    assert (manifest.acc1, manifest.acc5) == (None, None)
    assert (manifest.parameters, manifest.macs) == (DOWNLOADED.parameters, DOWNLOADED.macs)
    assert all(report.passed for report in manifest.parity)


def test_pretrained_never_means_untrained(tmp_path: Path, downloads: Path, unreachable: str) -> None:
    """Where the host cannot be reached or nothing is published, the export fails and leaves nothing."""
    with pytest.raises(HostUnreachableError, match="cannot be reached"):
        export(DOWNLOADED, WeightsChoice.parse("pretrained", unreachable), tmp_path, NullReporter())
    with pytest.raises(WeightsError, match="no pretrained weights; use --weights untrained"):
        export(TINY, WeightsChoice.parse("pretrained", None), tmp_path, NullReporter())

    assert nothing_in(tmp_path, downloads)


@pytest.mark.parametrize("weights", ["auto", "pretrained"])
def test_file_of_another_checksum_is_never_a_fallback(tmp_path: Path, downloads: Path, weights: str) -> None:
    """A host that sends something else than the file is an error even with `auto`, and nothing at all is kept."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"not the file")

    with pytest.raises(WeightsError, match=r"sha256 begins [0-9a-f]{8}, not b8a52dc0") as caught:
        export(DOWNLOADED, WeightsChoice.parse(weights, mirror.as_uri()), tmp_path / "artifacts", NullReporter())

    assert not isinstance(caught.value, HostUnreachableError)
    assert nothing_in(tmp_path / "artifacts", downloads)


@pytest.mark.parametrize("step", ["network", "ONNX graph", "PyTorch", "parity on onnxruntime", "artifact"])
def test_interrupted_export_leaves_nothing(artifacts: Path, tmp_path: Path, step: str) -> None:
    """Ctrl-C at any step leaves no draft and no folder of the model, and a version before it as it was."""
    before = load(artifacts, "tiny").manifest
    (tmp_path / "empty").mkdir()

    for root in (tmp_path / "empty", artifacts):
        with pytest.raises(KeyboardInterrupt):
            export(TINY, UNTRAINED, root, StepReporter(step))

    assert list((tmp_path / "empty").iterdir()) == []
    assert [path.name for path in artifacts.iterdir()] == ["tiny"]
    assert [path.name for path in (artifacts / "tiny").iterdir()] == ["1"]
    assert load(artifacts, "tiny").manifest == before


@dataclass(frozen=True, slots=True)
class LabelledPhotos:
    """The labelled photos as the service reads them, their classes, and eager PyTorch's answers."""

    samples: Batch
    classes: list[int]
    expected: Probabilities


@pytest.fixture(scope="module")
def labelled(shared_data: Path) -> LabelledPhotos:
    """The ten photos and torchvision's own squeezenet1_1 with the trained weights."""
    from torchvision.models import squeezenet1_1

    with (shared_data / "photos" / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    files = [shared_data / "photos" / row["file"] for row in rows]
    images = [decode.decode_pixels(file.read_bytes(), ImageLimits()) for file in files]
    samples = np.stack([transforms.center_crop(SQUEEZENET.input, image) for image in images])
    network = squeezenet1_1(weights=None)
    network.load_state_dict(load_file(shared_data / "squeezenet1_1.safetensors"))
    return LabelledPhotos(samples, [int(row["class_id"]) for row in rows], eager(network, SQUEEZENET, samples))


def test_trained_weights_pass_with_room(trained: Path) -> None:
    """The artifact has the accuracy of its weights, and passed with room: f32 is ten times closer than it must be."""
    manifest = load(trained, "squeezenet1_1").manifest

    assert (manifest.acc1, manifest.weights.name) == (58.382, "CAFFE_2016")
    for report in manifest.parity:
        assert report.passed
        if report.precision == "f32":
            assert report.max_abs_diff < 0.1 * report.thresholds.max_abs_diff


@pytest.mark.parametrize(
    ("runtime", "precision", "tolerance"),
    [
        (Runtime.OPENVINO, Precision.F32, 1e-4),
        (Runtime.OPENVINO, Precision.BF16, 0.03),
        (Runtime.ONNXRUNTIME, Precision.F32, 1e-4),
        (Runtime.ONNXRUNTIME_CUDA, Precision.F32, 1e-4),
        (Runtime.TORCH, Precision.F32, 1e-4),
    ],
)
def test_every_engine_names_the_ten_photos(
    trained: Path, labelled: LabelledPhotos, runtime: Runtime, precision: Precision, tolerance: float
) -> None:
    """With trained weights each engine gives the true class of each photo, alone and in a batch, as PyTorch does."""
    if precision is Precision.BF16 and not has_bf16():
        pytest.skip("needs a CPU with bf16 (AMX or AVX-512-BF16)")
    if not installed(runtime):
        pytest.skip(f"needs {runtime}")
    engine = build_engine(load(trained, "squeezenet1_1"), runtime, precision, EngineOptions(cpus=2, max_batch=16))

    together = engine.run(labelled.samples)
    alone = np.concatenate([engine.run(sample[None]) for sample in labelled.samples])
    engine.close()

    for given in (together, alone):
        assert given.argmax(axis=1).tolist() == labelled.classes
        assert np.abs(given - labelled.expected).max() < tolerance
