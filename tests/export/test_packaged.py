"""The artifact that comes with topfive: whole, made by the export, found where nothing is exported, and right."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.gate_images import PHOTOS, photos, random_pixels
from export.packaged import NAME, export_packaged
from models.artifact.artifact import MANIFEST, PACKAGED, ArtifactError, load, read_file, root_of
from models.catalog import CATALOG
from service.common.types import Precision, Runtime
from service.engines.selection.precision import choose_precision
from tests.command_line import topfive
from tests.conftest import NullReporter
from tests.networks import answers

ZEBRA = PHOTOS / "zebra.jpeg"
WEIGHTS = CATALOG[NAME].weight_sets[0]


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    """A folder of artifacts that is not there."""
    return tmp_path / "artifacts"


def test_it_is_whole(nothing: Path) -> None:
    """Every file has the sha256 of its manifest; the weights are those in the repository; it takes at most 5.1 MB."""
    artifact = load(nothing, NAME)

    assert artifact.folder.parent.parent == PACKAGED
    assert artifact.manifest.packaged
    assert artifact.manifest.weights.sha256 == WEIGHTS.sha256
    assert {*artifact.manifest.files, MANIFEST} == {path.name for path in artifact.folder.iterdir()}
    assert sum(path.stat().st_size for path in artifact.folder.iterdir()) < 5.1e6
    assert read_file(nothing, 1, artifact.manifest, "layers.json")


def test_it_is_what_the_export_makes(tmp_path: Path) -> None:
    """An export of today has the same facts and files, and in both engines gives the same answers."""
    export_packaged(tmp_path, NullReporter())
    made, packaged = load(tmp_path, NAME), load(PACKAGED, NAME)
    of_this_machine = {"tools", "parity", "files"}

    assert made.manifest.model_dump(exclude=of_this_machine) == packaged.manifest.model_dump(exclude=of_this_machine)
    assert made.manifest.files.keys() == packaged.manifest.files.keys()
    assert made.labels == packaged.labels
    spec = made.manifest.input
    images: NDArray[np.uint8] = np.concatenate([photos(spec), random_pixels(spec, 2)])
    expected = answers(made.graph, images)
    for runtime, given in answers(packaged.graph, images).items():
        assert np.abs(given - expected[runtime]).max() <= 1e-6


def test_an_export_wins(nothing: Path) -> None:
    """A model that is exported is the one that serves, even if it is damaged."""
    assert root_of(nothing, NAME) == PACKAGED
    assert root_of(nothing, "googlenet") == nothing

    shutil.copytree(PACKAGED, nothing)
    assert root_of(nothing, NAME) == nothing
    assert load(nothing, NAME).folder.parent.parent == nothing

    (nothing / NAME / "1" / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="differs from its manifest"):
        load(nothing, NAME)


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, Precision.BF16), (False, Precision.F32)])
def test_precision(has_bf16: bool, expected: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passed in f32 and in bf16, so it runs in bf16 on a CPU that computes in it, and in f32 on others."""
    monkeypatch.setattr("service.engines.openvino.has_bf16", lambda: has_bf16)

    assert choose_precision(load(PACKAGED, NAME), Runtime.OPENVINO, Precision.AUTO) is expected


def test_commands(nothing: Path) -> None:
    """Where nothing is exported, commands take it and say where it comes from."""
    predicted = topfive("predict", ZEBRA, "--json", "--artifacts", nothing)
    reply = json.loads(predicted.stdout)
    assert (reply["model"]["name"], reply["predictions"][0]["label"]) == (NAME, "zebra")

    compared = topfive("compare", ZEBRA, "--json", "--artifacts", nothing)
    assert f"nothing is exported in {nothing}; taking what comes with topfive: {NAME}" in compared.stderr
    assert [row["model"] for row in json.loads(compared.stdout)["rows"]] == [NAME]

    rows = json.loads(topfive("models", "--json", "--artifacts", nothing).stdout)
    assert [row["name"] for row in rows if row["packaged"]] == [NAME]
    assert "v1 packaged" in topfive("models", "--artifacts", nothing).stdout
    assert (
        "it comes with topfive, because no version is exported" in topfive("show", NAME, "--artifacts", nothing).stdout
    )
    doctor = topfive("doctor", "--artifacts", nothing, "--port", "0", "--grpc-port", "0", columns=200)
    assert "pretrained: CAFFE_2016 (comes with topfive)" in doctor.stdout
    assert doctor.exit_code == 0


def test_evaluation_changes_nothing_of_it(nothing: Path, tmp_path: Path) -> None:
    """Its accuracy on the user's images is reported, and not written into the installed package."""
    manifest = load(PACKAGED, NAME).manifest_file
    before = manifest.read_bytes()
    (tmp_path / "list.csv").write_text(f"path,class_id\n{ZEBRA},340\n", encoding="utf-8")
    out = tmp_path / "figures"
    done = topfive("evaluate", tmp_path / "list.csv", "--model", NAME, "--artifacts", nothing, "--out", out)

    assert done.exit_code == 0, done.output
    assert "it comes with topfive: its accuracy is in report.json" in done.output
    assert manifest.read_bytes() == before
