"""The int8 graph in an artifact: written whole, replaced, and read only if it is undamaged and of this model.onnx."""

from pathlib import Path

import pytest

from models.artifact.artifact import GRAPH, Artifact, load
from models.artifact.quantized import (
    INT8,
    QuantizationRecord,
    QuantizedGraph,
    QuantizedGraphError,
    read_quantized,
    write_quantized,
)
from models.artifact.tuning import Conditions


@pytest.fixture
def tiny(artifacts: Path) -> Artifact:
    """The artifact of `tiny`, which the test may change."""
    return load(artifacts, "tiny")


def record(artifact: Artifact, photos: int = 240) -> QuantizationRecord:
    """A record of an int8 graph of the artifact."""
    return QuantizationRecord(
        nncf_version="3.4.0",
        openvino_version="2026.4.1",
        preset="mixed",
        floating_point=(),
        accuracy_control=False,
        photos=photos,
        photos_sha256="0" * 64,
        parity=artifact.manifest.parity[0],
        conditions=Conditions(cpu="a CPU", instruction_sets=("AVX512_VNNI",), cpus=2),
        speeds=(),
        date="2026-11-29",
        source_sha256=artifact.manifest.files[GRAPH],
    )


def keep(artifact: Artifact, graph: bytes = b"<net/>", photos: int = 240) -> QuantizedGraph:
    """Writes an int8 graph."""
    return write_quantized(artifact.folder, graph, b"weights", record(artifact, photos))


def test_graph_is_read_as_written(tiny: Artifact) -> None:
    """Both files lie side by side under one name, and the artifact still verifies."""
    written = keep(tiny)
    found = read_quantized(tiny)

    assert found == written
    assert found.path().read_bytes() == b"<net/>"
    assert found.path().with_suffix(".bin").read_bytes() == b"weights"
    assert load(tiny.folder.parents[1], "tiny").manifest == tiny.manifest


def test_newer_graph_replaces_the_older(tiny: Artifact) -> None:
    """The record names the newer graph, and nothing of the older one stays."""
    keep(tiny)
    newer = keep(tiny, b"<newer/>", photos=300)

    found = read_quantized(tiny)
    assert found == newer
    assert found.record.photos == 300
    assert {file.name for file in (tiny.folder / INT8).iterdir()} == {
        "record.json",
        newer.path().name,
        newer.path().with_suffix(".bin").name,
    }


def test_graph_of_another_network_is_not_there(tiny: Artifact) -> None:
    """A graph that was made from another model.onnx is not this model's; without any graph there is none."""
    assert read_quantized(tiny) is None
    foreign = record(tiny).model_copy(update={"source_sha256": "f" * 64})
    write_quantized(tiny.folder, b"<net/>", b"weights", foreign)

    assert read_quantized(tiny) is None


def test_damage_is_said(tiny: Artifact) -> None:
    """A changed or missing file and a record that is none are errors that name the file."""
    graph = keep(tiny)
    weights = graph.path().with_suffix(".bin")
    weights.write_bytes(b"other")
    with pytest.raises(QuantizedGraphError, match=weights.name):
        graph.path()
    weights.unlink()
    with pytest.raises(QuantizedGraphError, match=weights.name):
        graph.path()

    (tiny.folder / INT8 / "record.json").write_text("{}")
    with pytest.raises(QuantizedGraphError, match=r"record\.json cannot be read"):
        read_quantized(tiny)
