"""`topfive compare`: its table and its errors."""

import json
from pathlib import Path

import pytest

from export.gate_images import PHOTOS
from tests.command_line import topfive
from tests.fleet import copy_model


@pytest.fixture
def pair(artifacts: Path) -> Path:
    """`tiny` and `twin`."""
    copy_model(artifacts, "twin")
    return artifacts


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
