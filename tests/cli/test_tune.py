"""`topfive tune`: its table, its record, its errors, and what an interruption leaves."""

import json
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import Result

from models.artifact.artifact import load
from models.artifact.tuning import TuningRecord
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.offline.tuning.candidates import TuneCandidate, allowed
from service.offline.tuning.engine_load import EngineSpeed
from service.offline.tuning.tune import StartWorker
from service.offline.tuning.worker import Worker
from tests.command_line import topfive
from tests.offline.tuning.tuning_engines import open_fake, open_refusing

ONE_ENGINE = ("--precision", "f32", "--runtime", "openvino")


class LargeFigures(Worker):
    """Gives figures of many digits after the time of a measurement."""

    def __call__(self, candidate: TuneCandidate, seconds: float) -> tuple[str, EngineSpeed]:
        threading.Event().wait(seconds)  # a search goes on until its time is over
        return "1.0", EngineSpeed(12345.6, 1234.5, 1234.5)


def tune(artifacts: Path, *words: object, worker: StartWorker | None = None, columns: int = 80) -> Result:
    """Run the command with `worker`, or else with fake engines in the measuring process."""
    folders = ("--artifacts", artifacts, "--cache", artifacts.parent / "cache", "--cpus", "1", "--seconds", "1")
    worker = worker or partial(Worker, open_engine=open_fake, stuck_s=2.0)
    return topfive("tune", *folders, *words, columns=columns, obj=worker)


def test_record(artifacts: Path) -> None:
    """The JSON names the record, which lies beside the manifest and is for the given number of CPUs."""
    result = tune(artifacts, "tiny", "--json", *ONE_ENGINE)

    assert result.exit_code == 0, result.output
    [reply] = json.loads(result.stdout)
    path = Path(reply["record"])
    assert path.parent == artifacts / "tiny" / "1" / "tuned"
    record = TuningRecord.model_validate_json(path.read_bytes())
    assert record.conditions.cpus == 1
    assert {(one.runtime, one.precision) for one in record.trials} == {("openvino", "f32")}
    assert record.trials[0].images_per_s > 0
    assert f"{record.trials[0].images_per_s:.0f} images/s" in reply["why"]


def test_table(artifacts: Path) -> None:
    """80 columns cut off no figure; the best row is marked; the reason and the use of the record follow."""
    result = tune(artifacts, "tiny", *ONE_ENGINE, worker=LargeFigures)

    assert result.exit_code == 0, result.output
    assert result.stdout.count(" best") == 1
    assert "12345.6" in result.stdout
    assert "…" not in result.stdout
    words = " ".join(result.stdout.split())
    assert "chose openvino f32, 1 x 1, batches up to" in words
    assert "under 100 ms, and these are the shortest" in words
    assert "`topfive serve --runtime openvino --precision f32` uses it" in words


def test_what_cannot_be_kept_is_shown(artifacts: Path) -> None:
    """If no folder can be written, the table is printed, an error says what to do, and the status is 1."""
    (artifacts / "tiny" / "1" / "tuned").write_text("not a folder")
    (artifacts.parent / "cache").write_text("not a folder")
    result = tune(artifacts, "tiny", *ONE_ENGINE, worker=LargeFigures)

    assert result.exit_code == 1
    assert result.stdout.count(" best") == 1
    assert "tiny: not kept: " in result.stderr
    assert "name a folder that can be written with --cache" in result.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--seconds", "nan"], 2, "nan is not a finite number"),
        (["--seconds", "inf"], 2, "inf is not a finite number"),
        (["--max-latency-ms", "nan"], 2, "nan is not a finite number"),
        (["--max-latency-ms", "inf"], 2, "inf is not a finite number"),
        (["--runtime", "tensorrt"], 1, "tensorrt has nothing to tune; use --runtime openvino or onnxruntime"),
        (["--precision", "int8"], 1, "no runtime that computes in int8 is installed"),
        ([], 1, "this CPU lacks something"),
    ],
)
def test_refused(words: list[str], status: int, message: str, artifacts: Path) -> None:
    """A time without end, a runtime that cannot be tuned, and engines that do not open are errors without a record."""
    result = tune(artifacts, "tiny", *words, worker=partial(Worker, open_engine=open_refusing))

    assert result.exit_code == status
    assert message in result.stderr
    assert not (artifacts / "tiny" / "1" / "tuned").exists()


def test_only_what_parity_allows_is_tried(exported: Path) -> None:
    """Without a report of bf16 only f32 is tried; asking for bf16 is then an error that names the command."""
    tiny = load(exported, "tiny")
    artifact = replace(tiny, manifest=tiny.manifest.model_copy(update={"parity": ()}))

    assert allowed(artifact, Runtime.OPENVINO, Precision.AUTO) == [(Runtime.OPENVINO, Precision.F32)]
    with pytest.raises(EngineUnavailableError, match="may not run in bf16 on openvino"):
        allowed(artifact, Runtime.OPENVINO, Precision.BF16)


def test_interruption(artifacts: Path) -> None:
    """Ctrl-C ends the command with 130: nothing is stored of that model; the JSON has the models before it."""

    class Interrupted(LargeFigures):
        opened = 0

        def __enter__(self) -> "Interrupted":
            Interrupted.opened += 1
            if Interrupted.opened > 1:
                raise KeyboardInterrupt
            return self

    shutil.copytree(artifacts / "tiny", artifacts / "lenet5")
    manifest = artifacts / "lenet5" / "1" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_bytes()), "name": "lenet5"}))
    result = tune(artifacts, "tiny", "lenet5", *ONE_ENGINE, "--json", worker=Interrupted)

    assert result.exit_code == 130
    assert "stopped; nothing was stored of lenet5" in result.stderr
    assert [(one["model"], Path(one["record"]).is_file()) for one in json.loads(result.stdout)] == [("tiny", True)]
    assert not (artifacts / "lenet5" / "1" / "tuned").exists()


def test_not_exported(artifacts: Path) -> None:
    """A model that is not exported is an error with status 1; the models after it are tuned."""
    result = tune(artifacts, "alexnet", "tiny", *ONE_ENGINE, "--json", worker=LargeFigures)

    assert result.exit_code == 1
    assert "alexnet is not exported yet" in result.stderr
    assert [one["model"] for one in json.loads(result.stdout)] == ["tiny"]
