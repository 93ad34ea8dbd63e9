"""The command line as a whole: its commands and options, and what several commands share."""

from pathlib import Path

import pytest

from export.gate_images import PHOTOS
from tests.command_line import topfive

PREDICT = ("predict", PHOTOS / "bee.jpeg")
CLASSIFY = ("classify", PHOTOS / "bee.jpeg", "--out", "rows.csv")
EVALUATE = ("evaluate", "list.csv", "--out", "figures")


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An own working directory with a list of one image."""
    monkeypatch.chdir(tmp_path)
    Path("list.csv").write_text(f"path,class_id\n{PHOTOS / 'bee.jpeg'},309\n", encoding="utf-8")


@pytest.mark.parametrize("command", [PREDICT, CLASSIFY, EVALUATE], ids=lambda command: command[0])
def test_not_exported(command: tuple[str | Path, ...], tmp_path: Path) -> None:
    """A model that is not exported is an error that names the command to export it; nothing is written."""
    result = topfive(*command, "--model", "alexnet", "--artifacts", tmp_path, columns=300)

    assert result.exit_code == 1
    assert "topfive export alexnet" in result.stderr
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["list.csv"]


@pytest.mark.parametrize("command", ["show", "layers"])
def test_unknown_model(command: str, tmp_path: Path) -> None:
    """A name that is no model is an error with the nearest name."""
    result = topfive(command, "resnet5", "--artifacts", tmp_path)

    assert result.exit_code == 1
    assert "did you mean resnet50" in result.stderr


def test_serving_an_ensemble(artifacts: Path) -> None:
    """`serve` with an ensemble is a usage error."""
    result = topfive("serve", "--models", "ensemble:tiny+twin", "--artifacts", artifacts)

    assert result.exit_code == 2
    assert "name its members instead" in result.stderr


def test_help_lists_commands() -> None:
    """The help has a whole line for every command, those of other packages among them."""
    lines = [line.split(maxsplit=1) for line in topfive("--help", columns=80).output.split("Commands:")[1].splitlines()]

    names = "bench classify compare doctor evaluate export gateway import layers models predict serve show tune"
    assert [name for name, _ in filter(None, lines)] == names.split()
    assert [text for _, text in filter(None, lines) if text.endswith("...")] == []
