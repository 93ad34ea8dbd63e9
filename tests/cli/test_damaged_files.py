"""Commands that read damaged files end with an error in words."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

from models.artifact.artifact import GRAPH, LABELS, MANIFEST, sha256
from tests.command_line import topfive
from tests.conftest import png
from tests.fakes import FakeEngine

DAMAGES = {
    "empty": b"",
    "latin": b"class_id,wnid,label\n0,,caf\xe9\n",
    "zeros": bytes(5000),
    "long": b'class_id,wnid,label\n0,,"' + b"x" * 200_000 + b'"\n',
    "number": b"class_id,wnid,label\n" + b"9" * 5000 + b",,a\n",
    "deep": b"[" * 200_000,
}


def refused(*words: object, engine: FakeEngine | None = None) -> str:
    """What a command that fails says; a traceback would be an exception of another kind than SystemExit."""
    result = topfive(*words, columns=300, engine=engine)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exc_info
    return result.output


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [LABELS, GRAPH, MANIFEST])
def test_artifacts(file: str, damage: str, artifacts: Path, tmp_path: Path) -> None:
    """A damaged file of an artifact is named, also one that was damaged before its checksum was taken."""
    folder = artifacts / "tiny" / "1"
    (folder / file).write_bytes(DAMAGES[damage])
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "a.png").write_bytes(png(3))
    words = ("--model", "tiny", "--artifacts", artifacts, "--out")
    commands = [
        ("predict", tmp_path / "3" / "a.png", *words[:-1]),
        ("classify", tmp_path / "3", *words, tmp_path / "out.csv"),
        ("evaluate", tmp_path, *words, tmp_path / "out"),
    ]
    for command in commands:
        assert file in refused(*command, engine=FakeEngine())
    if file == LABELS:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][file] = sha256(folder / file)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        for command in commands:
            assert file in refused(*command, engine=FakeEngine())


def _no_output(model: ModelProto) -> None:
    del model.graph.output[:]


def _no_node_output(model: ModelProto) -> None:
    del model.graph.node[0].output[:]


def _no_values(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"\0\0"


def _no_type(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = 0


def _no_attribute(model: ModelProto) -> None:
    next(one for node in model.graph.node for one in node.attribute).type = onnx.AttributeProto.UNDEFINED


@pytest.mark.parametrize("damage", [_no_output, _no_node_output, _no_values, _no_type, _no_attribute])
def test_graphs(damage: Callable[[ModelProto], None], exported: Path, tmp_path: Path) -> None:
    """A graph that is ONNX and not whole is refused by `import` and by `export --weights`, with what is wrong in it."""
    model = onnx.load(exported / "tiny" / "1" / GRAPH)
    damage(model)
    file, recipe = tmp_path / "damaged.onnx", tmp_path / "recipe.toml"
    file.write_bytes(model.SerializeToString())
    recipe.write_text('output = "probabilities"\n')

    root = ("--artifacts", tmp_path / "artifacts")
    assert "damaged.onnx is damaged" in refused("import", file, "--name", "net", "--recipe", recipe, *root)
    assert "damaged.onnx is damaged" in refused("export", "tiny", "--weights", file, *root)


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0", "\udcff"])
def test_lists(name: str, exported: Path, tmp_path: Path) -> None:
    """A list with a name that no file can have gives a row with an error, as for any file that is not there."""
    (tmp_path / "a.png").write_bytes(png(3))
    (tmp_path / "list.txt").write_bytes(f"a.png\n{name}\n".encode(errors="surrogateescape"))
    words = ("--model", "tiny", "--artifacts", exported, "--out", tmp_path / "out.jsonl")
    result = topfive("classify", tmp_path / "list.txt", *words, engine=FakeEngine(), columns=300)

    assert result.exit_code == 0, result.output
    assert "could not be classified; their rows have the errors: 1" in result.output
