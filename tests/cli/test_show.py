"""`topfive show`: the facts of one model as tables and as JSON."""

import json
from pathlib import Path

import pytest

from models.artifact.artifact import read_manifest
from models.artifact.engine_plan import write_plan
from models.artifact.measured import record_accuracy
from tests.command_line import topfive
from tests.models.test_measured import measurement
from tests.models.test_plan import CONTENT
from tests.models.test_plan import record as plan_record
from tests.serving import serving


def test_facts_of_the_paper(tmp_path: Path) -> None:
    """A model that is not exported has the figures of its paper, its competition, and both counts of parameters."""
    output = topfive("show", "googlenet_2014", "--artifacts", tmp_path).output

    assert "googlenet_2014, not exported" in output
    assert "6,998,552 (13,378,280 with auxiliary heads)" in output
    assert "1,582,671,872" in output
    assert "22 layers" in output
    assert "2014 winner" in output
    assert [line.split()[:3] for line in output.splitlines() if line.strip().startswith("paper  ")][1:] == [
        ["paper", "-", "89.93"],
        ["paper", "-", "93.33"],
    ]


def test_published_weights(tmp_path: Path) -> None:
    """Every published weight set has its accuracy, the default first."""
    lines = topfive("show", "resnet50", "--artifacts", tmp_path).output.splitlines()

    rates = [line.split()[1:4] for line in lines if line.strip().startswith("weights IMAGENET")]
    assert rates == [["IMAGENET1K_V2", "80.86", "95.43"], ["IMAGENET1K_V1", "76.13", "92.86"]]


def test_exported(artifacts: Path) -> None:
    """An exported model has its weights, its warning, its parity, and its measured accuracy with the interval."""
    version, manifest = read_manifest(artifacts, "tiny")
    record_accuracy(artifacts / "tiny" / str(version) / "manifest.json", measurement())
    output = topfive("show", "tiny", "--artifacts", artifacts, columns=200).output

    assert "tiny, version 1" in output
    assert "untrained: untrained" in output
    assert "its answers mean nothing" in output
    assert "10 images of photos, openvino f32, single crop, 2026-01-02" in output
    assert "90.00" in output
    assert "[59.58, 98.21]" in output
    assert output.count("yes") == sum(report.passed for report in manifest.parity) > 0


@pytest.mark.anyio
async def test_json_is_the_reply_of_the_server(artifacts: Path) -> None:
    """--json prints the answer of GET /models/NAME, apart from the state, engine and latency of a loaded model."""
    printed = json.loads(topfive("show", "tiny", "--artifacts", artifacts, "--json").output)
    async with serving(artifacts) as running:
        answered = (await running.http.get("/models/tiny")).json()

    of_a_server = {"state", "engine", "latency_ms"}
    assert {key: printed[key] for key in printed.keys() - of_a_server} == {
        key: answered[key] for key in answered.keys() - of_a_server
    }


def test_damaged_files(artifacts: Path) -> None:
    """The record of an engine, or a manifest, that cannot be read is named, with what to do."""
    folder = artifacts / "tiny" / "1"
    (folder / "engines").mkdir()
    (folder / "engines" / "zzz.json").write_text("{")
    warnings = json.loads(topfive("show", "tiny", "--artifacts", artifacts, "--json").output)["warnings"]
    assert any("zzz.json cannot be read" in text and "build that engine again" in text for text in warnings)

    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    output = topfive("show", "tiny", "--artifacts", artifacts, columns=200).output

    assert "is not a manifest" in output
    assert "topfive export tiny" in output


def test_built_engines(artifacts: Path) -> None:
    """Engines built for cards are listed, with the reason why one does not fit, within the width of the terminal."""
    graph = read_manifest(artifacts, "tiny")[1].files["model.onnx"]
    plan = write_plan(artifacts / "tiny" / "1", CONTENT, plan_record(graph_sha256=graph, version="0.1"))
    output = topfive("show", "tiny", "--artifacts", artifacts).output
    [engine] = json.loads(topfive("show", "tiny", "--artifacts", artifacts, "--json").output)["engines"]

    assert "1 to 32" in output
    assert "no:" in output
    assert (engine["name"], engine["targets"], engine["fits"]) == (plan.record.stem, ["sm86", "sm89"], False)
    assert engine["reason"]
    for columns in (60, 80, 120):
        for name in ("tiny", "alexnet_2012", "resnet50"):
            lines = topfive("show", name, "--artifacts", artifacts, columns=columns).output.splitlines()
            assert max(map(len, lines)) <= columns
