"""`topfive compare`: its table and its errors."""

import json
from pathlib import Path

import pytest

from export.gate_images import PHOTOS
from models.artifact.artifact import MANIFEST, Manifest, write_manifest
from tests.command_line import topfive
from tests.fleet import copy_model


@pytest.fixture
def pair(artifacts: Path) -> Path:
    """`tiny` and `twin`."""
    copy_model(artifacts, "twin")
    return artifacts


def test_untrained_models_are_marked(pair: Path) -> None:
    """Each row says its precision, and has a mark if its weights are untrained; one line says what the mark means."""
    folder = pair / "twin" / "1"
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["weights"]["source"] = "file"
    write_manifest(folder, Manifest.model_validate(manifest))
    ensemble = "ensemble:tiny+twin"
    options = ("--artifacts", pair, "--model", f"tiny,twin,{ensemble}", "--top-k", 1, "--precision", "f32")
    result = topfive("compare", PHOTOS / "bee.jpeg", *options, columns=140)

    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.startswith(("t", "ensemble"))}
    assert ["*" in rows[name] for name in ("tiny", "twin", ensemble)] == [True, False, True]
    assert all(row[-2] == "f32" for row in rows.values())
    assert (result.stdout + result.stderr).count("untrained") == 1


@pytest.mark.parametrize("columns", [80, 120])
def test_table(pair: Path, columns: int) -> None:
    """Without a name every exported model has a row within the width; a line below counts the models that agree."""
    result = topfive("compare", PHOTOS / "bee.jpeg", "--artifacts", pair, columns=columns)

    assert result.exit_code == 0
    assert "comparing what is exported: tiny, twin" in result.stderr
    assert "2 of 2" in result.stdout
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.startswith(("tiny ", "twin "))]
    assert rows == ["tiny", "twin"]
    assert max(map(len, result.stdout.splitlines())) <= columns


def test_errors(pair: Path) -> None:
    """A model without an answer has a row with the code of its error; the reason follows, and the status is 1."""
    command = ("compare", PHOTOS / "bee.jpeg", "--artifacts", pair, "--model", "tiny,nobody", "--crops", "10")
    table, lines = topfive(*command), topfive(*command, "--json")

    assert table.exit_code == lines.exit_code == 1
    assert "model_not_found" in table.stdout
    assert "there is no model 'nobody'" in table.stdout
    [line] = lines.stdout.splitlines()
    assert [row["answer"] is None for row in json.loads(line)["rows"]] == [False, True]
    assert topfive("compare", PHOTOS / "none.jpeg", "--artifacts", pair).exit_code == 1
