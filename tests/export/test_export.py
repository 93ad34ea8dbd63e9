"""Exports from beginning to end: what the manifest says, where weights come from, and that failures leave nothing."""

import csv
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.gate_images import photos, random_pixels
from export.pipeline import ExportResult, WeightsChoice, export
from models.analysis.layer_table import read_layers
from models.analysis.trace import network_layers
from models.artifact.artifact import Artifact, ParityReport, WeightSource, load, versions
from models.build import SEED, build
from models.catalog import CATALOG, Architecture
from models.labels import imagenet_labels
from models.weights.weights import HostUnreachableError, WeightsError
from service.common.types import Batch, ImageLimits, Precision, Probabilities, Runtime
from service.engines.openvino.engine import has_bf16
from service.engines.selection.opening import build_engine
from service.engines.selection.select import EngineOptions, installed
from service.preprocessing import decode, transforms
from tests.conftest import NullReporter

TINY = CATALOG["tiny"]
SQUEEZENET = CATALOG["squeezenet1_1"]
UNTRAINED = WeightsChoice.parse("untrained", None)


class Interrupted(NullReporter):
    """Ctrl-C when the step begins that contains `word`."""

    def __init__(self, word: str) -> None:
        self._word = word

    def step(self, what: str) -> None:
        if self._word in what:
            raise KeyboardInterrupt


class Steps(NullReporter):
    """Keeps the names of the steps."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def step(self, what: str) -> None:
        self.names.append(what)


@pytest.fixture(scope="module")
def unreachable() -> Iterator[str]:
    """The address of a local port that is taken and that nobody listens on, so that connections are refused."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{deaf.getsockname()[1]}"


@pytest.fixture(scope="module", autouse=True)
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Downloads go to an empty cache, not to the user's own, and past any proxy."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("torch")
        patch.setenv("TORCH_HOME", str(home))
        patch.setenv("no_proxy", "*")
        yield home


@dataclass(frozen=True, slots=True)
class Mirror:
    """A local download host that answers every request with the same bytes."""

    url: str
    asked: list[str]


@pytest.fixture
def mirror() -> Iterator[Callable[..., Mirror]]:
    """Starts a local download host."""
    servers: list[ThreadingHTTPServer] = []

    def start(body: bytes) -> Mirror:
        asked: list[str] = []

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return Mirror(f"http://127.0.0.1:{server.server_address[1]}/models", asked)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def nothing_in(*folders: Path) -> bool:
    """Whether there is no file under any of these folders."""
    return not [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def reports(artifact: Artifact) -> dict[tuple[str, str], ParityReport]:
    """The parity reports by runtime and precision."""
    return {(report.runtime, report.precision): report for report in artifact.manifest.parity}


def eager(network: torch.nn.Module, architecture: Architecture, images: Batch) -> Probabilities:
    """Eager PyTorch with the normalisation written out by hand."""
    mean, std = torch.tensor(architecture.input.mean), torch.tensor(architecture.input.std)
    normalised = ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        probabilities: Probabilities = torch.softmax(network.eval()(normalised), dim=1).numpy()
    return probabilities


def test_manifest_says_what_the_model_is(exported: Path) -> None:
    """Name, family, input, classes, parameters and operations are those of the catalog and of the network."""
    manifest = load(exported, "tiny").manifest

    cost = network_layers(build(TINY), TINY.input).cost
    assert (manifest.name, manifest.family, manifest.year) == ("tiny", "tiny", TINY.year)
    assert manifest.input == TINY.input
    assert manifest.classes == 1000
    assert (manifest.parameters, manifest.macs) == (cost.parameters, cost.macs) == (TINY.parameters, TINY.macs)
    assert (manifest.acc1, manifest.acc5) == (None, None)


def test_manifest_has_the_seed_of_untrained_weights(exported: Path) -> None:
    """Untrained weights are recorded as such, with their seed and no sha256."""
    weights = load(exported, "tiny").manifest.weights

    assert weights.source is WeightSource.UNTRAINED
    assert (weights.name, weights.seed, weights.sha256) == ("untrained", SEED, None)


def test_manifest_has_the_sha256_of_every_file(exported: Path) -> None:
    """Every file of the artifact but the manifest is listed with its sha256, and there is no other."""
    artifact = load(exported, "tiny")

    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in artifact.folder.iterdir()
        if path.name != "manifest.json"
    }
    assert artifact.manifest.files == hashes
    assert set(hashes) == {"model.onnx", "labels.csv", "layers.json", "reference.npz", "weights.safetensors"}
    assert artifact.labels == imagenet_labels()


def test_layers_are_those_of_the_network(exported: Path) -> None:
    """The table of layers in the artifact is that of the network, and adds up to what the manifest says."""
    artifact = load(exported, "tiny")
    table = read_layers(exported, artifact.version, artifact.manifest)

    assert table == network_layers(build(TINY), TINY.input)
    assert (table.cost.parameters, table.cost.macs) == (artifact.manifest.parameters, artifact.manifest.macs)


def test_manifest_has_the_versions_of_the_tools(exported: Path) -> None:
    """What wrote and checked the file is recorded with its version."""
    tools = load(exported, "tiny").manifest.tools

    assert {"torch", "torchvision", "onnx", "onnxscript", "openvino", "numpy", "pillow"} <= tools.keys()
    assert tools["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_manifest_has_the_parity_of_every_engine(exported: Path) -> None:
    """OpenVINO and ONNX Runtime in f32, and bf16 where the CPU has it, on ten photos and six random images."""
    found = reports(load(exported, "tiny"))

    expected = {("openvino", "f32"), ("onnxruntime", "f32")} | ({("openvino", "bf16")} if has_bf16() else set())
    assert expected <= found.keys()
    for report in found.values():
        assert report.passed
        assert report.images == 16
        assert report.batch_sizes == (1, 3, 8)
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
    steps = Steps()
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
    file = tmp_path / "mine.pth"
    torch.save(network.state_dict(), file)
    root = tmp_path / "artifacts"

    done = export(TINY, WeightsChoice.parse(str(file), None), root, NullReporter())

    weights = done.manifest.weights
    assert (weights.source, weights.name) == (WeightSource.FILE, "mine.pth")
    assert weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert weights.seed is None
    images = random_pixels(TINY.input, 5)
    engine = build_engine(load(root, "tiny"), Runtime.OPENVINO, Precision.F32, EngineOptions())
    np.testing.assert_allclose(engine.run(images), eager(network, TINY, images), atol=1e-5)
    engine.close()


@dataclass(frozen=True, slots=True)
class Fallback:
    """An export with `auto` whose download host could not be reached."""

    done: ExportResult
    root: Path


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory, unreachable: str) -> Fallback:
    """squeezenet1_1 with `auto`, where nobody listens at the mirror."""
    root = tmp_path_factory.mktemp("fallback")
    done = export(SQUEEZENET, WeightsChoice.parse("auto", unreachable), root, NullReporter())
    return Fallback(done, root)


def test_auto_falls_back_where_the_host_cannot_be_reached(fallback: Fallback, unreachable: str) -> None:
    """There is an untrained artifact, and the reason is given with the address that was tried."""
    assert fallback.done.manifest.weights.source is WeightSource.UNTRAINED
    assert fallback.done.fallback_reason is not None
    assert f"{unreachable}/squeezenet1_1-b8a52dc0.pth cannot be reached" in fallback.done.fallback_reason
    assert load(fallback.root, "squeezenet1_1").manifest == fallback.done.manifest


def test_fallback_claims_no_accuracy(fallback: Fallback) -> None:
    """The published accuracy belongs to the published weights, not to untrained ones."""
    manifest = fallback.done.manifest

    assert (manifest.acc1, manifest.acc5) == (None, None)
    assert (manifest.parameters, manifest.macs) == (SQUEEZENET.parameters, SQUEEZENET.macs)
    assert all(report.passed for report in manifest.parity)


def test_pretrained_does_not_fall_back(tmp_path: Path, downloads: Path, unreachable: str) -> None:
    """Asked for trained weights, an export whose host cannot be reached fails and leaves nothing."""
    choice = WeightsChoice.parse("pretrained", unreachable)

    with pytest.raises(HostUnreachableError, match="cannot be reached"):
        export(SQUEEZENET, choice, tmp_path, NullReporter())

    assert nothing_in(tmp_path, downloads)


def test_pretrained_of_a_network_without_published_weights_is_an_error(tmp_path: Path) -> None:
    """`pretrained` never means untrained; the message says what to ask for instead."""
    with pytest.raises(WeightsError, match="no pretrained weights; use --weights untrained"):
        export(TINY, WeightsChoice.parse("pretrained", None), tmp_path, NullReporter())

    assert nothing_in(tmp_path)


@pytest.mark.parametrize("weights", ["auto", "pretrained"])
def test_file_of_another_checksum_is_never_a_fallback(
    mirror: Callable[..., Mirror], tmp_path: Path, downloads: Path, weights: str
) -> None:
    """A host that sends something else than the file is an error even with `auto`, and nothing at all is kept."""
    host = mirror(b"not the file")

    with pytest.raises(WeightsError, match=r"sha256 begins [0-9a-f]{8}, not b8a52dc0") as caught:
        export(SQUEEZENET, WeightsChoice.parse(weights, host.url), tmp_path, NullReporter())

    assert not isinstance(caught.value, HostUnreachableError)
    assert host.asked == ["/models/squeezenet1_1-b8a52dc0.pth"]
    assert nothing_in(tmp_path, downloads)


@pytest.mark.parametrize("word", ["network", "parity on onnxruntime", "artifact"])
def test_interrupted_export_leaves_nothing(tmp_path: Path, word: str) -> None:
    """Ctrl-C at any step leaves no file and no folder of the model."""
    with pytest.raises(KeyboardInterrupt):
        export(TINY, UNTRAINED, tmp_path, Interrupted(word))

    assert list(tmp_path.iterdir()) == []


def test_interrupted_export_leaves_the_version_before(artifacts: Path) -> None:
    """Ctrl-C during a second export leaves the first one as it was, and no draft beside it."""
    before = load(artifacts, "tiny").manifest

    with pytest.raises(KeyboardInterrupt):
        export(TINY, UNTRAINED, artifacts, Interrupted("ONNX graph"))
    with pytest.raises(KeyboardInterrupt):
        export(TINY, UNTRAINED, artifacts, Interrupted("PyTorch"))

    assert [path.name for path in (artifacts / "tiny").iterdir()] == ["1"]
    assert load(artifacts, "tiny").manifest == before


def test_choice_of_weights_is_read_from_one_word() -> None:
    """`auto`, the two sources, and everything else is a path."""
    parse = WeightsChoice.parse
    assert parse("auto", "http://mirror").source is None
    assert parse("auto", "http://mirror").mirror == "http://mirror"
    assert parse("pretrained", None).source is WeightSource.PRETRAINED
    assert parse("untrained", None).source is WeightSource.UNTRAINED
    assert parse("some/weights.pth", None) == WeightsChoice(WeightSource.FILE, Path("some/weights.pth"))


@dataclass(frozen=True, slots=True)
class Labelled:
    """The labelled photos as the service reads them, their classes, and eager PyTorch's answers."""

    samples: Batch
    classes: list[int]
    expected: Probabilities


@pytest.fixture(scope="module")
def labelled(shared_data: Path) -> Labelled:
    """The ten photos and torchvision's own squeezenet1_1 with the trained weights."""
    from torchvision.models import squeezenet1_1

    with (shared_data / "photos" / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    limits = ImageLimits()
    samples = np.stack(
        [
            transforms.center_crop(
                SQUEEZENET.input, decode.decode_pixels((shared_data / "photos" / row["file"]).read_bytes(), limits)
            )
            for row in rows
        ]
    )
    network = squeezenet1_1(weights=None)
    network.load_state_dict(load_file(shared_data / "squeezenet1_1.safetensors"))
    return Labelled(samples, [int(row["class_id"]) for row in rows], eager(network, SQUEEZENET, samples))


def test_trained_weights_are_recorded(trained: Path, shared_data: Path) -> None:
    """The artifact of the trained weights has the name and the sha256 of their file, and claims no accuracy."""
    manifest = load(trained, "squeezenet1_1").manifest

    assert manifest.weights.source is WeightSource.FILE
    assert manifest.weights.name == "squeezenet1_1.safetensors"
    expected = hashlib.sha256((shared_data / "squeezenet1_1.safetensors").read_bytes()).hexdigest()
    assert manifest.weights.sha256 == expected
    assert manifest.acc1 is None


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
    trained: Path, labelled: Labelled, runtime: Runtime, precision: Precision, tolerance: float
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

    assert together.argmax(axis=1).tolist() == labelled.classes
    assert alone.argmax(axis=1).tolist() == labelled.classes
    assert np.abs(together - labelled.expected).max() < tolerance
    assert np.abs(alone - labelled.expected).max() < tolerance


def test_trained_network_passed_its_gate_with_room(trained: Path) -> None:
    """On trained weights f32 is at least ten times closer than the gate asks for."""
    for report in load(trained, "squeezenet1_1").manifest.parity:
        assert report.passed
        if report.precision == "f32":
            assert report.max_abs_diff < 0.1 * report.thresholds.max_abs_diff
