"""The command line as a whole: its commands and options, and what several commands share."""

from pathlib import Path

import pytest

from export.gate_images import PHOTOS
from service.cli.main import EXAMPLES, load_command
from service.cli.variables import VARIABLES
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
    """The help has a whole line for every command in its group, those of other packages among them."""
    printed = topfive("--help", columns=80).output.split("Classify:")[1]
    lines = [line.split(maxsplit=1) for line in printed.splitlines() if not line.endswith(":")]

    names = "predict compare classify models show layers export import serve gateway doctor evaluate tune bench"
    assert [name for name, _ in filter(None, lines)] == names.split() == list(EXAMPLES)
    assert [text for _, text in filter(None, lines) if text.endswith("...")] == []


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples(command: str) -> None:
    """The help of a command ends with two examples, whose options the command has."""
    printed = topfive(command, "--help", columns=80).output
    usage, _, examples = printed.rpartition("Examples:\n")

    lines = [f"topfive {command} {arguments}".rstrip() for arguments in EXAMPLES[command]]
    assert [line.strip() for line in examples.rstrip("\n").split("\n")] == lines
    assert len(lines) == 2
    assert [word for line in lines for word in line.split() if word.startswith("--") and f" {word} " not in usage] == []


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that an option reads is known, so that one that is almost the same can be named."""
    read = {option.envvar for name in EXAMPLES for option in load_command(name).params if option.envvar}
    for name in ("TOPFIVE_PROT", "TOPFIVE_BIND", "TOPFIVE_EDGE_PORT"):
        monkeypatch.setenv(name, "80")
    printed = topfive("models", "--help")

    assert read == VARIABLES
    assert printed.stderr == "warning: no option reads TOPFIVE_PROT; TOPFIVE_PORT is the nearest that one reads\n"
