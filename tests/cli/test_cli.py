"""The command line in a terminal: predict and models, their tables, their JSON, their exit status."""

import json
from pathlib import Path

import click
import pytest

from export.gate_images import PHOTOS
from models.catalog import CATALOG
from service.cli.main import main
from service.common.settings import Settings
from tests.cli.command_line import topfive
from tests.conftest import png
from tests.fleet import copy_model


def test_predict_table(artifacts: Path) -> None:
    """predict prints five classes with a bar, the model, what it ran on, and the warning of untrained weights."""
    result = topfive("predict", PHOTOS / "bee.jpeg", "--model", "tiny", "--artifacts", artifacts)

    assert result.exit_code == 0
    assert "tiny v1 (untrained)" in result.output
    assert "20,752 parameters, 182 k MACs" in result.output
    assert "mean nothing" in result.output
    assert [line.split()[0] for line in result.output.splitlines() if " n0" in line] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("columns", [30, 40, 60, 75, 120])
def test_predict_in_a_narrow_terminal(artifacts: Path, columns: int) -> None:
    """The classes and probabilities stay readable however narrow the terminal is."""
    words = ("predict", PHOTOS / "bee.jpeg", "--model", "tiny", "--artifacts", artifacts, "--top-k", "1")
    [best] = json.loads(topfive(*words, "--json").stdout)["predictions"]
    text = " ".join(topfive(*words, columns=columns).output.split())

    assert best["label"].split()[0] in text
    assert f"{best['probability']:.4f}" in text
    assert "…" not in text


def test_predict_json(artifacts: Path, tmp_path: Path) -> None:
    """predict --json prints one object a line; a bad image goes to standard error, and the status is 1."""
    bad = tmp_path / "cat[0].jpg"
    bad.write_text("not a cat")
    photos = [PHOTOS / "bee.jpeg", bad, tmp_path / "none.png", PHOTOS / "snail.jpeg"]
    result = topfive("predict", *photos, "--model", "tiny", "--artifacts", artifacts, "--json", "--top-k", "3")

    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert [row["image"] for row in rows] == [str(photos[0]), str(photos[3])]
    assert all(len(row["predictions"]) == 3 for row in rows)
    assert "cat[0].jpg: not an image" in result.stderr.replace("\n", "")
    assert "No such file" in result.stderr


@pytest.mark.parametrize(
    "question",
    [
        ("predict", PHOTOS / "bee.jpeg"),
        ("compare", PHOTOS / "bee.jpeg"),
        ("classify", PHOTOS / "bee.jpeg", "--out", "rows.csv"),
        ("evaluate", "list.csv", "--out", "figures"),
    ],
    ids=lambda question: question[0],
)
def test_cache(
    question: tuple[str | Path, ...], artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that answer in their own process keep compiled graphs in --cache, where records of tuning are read."""
    monkeypatch.chdir(tmp_path)
    Path("list.csv").write_text(f"path,class_id\n{PHOTOS / 'bee.jpeg'},309\n", encoding="utf-8")
    result = topfive(*question, "--model", "tiny", "--artifacts", artifacts, "--cache", "kept", "--runtime", "openvino")

    assert result.exit_code == 0, result.output
    assert len(list(Path("kept/openvino").glob("*/*/seal.json"))) == 1


def test_predict_not_exported(tmp_path: Path) -> None:
    """predict with a model that is not exported says how to export it."""
    (tmp_path / "a.png").write_bytes(png())
    result = topfive("predict", tmp_path / "a.png", "--model", "alexnet", "--artifacts", tmp_path, columns=300)

    assert result.exit_code == 1
    assert "topfive export alexnet" in result.stderr
    assert "Traceback" not in result.output


def test_predict_as_the_server(trained: Path, shared_data: Path) -> None:
    """predict names the labelled photos rightly with trained weights."""
    photos = [shared_data / "photos" / file for file in ("zebra.jpeg", "bee.jpeg")]
    result = topfive("predict", *photos, "--model", "squeezenet1_1", "--artifacts", trained, "--json")

    best = [json.loads(line)["predictions"][0]["label"] for line in result.stdout.splitlines()]
    assert best == ["zebra", "bee"]


def test_models(artifacts: Path) -> None:
    """models lists the whole catalog within 80 columns, a line each in its order, and what is exported and how."""
    result = topfive("models", "--artifacts", artifacts, columns=80)

    lines = [line.split() for line in result.output.splitlines()[2:]]
    assert [line[0] for line in lines] == list(CATALOG.names())
    rows = {line[0]: line[1:] for line in lines}
    assert rows["googlenet"] == ["6,624,904", "1.50", "G", "69.78", "89.53", "-"]
    assert rows["tiny"] == ["20,752", "182", "k", "-", "-", "v1", "untrained"]
    assert max(map(len, result.output.splitlines())) <= 80


def test_models_in_a_wide_terminal(artifacts: Path) -> None:
    """With room for them models also has the year and the family; one that is not in the catalog comes last."""
    copy_model(artifacts, "aaa", {"year": None, "family": "[own]"})
    result = topfive("models", "--artifacts", artifacts, columns=120)

    rows = {line.split()[0]: line.split()[1:3] for line in result.output.splitlines()[2:]}
    assert rows["googlenet_2014"] == ["2014", "inception"]
    assert list(rows.items())[-1] == ("aaa", ["-", "[own]"])


def test_three_digits(artifacts: Path) -> None:
    """Multiply-accumulates are shown with three digits and a prefix, rounded before the prefix is chosen."""
    shown = {
        0: "0",
        999: "999",
        1000: "1.00 k",
        9994: "9.99 k",
        9995: "10.0 k",
        325_560: "326 k",
        999_499: "999 k",
        999_500: "1.00 M",
        1_498_396_672: "1.50 G",
        37_700_000_000: "37.7 G",
        1_234_000_000_000: "1234 G",
    }
    for count in shown:
        copy_model(artifacts, f"with-{count}", {"macs": count})
    lines = topfive("models", "--artifacts", artifacts, columns=80).output.splitlines()

    rows = {row[0]: " ".join(row[2:-4]) for row in map(str.split, lines) if row and row[0].startswith("with-")}
    assert rows == {f"with-{count}": text for count, text in shown.items()}


def test_models_json(artifacts: Path) -> None:
    """models --json gives the same rows as data."""
    rows = json.loads(topfive("models", "--artifacts", artifacts, "--json").stdout)

    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == sorted(CATALOG.names())
    assert by_name["tiny"]["state"] == "exported"
    assert by_name["googlenet"]["parameters"] == 6_624_904
    assert by_name["googlenet"]["parameters_train"] == 13_004_888


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_an_option(name: str) -> None:
    """Every setting is an option of serve with its default, its meaning and its variable."""
    command = main.get_command(click.Context(main), "serve")
    assert command is not None
    (option,) = [option for option in command.params if option.name == name]
    assert isinstance(option, click.Option)
    assert option.envvar == f"TOPFIVE_{name.upper()}"
    assert option.help
    assert option.show_default


def test_help_lists_commands() -> None:
    """The help has a whole line for every command, those of other packages among them."""
    lines = [line.split(maxsplit=1) for line in topfive("--help", columns=80).output.split("Commands:")[1].splitlines()]

    names = "bench classify compare doctor evaluate export gateway import layers models predict serve show tune"
    assert [name for name, _ in filter(None, lines)] == names.split()
    assert [text for _, text in filter(None, lines) if text.endswith("...")] == []
