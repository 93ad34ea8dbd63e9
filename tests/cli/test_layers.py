"""`topfive layers`: its table and JSON, of exported models and of others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from models.analysis.layer_table import Kind, Layer, LayerTable, write_layers
from models.artifact.artifact import new_version, read_manifest, write_manifest
from service.common.model_info import ModelLayers
from tests.command_line import topfive
from tests.models.test_artifact import MANIFEST_OF_NET

ROOT = Path(__file__).resolve().parents[2]


def cells(output: str) -> dict[str, list[str]]:
    """The lines of a table by their first word."""
    return {line.split()[0]: line.split() for line in output.splitlines() if line.strip() and "─" not in line}


def test_table(artifacts: Path) -> None:
    """The table has a line for each layer and each stage, and the total of the manifest."""
    result = topfive("layers", "tiny", "--artifacts", artifacts, columns=120)
    rows = cells(result.output)

    assert result.exit_code == 0
    assert "tiny (version 1), input 3x32x32" in result.output
    first = next(line.split() for line in result.output.splitlines() if line.startswith(".0"))
    assert first[1:] == ["convolution", "3x3/2", "8x16x16", "216", "55.3", "k", "30.4", "3"]
    assert rows["features.0"][1:] == ["stage", "8x16x16", "232", "55.3", "k", "30.4", "3"]
    assert rows["total"] == ["total", "20.8", "k", "182", "k", "100.0"]
    assert read_manifest(artifacts, "tiny")[1].macs == 181_888


@pytest.mark.parametrize("name", ["efficientnet_b0", "inception_v3"])
def test_width(tmp_path: Path, name: str) -> None:
    """The tables of networks with long names fit 80 columns and cut off no cell; names are relative to their stage."""
    result = topfive("layers", name, "--artifacts", tmp_path, columns=80)

    assert max(len(line) for line in result.output.splitlines()) <= 80
    assert "…" not in result.output
    assert f"{name} (computed, not exported)" in result.output
    assert any(name.startswith(".") for name in cells(result.output))


def test_stages(tmp_path: Path) -> None:
    """--stages prints a line for each stage and the total."""
    result = topfive("layers", "resnet18", "--stages", "--artifacts", tmp_path, columns=80)
    rows = cells(result.output)

    stages = ["conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "fc"]
    assert [name for name in rows if name in stages] == stages
    assert rows["conv2_x"] == ["conv2_x", "8", "64x56x56", "148", "k", "462", "M", "25.5", "43"]
    assert rows["total"] == ["total", "43", "11.7", "M", "1.81", "G", "100.0"]


def test_json(artifacts: Path) -> None:
    """--json prints the answer of the server; --stages leaves the layers out."""
    reply = TypeAdapter(ModelLayers).validate_json(topfive("layers", "tiny", "--json", "--artifacts", artifacts).stdout)
    stages = json.loads(topfive("layers", "tiny", "--json", "--stages", "--artifacts", artifacts).stdout)

    assert (reply.model, reply.version, reply.input_shape, len(reply.layers)) == ("tiny", 1, (3, 32, 32), 8)
    assert "layers" not in stages
    assert [stage["name"] for stage in stages["stages"]] == [stage.name for stage in reply.stages]
    assert sum(layer.share for layer in reply.layers) == pytest.approx(100)


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
