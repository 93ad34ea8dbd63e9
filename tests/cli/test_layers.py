"""`topfive layers`: its table, JSON and CSV, of exported models and of others."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from models.analysis.layer_table import Kind, Layer, LayerTable, write_layers
from models.artifact.artifact import new_version, read_manifest, write_manifest
from models.catalog import CATALOG
from service.common.model_info import ModelLayers
from tests.command_line import topfive
from tests.models.test_artifact import MANIFEST_OF_NET

ROOT = Path(__file__).resolve().parents[2]


def cells(output: str) -> dict[str, list[str]]:
    """The lines of a table by their first word."""
    return {line.split()[0]: line.split() for line in output.splitlines() if line.strip() and "─" not in line}


def test_table(artifacts: Path) -> None:
    """A wide table has whole names and every digit, a line for each stage, and the total of the manifest."""
    result = topfive("layers", "tiny", "--artifacts", artifacts, columns=120)
    rows = cells(result.output)

    assert result.exit_code == 0
    assert "tiny (version 1), input 3x32x32" in result.output
    assert rows["features.0.0"][1:] == ["convolution", "3x3/2", "8x16x16", "216", "55,296", "30.4", "3"]
    assert rows["features.0"][1:] == ["stage", "8x16x16", "232", "55,296", "30.4", "3"]
    assert rows["global_average_pooling"][4:] == ["4x4", "16", "0", "0", "0.0", "39"]
    assert rows["total"] == ["total", "20,752", "181,888", "100.0"]
    assert read_manifest(artifacts, "tiny")[1].macs == 181_888


@pytest.mark.parametrize("name", ["efficientnet_b0", "inception_v3"])
@pytest.mark.parametrize("columns", [80, 120])
def test_width(tmp_path: Path, name: str, columns: int) -> None:
    """The tables of networks with long names fit the terminal and cut off no cell; totals are those of the catalog."""
    result = topfive("layers", name, "--artifacts", tmp_path, columns=columns)
    total = result.output.splitlines()[-3:]

    assert max(len(line) for line in result.output.splitlines()) <= columns
    assert "…" not in result.output
    assert f"{name} (computed, not exported)" in result.output
    if columns == 80:
        assert any(name.startswith(".") for name in cells(result.output))  # names are relative to their stage
    else:
        assert any(f"{CATALOG[name].macs:,}" in line and f"{CATALOG[name].parameters:,}" in line for line in total)


def test_stages(tmp_path: Path) -> None:
    """--stages prints a line for each stage and the total."""
    result = topfive("layers", "resnet18", "--stages", "--artifacts", tmp_path, columns=80)
    rows = cells(result.output)

    stages = ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert [name for name in rows if name in stages] == stages
    assert rows["layer1"] == ["layer1", "8", "64x56x56", "148", "k", "462", "M", "25.5", "43"]
    assert rows["total"] == ["total", "43", "11.7", "M", "1.81", "G", "100.0"]


def test_json(artifacts: Path) -> None:
    """--json prints the answer of the server; --stages leaves the layers out."""
    reply = TypeAdapter(ModelLayers).validate_json(topfive("layers", "tiny", "--json", "--artifacts", artifacts).stdout)
    stages = json.loads(topfive("layers", "tiny", "--json", "--stages", "--artifacts", artifacts).stdout)

    assert (reply.model, reply.version, reply.input_shape, len(reply.layers)) == ("tiny", 1, (3, 32, 32), 8)
    assert "layers" not in stages
    assert [stage["name"] for stage in stages["stages"]] == [stage.name for stage in reply.stages]
    assert sum(layer.share for layer in reply.layers) == pytest.approx(100)


def test_csv(artifacts: Path) -> None:
    """--csv is a row per layer or per stage with a head; together with --json it is a usage error."""
    layers = list(csv.DictReader(io.StringIO(topfive("layers", "tiny", "--csv", "--artifacts", artifacts).stdout)))
    stages = topfive("layers", "tiny", "--csv", "--stages", "--artifacts", artifacts).stdout.splitlines()

    assert (layers[0]["name"], layers[0]["kernel"], layers[0]["output"]) == ("features.0.0", "3x3", "8x16x16")
    assert (layers[1]["kind"], layers[1]["kernel"]) == ("batch norm", "")
    assert sum(int(row["macs"]) for row in layers) == 181_888
    assert stages[0] == "name,layers,output,parameters,macs,share,receptive_field"
    assert len(stages) == 5
    both = topfive("layers", "tiny", "--csv", "--json", "--artifacts", artifacts)
    assert (both.exit_code, "choose one" in both.stderr) == (2, True)


def test_model_outside_the_catalog(tmp_path: Path) -> None:
    """An imported model has the rows of its artifact; an unknown receptive field is a dash."""
    rows = [
        Layer("conv", Kind.CONVOLUTION, "body", (3, 32, 32), (4, 16, 8), 200, 6400, (3, 5), (3, 5), (2, 4), (1, 1), 1),
        Layer("mix[0]", "attention", "body", (4, 16, 8), (4, 16, 8), 1_500_000_000, 9_000_000_000, None),
    ]
    with new_version(tmp_path, "net") as folder:
        write_layers(folder, LayerTable.of((3, 32, 32), rows))
        write_manifest(folder, MANIFEST_OF_NET)
    lines = cells(topfive("layers", "net", "--artifacts", tmp_path, columns=80).output)

    assert lines["conv"] == ["conv", "convolution", "3x5/2x4", "4x16x8", "200", "6.40", "k", "0.0", "3x5"]
    assert lines["mix[0]"] == ["mix[0]", "attention", "4x16x8", "1.50", "G", "9.00", "G", "100.0", "-"]


@pytest.mark.parametrize(("name", "status"), [("alexnet", 1), ("tiny", 0)])
def test_without_torch(artifacts: Path, name: str, status: int) -> None:
    """Without PyTorch the layers of an exported model are printed; for another model an error says what to do."""
    script = "import sys; sys.modules['torch'] = None; from service.cli.main import main; main()"
    command = [sys.executable, "-c", script, "layers", name, "--artifacts", str(artifacts)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    assert done.returncode == status
    assert "Traceback" not in done.stderr
    if status:
        assert "run: topfive export alexnet" in done.stderr
        assert "pip install '.[export]'" in done.stderr
