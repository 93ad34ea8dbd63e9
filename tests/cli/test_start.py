"""What the commands import before they answer: a name, a help or a table waits for no engine and no server."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from service.cli.main import main

ENGINES_AND_SERVERS = {"torch", "torchvision", "openvino", "onnxruntime", "fastapi", "grpc"}

RUN = "from service.cli.main import main; [main(words, 'topfive', standalone_mode=False) for words in {commands}]"


def imported(*commands: list[str] | None, **variables: str) -> tuple[set[str], str]:
    """First parts of the names of all modules that a new process imports for these commands, and what it prints."""
    script = [sys.executable, "-X", "importtime", "-c", RUN.format(commands=commands)]
    done = subprocess.run(script, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr[-1000:]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}, done.stdout


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_names(word: str) -> None:
    """The version and the list of commands need none of them: no settings, no arrays, no tables."""
    loaded, _ = imported([word])

    assert "click" in loaded
    assert not loaded & (ENGINES_AND_SERVERS | {"numpy", "pydantic", "rich", "asyncio", "models"})


@pytest.mark.parametrize(
    ("typed", "completed", "heavy"),
    [
        ("topfive pre", "predict", ENGINES_AND_SERVERS | {"numpy", "pydantic", "rich"}),
        ("topfive predict --se", "--server", ENGINES_AND_SERVERS),
    ],
)
def test_completion(typed: str, completed: str, heavy: set[str]) -> None:
    """The shell gets the names of the commands, and the options of one, without them."""
    variables = {"_TOPFIVE_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    loaded, said = imported(None, **variables)

    assert said == f"plain,{completed}\n"
    assert "click" in loaded
    assert not loaded & heavy


def test_helps() -> None:
    """The help of no command waits for an engine or a server."""
    names = main.list_commands(click.Context(main))
    loaded, said = imported(*([name, "--help"] for name in names))

    assert said.count("Usage: topfive") == len(names) == 14
    assert not loaded & ENGINES_AND_SERVERS


def test_tables(exported: Path) -> None:
    """What is known of models comes from the artifact or the catalog: PyTorch is not asked."""
    folder = ["--artifacts", str(exported)]
    loaded, _ = imported(["models", *folder], ["show", "tiny", *folder], ["show", "vgg16"], ["layers", "tiny", *folder])

    assert {"rich", "models"} <= loaded
    assert not loaded & ENGINES_AND_SERVERS
