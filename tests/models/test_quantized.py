"""The int8 graph in an artifact: written whole, replaced, and read only if it is undamaged and of this model.onnx."""

from pathlib import Path

import pytest

from models.artifact import quantized
from models.artifact.artifact import GRAPH, Artifact, load
from models.artifact.files import write_atomically
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


@pytest.mark.parametrize("written", [1, 2])
def test_interruption_leaves_the_older_graph(tiny: Artifact, written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the second or the third file: the older graph is whole and alone; without one nothing is left."""

    def interrupted(path: Path, content: bytes) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        write_atomically(path, content)

    left = [written]
    monkeypatch.setattr(quantized, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep(tiny)
    assert not (tiny.folder / INT8).exists()

    left[0] = 3
    older = keep(tiny)
    files = sorted((tiny.folder / INT8).iterdir())
    left[0] = written
    with pytest.raises(KeyboardInterrupt):
        keep(tiny, b"<newer/>")
    assert sorted((tiny.folder / INT8).iterdir()) == files
    assert read_quantized(tiny) == older
    assert older.path().read_bytes() == b"<net/>"


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
