"""`topfive tune`: its table, its record and its errors."""

from pathlib import Path

import pytest
from click.testing import Result

from models.artifact.artifact import Artifact
from models.artifact.tuning import TuningRecord
from service.common.types import Probabilities, Rows
from service.engines.base import Engine, EngineUnavailableError
from service.offline.tune import Candidate
from tests.command_line import topfive
from tests.fakes import FakeEngine


def open_fake(artifact: Artifact, one: Candidate) -> Engine:
    """An engine that answers."""
    return FakeEngine(artifact.manifest.classes, slots=one.layout.slots)


class SlowEngine(FakeEngine):
    """Computes for longer than 0.1 ms."""

    def run(self, rows: Rows) -> Probabilities:
        sum(range(100_000))
        return super().run(rows)


def open_slow(artifact: Artifact, one: Candidate) -> Engine:
    """An engine whose batches run longer than 0.1 ms."""
    return SlowEngine(artifact.manifest.classes, slots=one.layout.slots)


def open_refusing(_artifact: Artifact, _one: Candidate) -> Engine:
    """Raises EngineUnavailableError."""
    raise EngineUnavailableError("this CPU lacks something")


def tune(artifacts: Path, *words: object, open_engine: object = open_fake) -> Result:
    """Run the command with fake engines in a terminal of 80 columns."""
    return topfive(
        "tune", "--artifacts", artifacts, "--cpus", "1", "--seconds", "1", *words, columns=80, obj=open_engine
    )


def test_table_and_record(artifacts: Path) -> None:
    """80 columns cut off nothing; the best row is marked; the record has it first and is for the number of CPUs."""
    result = tune(artifacts, "tiny")

    assert result.exit_code == 0, result.output
    assert result.stdout.count(" best") == 1
    assert "…" not in result.stdout
    [path] = (artifacts / "tiny" / "1" / "tuned").iterdir()
    assert f"is kept in {path}" in result.stdout
    record = TuningRecord.model_validate_json(path.read_bytes())
    assert record.conditions.cpus == 1
    assert {"openvino", "onnxruntime"} == {one.runtime for one in record.trials}
    best = record.trials[0]
    assert f"{best.runtime} {best.precision}, slots 1, threads 1, max_batch {best.max_batch} is kept" in result.stdout
    assert best.images_per_s > 0


def test_no_batch_within_the_bound(artifacts: Path) -> None:
    """If no batch runs within the bound, a line says so."""
    result = tune(artifacts, "tiny", "--max-latency-ms", "0.1", open_engine=open_slow)

    assert result.exit_code == 0, result.output
    assert "no batch runs within 0.1 ms; the shortest are kept" in result.stderr


def test_what_cannot_be_kept_is_shown(artifacts: Path) -> None:
    """If the folder cannot be written, the table is printed, an error names it, and the status is 1."""
    (artifacts / "tiny" / "1" / "tuned").write_text("not a folder")
    result = tune(artifacts, "tiny")

    assert result.exit_code == 1
    assert result.stdout.count(" best") == 1
    assert "tiny: " in result.stderr
    assert "tuned" in result.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--seconds", "nan"], 2, "nan is not a finite number"),
        (["--max-latency-ms", "inf"], 2, "inf is not a finite number"),
        ([], 1, "this CPU lacks something"),
    ],
)
def test_refused(words: list[str], status: int, message: str, artifacts: Path) -> None:
    """A time without end, and engines that do not open, are errors without a record."""
    result = tune(artifacts, "tiny", *words, open_engine=open_refusing)

    assert result.exit_code == status
    assert message in result.stderr
    assert not (artifacts / "tiny" / "1" / "tuned").exists()


def test_not_exported(artifacts: Path) -> None:
    """A model that is not exported is an error with status 1; the models after it are tuned."""
    result = tune(artifacts, "alexnet", "tiny")

    assert result.exit_code == 1
    assert "alexnet is not exported yet" in result.stderr
    assert (artifacts / "tiny" / "1" / "tuned").is_dir()
