"""`topfive models`: its table and its JSON."""

import json
from pathlib import Path

from models.catalog import CATALOG
from tests.command_line import topfive
from tests.fleet import copy_model


def test_table(artifacts: Path) -> None:
    """The table has a line for each model of the catalog, in its order, within 80 columns."""
    result = topfive("models", "--artifacts", artifacts, columns=80)

    table, _, legend = result.output.partition("\n\n")
    lines = [line.split() for line in table.splitlines()[2:]]
    assert [line[0] for line in lines] == list(CATALOG.names())
    rows = {line[0]: line[1:] for line in lines}
    assert rows["googlenet"] == ["6,624,904", "1.50", "G", "69.78", "89.53", "-"]
    assert rows["tiny"] == ["20,752", "182", "k", "-", "-", "v1", "untrained"]
    assert rows["lenet5"][-3:] == ["-", "-", "-"], "its accuracy is not on ImageNet"
    assert legend.startswith("top-1, top-5: published accuracy in % on ImageNet-1k, validation")
    assert "lenet5: top-1 99.17 % on scikit-learn digits" in legend
    assert max(map(len, result.output.splitlines())) <= 80


def test_wide_terminal(artifacts: Path) -> None:
    """A wide table also has year and family; a model outside the catalog comes last."""
    copy_model(artifacts, "aaa", {"year": None, "family": "[own]"})
    result = topfive("models", "--artifacts", artifacts, columns=120)

    rows = {line.split()[0]: line.split()[1:3] for line in result.output.partition("\n\n")[0].splitlines()[2:]}
    assert rows["googlenet_2014"] == ["2014", "inception"]
    assert list(rows.items())[-1] == ("aaa", ["-", "[own]"])


def test_three_digits(artifacts: Path) -> None:
    """Multiply-accumulates are shown with three digits and a prefix, rounded before the prefix is chosen."""
    shown = {
        0: "0",
        999: "999",
        1000: "1.00 k",
        9995: "10.0 k",
        999_500: "1.00 M",
        1_498_396_672: "1.50 G",
        1_234_000_000_000: "1234 G",
    }
    for count in shown:
        copy_model(artifacts, f"with-{count}", {"macs": count})
    lines = topfive("models", "--artifacts", artifacts, columns=80).output.splitlines()

    rows = {row[0]: " ".join(row[2:-4]) for row in map(str.split, lines) if row and row[0].startswith("with-")}
    assert rows == {f"with-{count}": text for count, text in shown.items()}


def test_json(artifacts: Path) -> None:
    """--json prints every model by name."""
    rows = json.loads(topfive("models", "--artifacts", artifacts, "--json").stdout)

    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == sorted(CATALOG.names())
    assert by_name["tiny"]["state"] == "exported"
    assert by_name["googlenet"]["parameters"] == 6_624_904
    assert by_name["googlenet"]["parameters_train"] == 13_004_888
