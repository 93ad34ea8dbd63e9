"""`topfive show`: the facts of one model, as a person and as a program read them."""

import json
from pathlib import Path

import pytest

from models.artifact.artifact import read_manifest
from models.artifact.engine_plan import write_plan
from models.artifact.measured import MeasuredAccuracy, record_accuracy
from tests.cli.command_line import topfive
from tests.models.test_plan import CONTENT
from tests.models.test_plan import record as plan_record
from tests.serving import serving


def measurement() -> MeasuredAccuracy:
    """Nine of ten right."""
    return MeasuredAccuracy(
        dataset="mine",
        dataset_sha256="0" * 64,
        images=10,
        acc1=90.0,
        acc1_low=59.6,
        acc1_high=98.2,
        acc5=None,
        acc5_low=None,
        acc5_high=None,
        crops=1,
        runtime="openvino",
        precision="f32",
        date="2026-01-02",
    )


def test_facts_of_the_paper(tmp_path: Path) -> None:
    """A network that is not exported shows what its paper and the competition say, and both counts of parameters."""
    output = topfive("show", "googlenet_2014", "--artifacts", tmp_path).output

    assert "googlenet_2014, not exported" in output
    assert "6,998,552, 13,378,280 in training" in output
    assert "1,582,671,872" in output
    assert "22 layers" in output
    assert "2014 winner" in output
    assert [line.split()[:3] for line in output.splitlines() if line.strip().startswith("paper  ")][1:] == [
        ["paper", "-", "10.07"],
        ["paper", "-", "6.67"],
    ]


def test_weights_as_errors(tmp_path: Path) -> None:
    """The accuracy of every published weight set is shown as an error rate, the default first."""
    lines = topfive("show", "resnet50", "--artifacts", tmp_path).output.splitlines()

    rates = [line.split()[1:4] for line in lines if line.strip().startswith("weights IMAGENET")]
    assert rates == [["IMAGENET1K_V2", "19.14", "4.57"], ["IMAGENET1K_V1", "23.87", "7.14"]]


def test_exported(artifacts: Path) -> None:
    """An exported model shows its weights, its warning, its parity, and what was measured with the interval."""
    version, manifest = read_manifest(artifacts, "tiny")
    record_accuracy(artifacts / "tiny" / str(version) / "manifest.json", measurement())
    output = topfive("show", "tiny", "--artifacts", artifacts, columns=200).output

    assert "tiny, version 1" in output
    assert "untrained: untrained" in output
    assert "its answers mean nothing" in output
    assert "10 images of mine, openvino f32, single crop, 2026-01-02" in output
    assert "10.00" in output
    assert "[1.80, 40.40]" in output
    assert output.count("yes") == sum(report.passed for report in manifest.parity) > 0


@pytest.mark.anyio
async def test_json_is_the_reply_of_the_server(artifacts: Path) -> None:
    """--json prints what GET /models/NAME answers, the state and the latency of a loaded model aside."""
    printed = json.loads(topfive("show", "tiny", "--artifacts", artifacts, "--json").output)
    async with serving(artifacts) as running:
        answered = (await running.http.get("/models/tiny")).json()

    of_a_server = {"state", "engine", "latency_ms"}
    assert {key: printed[key] for key in printed.keys() - of_a_server} == {
        key: answered[key] for key in answered.keys() - of_a_server
    }


def test_unknown(tmp_path: Path) -> None:
    """A name that nobody knows ends in an error with the nearest one."""
    result = topfive("show", "resnet5", "--artifacts", tmp_path)

    assert result.exit_code == 1
    assert "did you mean resnet50" in result.output


def test_damaged_manifest(artifacts: Path) -> None:
    """A model whose manifest cannot be read is not passed off as one that was never exported."""
    (artifacts / "tiny" / "1" / "manifest.json").write_text("{}", encoding="utf-8")
    output = topfive("show", "tiny", "--artifacts", artifacts, columns=200).output

    assert "is not a manifest" in output
    assert "topfive export tiny" in output


def test_built_engines(artifacts: Path) -> None:
    """Engines built for cards are listed, with what differs here and what to run."""
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


def test_record_of_an_engine_that_cannot_be_read(artifacts: Path) -> None:
    """It is no engine, and is not passed over in silence: the file is named, with what to do."""
    folder = artifacts / "tiny" / "1" / "engines"
    folder.mkdir()
    (folder / "zzz.json").write_text("{")
    warnings = json.loads(topfive("show", "tiny", "--artifacts", artifacts, "--json").output)["warnings"]

    assert any("zzz.json cannot be read" in text and "build that engine again" in text for text in warnings)
