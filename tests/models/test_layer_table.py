"""The table of layers in an artifact: written, read, altered, missing; and its stages and totals."""

import json
from pathlib import Path

import pytest

from models.analysis.cost import Cost
from models.analysis.layer_table import Kind, Layer, LayerTable, Stage, read_layers, write_layers
from models.analysis.stages import Position, StageNaming, with_stages
from models.artifact.artifact import (
    IMPORTED,
    LAYERS,
    MANIFEST,
    ArtifactError,
    FileNotInArtifactError,
    Manifest,
    new_version,
    read_manifest,
    write_manifest,
)
from tests.models.test_artifact import MANIFEST_OF_NET

CONV = Layer("conv", Kind.CONVOLUTION, "conv", (3, 8, 8), (4, 4, 4), 112, 1728, (3, 3), (3, 3), (2, 2), (1, 1), 1)
POOL = Layer("pool", Kind.MAX_POOLING, "conv", (4, 4, 4), (4, 2, 2), 0, 0, (5, 7), (2, 3), (2, 2), (0, 0))
ODD = Layer("odd", "attention", "head", (4, 2, 2), (4,), 3, 0, None)
TABLE = LayerTable.of((3, 8, 8), [CONV, POOL, ODD])


def add(root: Path, table: LayerTable | None) -> tuple[int, Manifest]:
    """A version of `net`, with a table or as it was before there was one."""
    with new_version(root, "net") as folder:
        if table is not None:
            write_layers(folder, table)
        write_manifest(folder, MANIFEST_OF_NET)
    return read_manifest(root, "net")


def test_round_trip(tmp_path: Path) -> None:
    """What was written is read, to the last field, and the manifest has the file's sha256."""
    version, manifest = add(tmp_path, TABLE)

    assert read_layers(tmp_path, version, manifest) == TABLE
    assert manifest.files.keys() == {LAYERS}


def test_totals() -> None:
    """Stages add up what is consecutive and has one name; what a stage gives may be said apart."""
    assert TABLE.stages == (
        Stage("conv", 2, (4, 2, 2), 112, 1728, (5, 7)),
        Stage("head", 1, (4,), 3, 0, None),
    )
    assert TABLE.cost == Cost(115, 1728)
    assert TABLE.share(864) == 50
    assert LayerTable.of((3, 8, 8), [CONV, ODD, CONV], {"head": (9,)}).stages[1].output == (9,)
    assert [stage.name for stage in LayerTable.of((3, 8, 8), [CONV, ODD, CONV]).stages] == ["conv", "head", "conv"]


def test_artifact_without_table(tmp_path: Path) -> None:
    """An artifact of an older version says what is missing and how to add it."""
    version, manifest = add(tmp_path, None)
    with pytest.raises(FileNotInArtifactError, match=r"version 1 of net has no layers.json; run: topfive export net"):
        read_layers(tmp_path, version, manifest)


def test_altered_table(tmp_path: Path) -> None:
    """A table that was changed, or is gone, is not served.

    That of an imported model is mended by another import: no export knows its name.
    """
    version, manifest = add(tmp_path, TABLE)
    path = tmp_path / "net" / "1" / LAYERS
    path.write_text(path.read_text().replace("1728", "1729"))
    with pytest.raises(ArtifactError, match=r"layers.json differs from its manifest"):
        read_layers(tmp_path, version, manifest)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"layers.json cannot be read \(No such file"):
        read_layers(tmp_path, version, manifest)
    with pytest.raises(ArtifactError, match=r"run: topfive import FILE.onnx --name net"):
        read_layers(tmp_path, version, manifest.model_copy(update={"family": IMPORTED}))


def test_table_of_another_format(tmp_path: Path) -> None:
    """A file that agrees with its manifest and is no table is named, with what to do."""
    add(tmp_path, TABLE)
    folder = tmp_path / "net" / "1"
    (folder / LAYERS).write_text(json.dumps({"rows": []}))
    (folder / MANIFEST).unlink()
    write_manifest(folder, MANIFEST_OF_NET)
    version, manifest = read_manifest(tmp_path, "net")
    with pytest.raises(ArtifactError, match="is not a table that this version reads; export or import the model again"):
        read_layers(tmp_path, version, manifest)


def names(*rows: tuple[Layer, Position]) -> list[str]:
    """The stages of these layers."""
    return [layer.stage for layer in with_stages([layer for layer, _ in rows], [position for _, position in rows])]


def test_stages_by_position() -> None:
    """A pooling ends the stage before it, a global pooling opens the one after it, a block is a stage of its own."""
    alone, block, other = (
        Position(StageNaming.FIRST_LAYER, ""),
        Position(StageNaming.BLOCK, "block1"),
        Position(StageNaming.BLOCK, "block2"),
    )
    whole = Layer("mean", Kind.GLOBAL_AVERAGE_POOLING, "", (4, 2, 2), (4,), 0, 0, (9, 9), (2, 2))

    assert names((CONV, alone), (POOL, alone), (CONV, alone)) == ["conv", "conv", "conv"]
    assert names((POOL, alone), (CONV, block), (POOL, alone), (CONV, other)) == ["pool", "block1", "block1", "block2"]
    assert names((CONV, block), (POOL, block), (CONV, block)) == ["block1"] * 3
    assert names((CONV, block), (whole, alone), (CONV, other)) == ["block1", "block2", "block2"]
    assert names((CONV, alone), (whole, alone), (ODD, alone)) == ["conv", "odd", "odd"]
    assert names((whole, alone)) == ["mean"]


def test_numbered_stages() -> None:
    """In a container of single layers the stages count from 1, each up to its pooling."""
    place = Position(StageNaming.NUMBER, "features")
    rows = [(layer, place) for layer in (CONV, CONV, POOL, CONV, POOL)]

    assert names(*rows) == ["features 1"] * 3 + ["features 2"] * 2
